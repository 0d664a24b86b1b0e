"""The order of the stages: capture, transform, calibrate, plan, correct, apply. The one file that knows it.

Each function is a pure step between values that can be saved; `quantize` is all of them in a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from detent._arguments import expect, reference_of
from detent.candidate_widths import checked_budget, checked_latency, mixed_passes
from detent.config import Budget, MixedPrecisionConfig, Preprocessing, QuantizationConfig, resolve_preprocessing
from detent.config.quantization import FEW_BITS
from detent.correcting import correct_as_asked, correct_biases
from detent.edit import Rule
from detent.errors import ConfigError
from detent.fronts import pareto
from detent.graph import Graph
from detent.graph import capture as capture_graph
from detent.graph.example import normalize_example
from detent.keeping_accuracy import keep_accuracy
from detent.learned_rounding import learn_rounding
from detent.mixed_precision import LatencyTable
from detent.mixing import choose_widths
from detent.planning import FurtherPasses, further_passes, plan, revise, values_to_observe
from detent.quantized import QuantizedModel, assemble
from detent.records.moving import momentum_to_calibrate
from detent.records.plan import QuantPlan
from detent.records.rules import checked_rules
from detent.records.statistics import Statistics
from detent.rounding_kernels import round_kernels
from detent.scoring import score
from detent.statistics import Keeping, calibrate, collect_moments, first_batch
from detent.statistics.observation import observed_values
from detent.targets import Target, load_target
from detent.transforms import (
    absorb_high_biases,
    attach_preprocessing,
    bound_relu6,
    collapse_linear,
    collapse_residual,
    equalize_activations,
    equalize_layers,
    fold_batch_norm,
    fold_forward,
    read_by_rewrites,
    require_unsigned_codes,
    restore_norms,
    shift_negative,
    shift_softmax,
    smooth,
    split_attention,
)

__all__ = [
    "apply",
    "calibrate",
    "calibrate_for_rewrites",
    "capture",
    "checked_budget",
    "checked_latency",
    "choose_widths",
    "collect_moments",
    "correct_biases",
    "decide",
    "keep_accuracy",
    "learn_rounding",
    "pareto",
    "passes_over_data",
    "plan",
    "quantize",
    "revise",
    "round_kernels",
    "score",
    "transform",
]


def capture(
    model: nn.Module | ExportedProgram | str | Path,
    example_inputs: Any = None,
    *,
    dynamic_batch: bool = True,
    preprocessing: Preprocessing | Mapping[str, Preprocessing | Mapping[str, Any]] | None = None,
) -> Graph:
    """Capture a float model as a graph, fold its batch norms, and write attention as products with a softmax between.

    Args:
        model: the module, an `ExportedProgram`, or the path of a `.pt2` file.
        example_inputs: a batch in any form the model takes: tensor, tuple, list or dict; not needed for a program or
            file, which carry their own.
        dynamic_batch: capture for any number of samples; where that fails, a note says why and the batch is fixed.
        preprocessing: what turns raw input into what the model was trained on: one record for the only input, or
            records by input name. The graph then takes raw input, and so does whatever is made of it; the example is
            raw too.

    Raises:
        CaptureError: the model cannot be captured; the error shows the user's source line.
        ConfigError: a wrong preprocessing; the error names the input.
        FormatError: the `.pt2` file is damaged or of another kind.
    """
    records = resolve_preprocessing(preprocessing)
    if records and isinstance(model, nn.Module):
        example_inputs = normalize_example(model, example_inputs, records)
    graph = capture_graph(model, example_inputs, dynamic_batch=dynamic_batch)
    for rewrite in (split_attention, restore_norms, fold_batch_norm, fold_forward):
        graph = rewrite(graph)
    return attach_preprocessing(graph, records) if records else graph


def transform(
    graph: Graph,
    stats: Statistics | None = None,
    *,
    target: str | Path | Target | None = None,
    config: QuantizationConfig | Mapping[str, Any] | None = None,
    **options: Any,
) -> Graph:
    """Rewrite a captured network so that quantization costs it less; its float function stays the same.

    Bias absorption alone keeps it for values like those seen in calibration only.

    Statistics and plans belong to the graph they were made for, so this comes before calibration. Rewrites that need
    statistics themselves are carried out when those are given, and the graph is then calibrated again.

    Args:
        graph: the captured network; it is not changed.
        stats: what a calibration of this graph saw of all its values, for the rewrites that need it; the others are
            not repeated. Where a value was not observed, a rewrite leaves it as it is.
        target: name of a built-in target or path of a target file; `shift_negative` needs to know it.
        config: options; single ones can be given by keyword and take precedence.
        **options: fields of `QuantizationConfig`, e.g. `equalization="cross_layer"`.

    Raises:
        ConfigError: an unknown option, a value out of range, statistics of another graph, or `shift_negative` for a
            target that it is not for.
    """
    expect(graph, Graph, "graph", "detent.capture")
    settings = QuantizationConfig.resolve(config, options)
    if stats is not None:
        expect(stats, Statistics, "stats", "detent.calibrate")
        by_statistics: tuple[tuple[bool, Callable[[Graph, Statistics], Graph]], ...] = (
            (settings.bias_absorption, absorb_high_biases),
            (settings.softmax_shift, shift_softmax),
            (settings.smooth_quant, smooth),
            # Last: forward folding of constants would undo it, so nothing may come behind.
            (settings.shift_negative, lambda graph, stats: shift_negative(graph, stats, _required(target), settings)),
        )
        before = graph
        for wanted, rewrite_by in by_statistics:
            if wanted and graph is not before:
                # The statistics still hold for all values but those just changed. Smoothing may read one whose bias was
                # absorbed; its ranges then only guide which factors are taken, and the float function is kept.
                stats = replace(stats, fingerprint=graph.fingerprint())
            graph = rewrite_by(graph, stats) if wanted else graph
        return graph
    rewrites = (
        (settings.linear_collapsing, collapse_linear),
        (settings.residual_collapsing, collapse_residual),
        (settings.relu_bound_to_power_of_2, bound_relu6),
        (settings.equalization == "activations", equalize_activations),
        (settings.equalization == "cross_layer", equalize_layers),
    )
    for wanted, rewrite in rewrites:
        graph = rewrite(graph) if wanted else graph
    if settings.shift_negative and target is not None:
        require_unsigned_codes(graph, load_target(target))
    return graph


def _required(target: str | Path | Target | None) -> Target:
    if target is None:
        raise ConfigError("`shift_negative` depends on the target", remedy="pass `target`, as to detent.plan")
    return load_target(target)


def calibrate_for_rewrites(graph: Graph, data: Any, settings: QuantizationConfig, *, progress: bool) -> Statistics:
    """Statistics of what the wanted rewrites read; no data are read if they read nothing."""
    everything = [observation.name for observation in observed_values(graph, None, [])]
    reads = read_by_rewrites(graph, settings, everything)
    if not reads.values:
        return Statistics({}, 0, graph.fingerprint())
    return calibrate(graph, data, progress=progress, values=reads.values, channels=reads.channels)


def apply(graph: Graph, plan: QuantPlan, *, trainable: bool = False) -> QuantizedModel:
    """Model + plan = quantized model.

    Args:
        graph: the captured network; it is not changed.
        plan: made by `detent.plan` for this graph, or edited by hand.
        trainable: keep float kernels and biases as parameters, quantized in each forward pass, for training;
            otherwise the model holds integer codes.

    Raises:
        ConfigError: the plan asks for something the graph or the target cannot do; the error names the tensor.
    """
    expect(graph, Graph, "graph", "detent.capture")
    expect(plan, QuantPlan, "plan", "detent.plan or QuantPlan.load")
    return assemble(graph, plan, trainable=trainable)


def quantize(
    model: nn.Module | ExportedProgram | str | Path | Graph,
    data: Any,
    *,
    target: str | Path | Target = "default",
    config: QuantizationConfig | Mapping[str, Any] | None = None,
    preprocessing: Preprocessing | Mapping[str, Preprocessing | Mapping[str, Any]] | None = None,
    rules: Sequence[Rule] = (),
    budget: Budget | Mapping[str, Any] | None = None,
    mixed_precision: MixedPrecisionConfig | Mapping[str, Any] | None = None,
    latency: LatencyTable | str | Path | None = None,
    progress: bool = True,
    **options: Any,
) -> QuantizedModel:
    """Quantize a trained model: capture, transform, calibrate, choose widths, plan, correct and apply in a row.

    Args:
        model: the module, an `ExportedProgram`, the path of a `.pt2` file, or a graph captured before.
        data: calibration batches without labels: a DataLoader, an iterable or zero-argument callable of batches, an
            array, or the path of an `.npz` file.
        target: name of a built-in target or path of a target file.
        config: options; single ones can be given by keyword and take precedence.
        preprocessing: what turns raw input into what the model was trained on, one record or records by input name;
            the data are raw then. A captured graph has its own.
        rules: what to decide otherwise for some tensors, from `detent.edit.rule`; later ones win.
        budget: limits on memory or operations; every tensor then gets one of the widths the target offers, so that the
            outputs lose least. None takes one width for all.
        mixed_precision: how widths are scored and chosen under a budget.
        latency: measured times, or the path of a JSON file of them, for a budget with `latency`.
        progress: show progress on a terminal.
        **options: fields of `QuantizationConfig`.

    Raises:
        DetentError: its subclasses, as the steps do.
    """
    # What can be refused without running the model is refused first.
    settings, rules = QuantizationConfig.resolve(config, options), checked_rules(rules)
    settings.refuse_hessians()
    load_target(target)
    reference_of(target)
    limits = checked_budget(budget)
    if limits is None and mixed_precision is not None:
        raise ConfigError("`mixed_precision` is for a budget, and there is none", remedy="give `budget`")
    times = checked_latency(limits, latency)
    records = resolve_preprocessing(preprocessing)
    if isinstance(model, Graph):
        if records:
            raise ConfigError("the graph was captured before", remedy="pass `preprocessing` to detent.capture")
        graph = model
    else:
        example, data = first_batch(data, model)
        graph = capture(model, example, preprocessing=records)
    graph = transform(graph, target=target, config=settings)
    if settings.rewrites_by_statistics:
        # The data are read twice more, so what can be read once only is held.
        data = list(data) if isinstance(data, Iterator) else data
        seen = calibrate_for_rewrites(graph, data, settings, progress=progress)
        graph = transform(graph, seen, target=target, config=settings)
    mixed = None if limits is None else MixedPrecisionConfig.of(mixed_precision, "mixed_precision")
    passes = passes_over_data(graph, target, settings, rules, limits, mixed, times)
    kept = settings.samples_kept(moments=passes.moments, sequential=passes.sequential)
    kept = max(kept, 0 if mixed is None else 2 * mixed.samples)
    if kept and isinstance(data, Iterator):
        data = Keeping(data, kept)
    # Only what this plan reads is observed; a user who wants to decide again calibrates once for everything.
    values = values_to_observe(graph, target, settings)
    momentum = momentum_to_calibrate(settings, rules)
    channels = settings.corrects_by_statistics or settings.activation_per_channel
    stats = calibrate(graph, data, progress=progress, values=values, channels=channels, moving_maximum=momentum)
    data = data.kept if isinstance(data, Keeping) else data
    decided = decide(
        graph,
        stats,
        data,
        passes,
        target=target,
        config=settings,
        rules=rules,
        budget=limits,
        mixed_precision=mixed,
        latency=times,
        progress=progress,
    )
    return apply(graph, decided)


def passes_over_data(
    graph: Graph,
    target: str | Path | Target,
    config: QuantizationConfig,
    rules: Sequence[Rule],
    budget: Budget | None,
    mixed_precision: MixedPrecisionConfig | None,
    latency: LatencyTable | str | Path | None = None,
) -> FurtherPasses:
    """What reads the data again after calibration, with or without a budget under which widths are chosen.

    Raises:
        ConfigError: what the target does not offer, or times that are missing, before any data are read.
    """
    passes = further_passes(graph, target, config, rules)
    if budget is None:
        checked_latency(None, latency)
        return passes
    return mixed_passes(graph, target, config, mixed_precision, rules, budget, latency)


def decide(
    graph: Graph,
    stats: Statistics,
    data: Any,
    passes: FurtherPasses,
    *,
    target: str | Path | Target,
    config: QuantizationConfig,
    rules: Sequence[Rule] = (),
    budget: Budget | None = None,
    mixed_precision: MixedPrecisionConfig | None = None,
    latency: LatencyTable | str | Path | None = None,
    checkpoint: str | Path | None = None,
    rounding_checkpoint: str | Path | None = None,
    progress: bool = True,
) -> QuantPlan:
    """From statistics to the finished plan: moments, widths under a budget, grids, corrections on data.

    Args:
        graph: the captured and transformed network.
        stats: what calibration saw of it.
        data: the same data, which are read again as `passes` says.
        passes: from `passes_over_data`.
        target: name of a built-in target or path of a target file.
        config: options.
        rules: what to decide otherwise for some tensors.
        budget: limits on what the network needs; None takes one width for all.
        mixed_precision: how widths are chosen under a budget.
        latency: measured times, or the path of a JSON file of them, for a budget with `latency`.
        checkpoint: file for batches whose scores are done, see `detent.score`.
        rounding_checkpoint: file for blocks whose rounding is learned, see `detent.learn_rounding`.
        progress: show progress on a terminal.

    Raises:
        DetentError: its subclasses, as the steps do.
    """
    moments = collect_moments(graph, data, samples=config.moment_samples, progress=progress) if passes.moments else None
    if budget is None:
        decided = plan(graph, stats, target=target, config=config, rules=rules, moments=moments)
    else:
        found = choose_widths(
            graph,
            stats,
            data,
            budget,
            target=target,
            config=config,
            mixed_precision=mixed_precision,
            rules=rules,
            moments=moments,
            latency=latency,
            checkpoint=checkpoint,
            progress=progress,
        )
        decided = plan(graph, stats, target=target, config=config, rules=rules, moments=moments, widths=found.widths)
        decided = replace(decided, notes=(*decided.notes, *found.notes()))
    if config.rounds_in_closed_form:
        decided = round_kernels(graph, decided, data, options=config.gptq, progress=progress)
    few = budget is None or decided.widths.least < FEW_BITS or config.bias_correction == "sequential"
    if passes.sequential and few:
        decided = correct_as_asked(graph, decided, data, config, progress=progress)
    if config.rounding == "learned":
        decided = learn_rounding(
            graph, decided, data, options=config.learned, checkpoint=rounding_checkpoint, progress=progress
        )
    return decided
