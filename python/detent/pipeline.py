"""The order of the stages: capture, transform, calibrate, plan, correct, apply. The one file that knows it.

Each function is a pure step between values that can be saved; `quantize` is all of them in a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from detent._arguments import check_plan_is_of, expect, fingerprint_of, reference_of
from detent.config import Preprocessing, QuantizationConfig, resolve_preprocessing
from detent.corrections import correct_analytically, correct_sequentially, corrections_of
from detent.edit import Rule, resolve_changes, resolve_rules
from detent.errors import ConfigError
from detent.graph import Graph
from detent.graph import capture as capture_graph
from detent.graph.example import normalize_example
from detent.graph.placement import Placement, bias_input, correctable_layers, place
from detent.quantized import QuantizedModel, assemble
from detent.records.choices import Choices
from detent.records.plan import QuantPlan
from detent.records.rules import checked_rules
from detent.records.statistics import Statistics
from detent.statistics import Keeping, calibrate, first_batch, first_samples
from detent.targets import Target, load_target
from detent.thresholds import avoid_ties, make_room_for_biases, notes_on_groups, search_grids
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
    "capture",
    "check_rules",
    "correct_biases",
    "plan",
    "quantize",
    "revise",
    "transform",
    "values_to_observe",
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
            not repeated.
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
        by_statistics = (
            (settings.bias_absorption, absorb_high_biases),
            (settings.softmax_shift, shift_softmax),
            (settings.smooth_quant, smooth),
        )
        for wanted, rewrite_by in by_statistics:
            if wanted:
                graph = rewrite_by(graph, stats)
                # The statistics still hold for all values but those just changed. Smoothing may read one whose bias was
                # absorbed; its ranges then only guide which factors are taken, and the float function is kept.
                stats = replace(stats, fingerprint=graph.fingerprint())
        if settings.shift_negative:
            # Last: forward folding of constants would undo it, so nothing may come behind.
            graph = shift_negative(graph, stats, _required(target), settings)
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


def plan(
    graph: Graph,
    stats: Statistics,
    *,
    target: str | Path | Target = "default",
    config: QuantizationConfig | Mapping[str, Any] | None = None,
    rules: Sequence[Rule] = (),
    earlier: QuantPlan | None = None,
    **options: Any,
) -> QuantPlan:
    """Choose a grid for every tensor that `target` quantizes; no data is read and no forward pass is run.

    Args:
        graph: the captured network.
        stats: what calibration saw of it.
        target: name of a built-in target or path of a target file.
        config: options; single ones can be given by keyword and take precedence.
        rules: what to decide otherwise for some tensors, from `detent.edit.rule`; later ones win.
        earlier: a plan for the same graph whose frozen entries are taken over; everything else is decided anew.
        **options: fields of `QuantizationConfig`, e.g. `activation_metric="kl"`, `z_threshold=8.0`.

    Raises:
        ConfigError: unknown target or option, statistics of another model, or a rule that cannot be carried out.
        CalibrationError: the statistics lack a value the target quantizes.
    """
    settings, rules = QuantizationConfig.resolve(config, options), checked_rules(rules)
    chip, reference = load_target(target), reference_of(target)
    fingerprint = fingerprint_of(graph, stats)
    if earlier is not None:
        check_plan_is_of(earlier, fingerprint, "earlier")
    placement = place(graph, chip)
    choices = resolve_rules(graph, placement, chip, settings, rules, earlier)
    decided = QuantPlan(
        target=reference,
        graph=fingerprint,
        activations={},
        weights={},
        config=settings.differences(),
        samples=stats.samples,
        notes=(*stats.notes, *placement.notes),
        bias_corrections={} if earlier is None else corrections_of(earlier, placement, choices.kept_weights),
        rules=rules,
        preprocessing={spec.name: spec.preprocessing for spec in graph.inputs if spec.preprocessing is not None},
    )
    return _decide(graph, stats, chip, settings, placement, choices, decided)


def check_rules(
    graph: Graph, rules: Sequence[Rule], target: str | Path | Target, config: QuantizationConfig | None = None
) -> None:
    """Refuse rules that `plan` could not carry out, so that a mistake does not cost a calibration.

    Raises:
        ConfigError: as `plan`; the error names the rule as written, the layer and what is allowed.
    """
    chip = load_target(target)
    settings = QuantizationConfig() if config is None else config
    resolve_rules(graph, place(graph, chip), chip, settings, checked_rules(rules))


def revise(graph: Graph, plan: QuantPlan, stats: Statistics, rules: Sequence[Rule]) -> QuantPlan:
    """A plan in which the tensors that rules mean are decided anew; everything else in it stays, edited by hand or not.

    What the plan's own rules asked for these tensors still holds where the new ones leave it open. A kernel whose bias
    no longer fits is widened, with a note. Sequential bias corrections of the layers that change are dropped.

    Args:
        graph: the captured network.
        plan: made for it.
        stats: what calibration saw of it.
        rules: from `detent.edit.rule`; later ones win.

    Raises:
        ConfigError: the plan or the statistics are of another model, a rule cannot be carried out, or asks for a change
            of a frozen tensor.
    """
    expect(plan, QuantPlan, "plan", "detent.plan or QuantPlan.load")
    fingerprint = fingerprint_of(graph, stats)
    check_plan_is_of(plan, fingerprint, "plan")
    chip, settings, rules = load_target(plan.target), QuantizationConfig.resolve(plan.config, {}), checked_rules(rules)
    placement = place(graph, chip)
    choices = resolve_changes(graph, placement, chip, settings, plan, rules)
    kept = corrections_of(plan, placement, choices.kept_weights)
    dropped = [name for name, found in plan.bias_corrections.items() if name not in kept and found.method != "analytic"]
    notes = (
        [f"rules dropped the measured bias correction of {', '.join(dropped)}; correct biases again"] if dropped else []
    )
    decided = replace(plan, bias_corrections=kept, rules=(*plan.rules, *rules), notes=(*plan.notes, *notes))
    return _decide(graph, stats, chip, settings, placement, choices, decided)


def _decide(
    graph: Graph,
    stats: Statistics,
    target: Target,
    config: QuantizationConfig,
    placement: Placement,
    choices: Choices,
    decided: QuantPlan,
) -> QuantPlan:
    """`decided` with all tables filled: grids, room for biases, steps without ties, corrections."""
    activations, weights = search_grids(graph, placement, stats, target, config, choices)
    weights, notes = make_room_for_biases(graph, placement, activations, weights, choices.pinned_weights)
    notes += notes_on_groups(graph, placement, weights, config.weights_group_size)
    if config.tie_free:
        weights = avoid_ties(graph, placement, activations, weights, {*choices.pinned_weights, *choices.kept_weights})
    corrections = dict(decided.bias_corrections)
    if config.bias_correction == "analytic":
        found, more = correct_analytically(graph, placement, stats, activations, weights)
        anew = {
            user
            for layer, point in placement.weights.items()
            if layer not in choices.kept_weights
            for user in point.users
        }
        corrections |= {name: correction for name, correction in found.items() if name in anew}
        notes += more
    return replace(
        decided,
        activations=activations,
        weights=weights,
        bias_corrections=corrections,
        notes=tuple(dict.fromkeys([*decided.notes, *notes])),
    )


def correct_biases(graph: Graph, plan: QuantPlan, data: Any, *, samples: int = 256) -> QuantPlan:
    """A plan whose biases make up for quantization, layer by layer behind quantized and corrected predecessors.

    Runs the float and the quantized network once over the samples. A correction that does not help on the last
    quarter of them is left out, and a note names the layer. Layers whose kernel is frozen stay as they are.

    Args:
        graph: the captured network.
        plan: made for it; corrections it has are replaced.
        data: calibration batches in any form `calibrate` takes.
        samples: how many of them to use, from the beginning.

    Raises:
        CalibrationError: there are fewer than two samples, or they do not fit the model.
        ConfigError: the plan is not for this graph.
    """
    expect(graph, Graph, "graph", "detent.capture")
    expect(plan, QuantPlan, "plan", "detent.plan or QuantPlan.load")
    batches = first_samples(graph, data, samples, parts=4)
    placement = place(graph, load_target(plan.target))
    frozen = [layer for layer, entry in plan.weights.items() if entry.frozen and layer in placement.weights]
    kept = corrections_of(plan, placement, frozen)
    bare = replace(plan, bias_corrections=kept)
    correctable = correctable_layers(graph, placement)
    layers = [name for name, point in correctable.items() if point.layer not in frozen]
    quantized = assemble(graph, bare).graph_module
    held_out = max(1, len(batches) // 4)
    corrections, notes = correct_sequentially(graph, quantized, layers, batches, held_out)
    notes = [*plan.notes, *notes]
    return replace(bare, bias_corrections={**kept, **corrections}, notes=tuple(dict.fromkeys(notes)))


def values_to_observe(
    graph: Graph, target: str | Path | Target, config: QuantizationConfig | None = None
) -> tuple[str, ...]:
    """Names of the values whose statistics `plan` needs for one target; `calibrate` takes them as `values`.

    Observing everything serves all targets; observing less is faster when only one is wanted.
    """
    placement = place(graph, load_target(target))
    points = placement.activations.values()
    needed = [member for point in points if not point.constant for member in point.members]
    if config is not None and config.bias_correction == "analytic":
        layers = map(graph.find, correctable_layers(graph, placement))
        needed += [graph.name_of(bias_input(graph, layer)) for layer in layers]
    return tuple(dict.fromkeys(needed))


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
    model: nn.Module | ExportedProgram | str | Path,
    data: Any,
    *,
    target: str | Path | Target = "default",
    config: QuantizationConfig | Mapping[str, Any] | None = None,
    preprocessing: Preprocessing | Mapping[str, Preprocessing | Mapping[str, Any]] | None = None,
    rules: Sequence[Rule] = (),
    progress: bool = True,
    **options: Any,
) -> QuantizedModel:
    """Quantize a trained model: capture, transform, calibrate, plan, correct and apply in a row.

    Args:
        model: the module, an `ExportedProgram`, or the path of a `.pt2` file.
        data: calibration batches without labels: a DataLoader, an iterable or zero-argument callable of batches, an
            array, or the path of an `.npz` file.
        target: name of a built-in target or path of a target file.
        config: options; single ones can be given by keyword and take precedence.
        preprocessing: what turns raw input into what the model was trained on, one record or records by input name;
            the data are raw then.
        rules: what to decide otherwise for some tensors, from `detent.edit.rule`; later ones win.
        progress: show progress on a terminal.
        **options: fields of `QuantizationConfig`.

    Raises:
        DetentError: its subclasses, as the steps do.
    """
    # What can be refused without running the model is refused first.
    settings, rules = QuantizationConfig.resolve(config, options), checked_rules(rules)
    load_target(target)
    reference_of(target)
    records = resolve_preprocessing(preprocessing)
    example, data = first_batch(data, model)
    graph = transform(capture(model, example, preprocessing=records), target=target, config=settings)
    if settings.rewrites_by_statistics:
        # The data are read twice more, so what can be read once only is held.
        data = list(data) if isinstance(data, Iterator) else data
        graph = transform(graph, calibrate(graph, data, progress=progress), target=target, config=settings)
    sequential, analytic = (settings.bias_correction == kind for kind in ("sequential", "analytic"))
    if sequential and isinstance(data, Iterator):
        data = Keeping(data, settings.bias_correction_samples)
    # Only what this plan reads is observed; a user who wants to decide again calibrates once for everything.
    values = values_to_observe(graph, target, settings)
    check_rules(graph, rules, target, settings)
    stats = calibrate(graph, data, progress=progress, values=values, channels=analytic)
    decided = plan(graph, stats, target=target, config=settings, rules=rules)
    if sequential:
        data = data.kept if isinstance(data, Keeping) else data
        decided = correct_biases(graph, decided, data, samples=settings.bias_correction_samples)
    return apply(graph, decided)
