"""Planning: from statistics to a `QuantPlan`, anew or revised, and biases corrected behind it. No grid is applied here.

The stages of a plan follow each other in `_decide`: grids, limits that suit the outputs, room for biases, gains, steps
without ties, bias corrections. Each sees the grids as the one before left them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from detent._arguments import check_plan_is_of, expect, fingerprint_of, reference_of
from detent.config import QuantizationConfig
from detent.config.quantization import FEW_BITS
from detent.corrections import (
    correct_analytically,
    correct_gains,
    correct_sequentially,
    corrections_of,
    output_error,
    outputs_of,
)
from detent.edit import Rule, resolve_changes, resolve_rules
from detent.errors import CalibrationError, ConfigError
from detent.graph import Graph
from detent.graph.biases import bias_input, correctable_layers
from detent.graph.placement import Placement, place
from detent.graph.policy import place_as_asked
from detent.quantized import assemble
from detent.records.choices import Choices
from detent.records.hessians import HessianScores
from detent.records.moments import InputMoments
from detent.records.plan import QuantPlan, TensorPlan
from detent.records.rules import checked_rules
from detent.records.statistics import Statistics
from detent.statistics import first_samples, progress_bar
from detent.targets import Target, load_target
from detent.thresholds import (
    avoid_ties,
    forms_wanted,
    make_room_for_biases,
    notes_on_groups,
    refuse_unoffered,
    search_grids,
    suit_outputs,
)

__all__ = [
    "FurtherPasses",
    "correct_as_asked",
    "correct_biases",
    "further_passes",
    "plan",
    "revise",
    "values_to_observe",
]

_MOST_BYTES: Final = 512 << 20
"""Memory of one value of all samples that biases are corrected with."""


def plan(
    graph: Graph,
    stats: Statistics,
    *,
    target: str | Path | Target = "default",
    config: QuantizationConfig | Mapping[str, Any] | None = None,
    rules: Sequence[Rule] = (),
    earlier: QuantPlan | None = None,
    moments: InputMoments | None = None,
    hessians: HessianScores | None = None,
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
        moments: what `collect_moments` saw of the layers' inputs, for the options that need it.
        hessians: scores for the metric `"hmse"`.
        **options: fields of `QuantizationConfig`, e.g. `activation_metric="kl"`, `z_threshold=8.0`.

    Raises:
        ConfigError: unknown target or option, statistics or moments of another model, an option without the moments it
            needs, or a rule that cannot be carried out.
        CalibrationError: the statistics lack a value the target quantizes.
    """
    settings, rules = QuantizationConfig.resolve(config, options), checked_rules(rules)
    chip, reference = load_target(target), reference_of(target)
    fingerprint = fingerprint_of(graph, stats)
    if earlier is not None:
        check_plan_is_of(earlier, fingerprint, "earlier")
    frozen = [] if earlier is None else [name for name, entry in earlier.activations.items() if entry.frozen]
    placement = place_as_asked(graph, chip, settings, own=frozen)
    choices = resolve_rules(graph, placement, chip, settings, rules, earlier)
    if hessians is not None:
        expect(hessians, HessianScores, "hessians", "detent.HessianScores")
        choices = replace(choices, hessians=hessians)
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
    return _decide(graph, stats, chip, settings, placement, choices, decided, moments)


@dataclass(frozen=True, kw_only=True)
class FurtherPasses:
    """What reads the data again after calibration.

    Args:
        moments: `plan` makes use of moments of the layers' inputs, for an option, a rule, or kernels of few bits.
        sequential: biases are to be corrected by `correct_biases`.
    """

    moments: bool
    sequential: bool


def further_passes(
    graph: Graph, target: str | Path | Target, config: QuantizationConfig, rules: Sequence[Rule] = ()
) -> FurtherPasses:
    """What reads the data again after calibration, by options, rules and widths.

    Also refuses rules and widths that `plan` could not carry out, so that a mistake does not cost a calibration.

    Raises:
        ConfigError: as `plan`; the error names the rule as written, the layer and what is allowed.
    """
    chip = load_target(target)
    placement = place_as_asked(graph, chip, config)
    choices = resolve_rules(graph, placement, chip, config, checked_rules(rules))
    refuse_unoffered(graph, placement, chip, config, choices)
    activations, kernels = forms_wanted(placement, chip, config, choices)
    few = min([*activations, *(bits for bits, _ in kernels)], default=FEW_BITS) < FEW_BITS
    return FurtherPasses(
        moments=config.requires_moments
        or any(metric == "output" or config.gain_of_kernel(bits) != "none" for bits, metric in kernels),
        sequential=config.bias_correction == "sequential" or (config.bias_correction == "auto" and few),
    )


def revise(
    graph: Graph, plan: QuantPlan, stats: Statistics, rules: Sequence[Rule], *, moments: InputMoments | None = None
) -> QuantPlan:
    """A plan in which the tensors that rules mean are decided anew; everything else in it stays, edited by hand or not.

    What the plan's own rules asked for these tensors still holds where the new ones leave it open. A kernel whose bias
    no longer fits is widened, with a note. Sequential bias corrections of the layers that change are dropped.

    Args:
        graph: the captured network.
        plan: made for it.
        stats: what calibration saw of it.
        rules: from `detent.edit.rule`; later ones win.
        moments: of the layers' inputs, if the plan's options need them.

    Raises:
        ConfigError: the plan or the statistics are of another model, a rule cannot be carried out, or asks for a change
            of a frozen tensor.
    """
    expect(plan, QuantPlan, "plan", "detent.plan or QuantPlan.load")
    fingerprint = fingerprint_of(graph, stats)
    check_plan_is_of(plan, fingerprint, "plan")
    chip, settings, rules = load_target(plan.target), QuantizationConfig.resolve(plan.config, {}), checked_rules(rules)
    decided_apart = [name for name, entry in plan.activations.items() if entry.same_as is None]
    placement = place_as_asked(graph, chip, settings, own=decided_apart)
    choices = resolve_changes(graph, placement, chip, settings, plan, rules)
    kept = corrections_of(plan, placement, choices.kept_weights)
    dropped = [name for name, found in plan.bias_corrections.items() if name not in kept and found.method != "analytic"]
    notes = (
        [f"rules dropped the measured bias correction of {', '.join(dropped)}; correct biases again"] if dropped else []
    )
    decided = replace(plan, bias_corrections=kept, rules=(*plan.rules, *rules), notes=(*plan.notes, *notes))
    return _decide(graph, stats, chip, settings, placement, choices, decided, moments)


def values_to_observe(
    graph: Graph, target: str | Path | Target, config: QuantizationConfig | None = None
) -> tuple[str, ...]:
    """Names of the values whose statistics `plan` needs for one target; `calibrate` takes them as `values`.

    Observing everything serves all targets; observing less is faster when only one is wanted.
    """
    placement = place_as_asked(graph, load_target(target), config)
    points = placement.activations.values()
    needed = [member for point in points if not point.constant for member in point.members]
    if config is not None and config.corrects_by_statistics:
        layers = map(graph.find, correctable_layers(graph, placement))
        needed += [graph.name_of(bias_input(graph, layer)) for layer in layers]
    return tuple(dict.fromkeys(needed))


def correct_biases(graph: Graph, plan: QuantPlan, data: Any, *, samples: int = 256, progress: bool = True) -> QuantPlan:
    """A plan whose biases make up for quantization, layer by layer behind quantized and corrected predecessors.

    Runs the float and the quantized network once over the samples, with the corrections that the plan has, and adds to
    them. The last quarter of the samples judges: a layer's correction that does not help there is left out, and so are
    all of them if they bring the outputs of the network no closer to float. Notes name what was left out. Layers whose
    kernel is frozen stay as they are.

    Args:
        graph: the captured network.
        plan: made for it.
        data: calibration batches in any form `calibrate` takes.
        samples: how many of them to use at most, from the beginning; fewer where the values of a layer would take more
            than 512 MB, since those of all samples are held at once.
        progress: show a progress bar, if the error output is a terminal.

    Raises:
        CalibrationError: there are fewer than two samples, or they do not fit the model.
        ConfigError: the plan is not for this graph.
    """
    expect(graph, Graph, "graph", "detent.capture")
    check_plan_is_of(plan, graph.fingerprint(), "plan")
    if type(samples) is not int or samples < 1:
        raise ConfigError(f"`samples` must be a whole number from 1, got {samples!r}")
    batches = first_samples(graph, data, min(samples, _samples_held(graph)), parts=4)
    if len(batches) < 2:
        raise CalibrationError(
            "the samples make one batch, which cannot be split into some to correct for and some to judge by",
            remedy=f"give at least {_least_samples(graph)} samples, or use analytic bias correction",
        )
    placement = place(graph, load_target(plan.target))
    layers = [
        name for name, point in correctable_layers(graph, placement).items() if not plan.weights[point.layer].frozen
    ]
    before = assemble(graph, plan).graph_module
    held_out = max(1, len(batches) // 4)
    with progress_bar("correcting biases", "layers", len(layers), wanted=progress) as show:
        found = correct_sequentially(graph, before, layers, batches, held_out, show)
    if not found.corrections:
        return replace(plan, notes=tuple(dict.fromkeys([*plan.notes, *found.notes])))
    added = {name: one.added_to(plan.bias_corrections.get(name)) for name, one in found.corrections.items()}
    corrected, notes = replace(plan, bias_corrections={**plan.bias_corrections, **added}), found.notes
    # Assembled anew, since biases are rounded to codes there.
    after = assemble(graph, corrected).graph_module
    without, with_ = (output_error(found.wanted, outputs_of(one, batches[-held_out:])) for one in (before, after))
    if not with_ < without:
        corrected = plan
        notes = [
            "sequential bias correction brought the outputs on held-out samples no closer to float "
            f"(squared error {with_:.3g}, {without:.3g} without) and was left out"
        ]
    return replace(corrected, notes=tuple(dict.fromkeys([*plan.notes, *notes])))


def correct_as_asked(
    graph: Graph, plan: QuantPlan, data: Any, config: QuantizationConfig, *, progress: bool
) -> QuantPlan:
    """`correct_biases` by the options; where nobody asked for it, too few samples are a note and no error."""
    least = _least_samples(graph)
    if config.bias_correction == "auto" and plan.samples < least:
        note = f"biases were corrected by means only: what is left is measured on {least} samples or more"
        return replace(plan, notes=(*plan.notes, note))
    return correct_biases(graph, plan, data, samples=config.bias_correction_samples, progress=progress)


def _least_samples(graph: Graph) -> int:
    """As many as make two batches."""
    return 2 if graph.batch.dynamic else 2 * graph.batch.size


def _samples_held(graph: Graph) -> int:
    """How many samples the largest value is held of, at least 16."""
    sizes = [math.prod(node.shape) // node.samples for node in graph.nodes() if node.is_float and node.shape]
    return max(16, _MOST_BYTES // (4 * max(sizes, default=1) or 1))


def _decide(
    graph: Graph,
    stats: Statistics,
    target: Target,
    config: QuantizationConfig,
    placement: Placement,
    choices: Choices,
    decided: QuantPlan,
    moments: InputMoments | None,
) -> QuantPlan:
    """`decided` with all tables filled: grids, room for biases, steps without ties, corrections."""
    moments = _checked(moments, decided.graph, config, placement, choices)
    activations, weights = search_grids(graph, placement, stats, target, config, choices)
    weights, notes = _settle_kernels(graph, placement, activations, weights, choices, moments, config)
    corrections = dict(decided.bias_corrections)
    if config.corrects_by_statistics:
        found, more = correct_analytically(
            graph,
            placement,
            stats,
            moments,
            activations,
            weights,
            kernels=config.bias_correction != "none",
            inputs_from=config.activation_bias_correction_threshold if config.activation_bias_correction else None,
        )
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


def _settle_kernels(
    graph: Graph,
    placement: Placement,
    activations: Mapping[str, TensorPlan],
    weights: dict[str, TensorPlan],
    choices: Choices,
    moments: InputMoments | None,
    config: QuantizationConfig,
) -> tuple[dict[str, TensorPlan], list[str]]:
    """The kernels' entries after all that follows the search by the weights alone, with notes."""
    pinned = choices.pinned_weights
    # Where biases are corrected they take back the means; kernels then answer for the deviations only.
    corrected = correctable_layers(graph, placement) if config.bias_correction != "none" else ()
    central = [layer for layer, point in placement.weights.items() if set(point.users) <= set(corrected)]
    weights, notes = suit_outputs(graph, placement, moments, weights, pinned, central=central)
    weights, more = make_room_for_biases(graph, placement, activations, weights, pinned)
    notes += more + notes_on_groups(graph, placement, weights, config.weights_group_size)
    rules = {
        layer: config.gain_of_kernel(entry.grid.bits)
        for layer, entry in weights.items()
        if entry.grid is not None and layer not in pinned
    }
    weights, more = correct_gains(graph, placement, moments, weights, rules, central=central)
    notes += more
    if config.tie_free:
        weights = avoid_ties(graph, placement, activations, weights, pinned)
    return weights, notes


def _checked(
    moments: InputMoments | None,
    fingerprint: str,
    config: QuantizationConfig,
    placement: Placement,
    choices: Choices,
) -> InputMoments | None:
    """Moments that fit the graph of that fingerprint, and are there if an option or a rule cannot do without."""
    if moments is None:
        asked = [layer for layer in placement.weights if choices.of_weights(layer).metric == "output"]
        if config.requires_moments or asked:
            raise ConfigError(
                "the metric 'output' and gain_correction need moments of the layers' inputs",
                where=asked[0] if asked else None,
                remedy="pass moments=detent.collect_moments(graph, data), or use detent.quantize",
            )
        return None
    expect(moments, InputMoments, "moments", "detent.collect_moments")
    if moments.fingerprint != fingerprint:
        raise ConfigError("the moments were collected from another model", remedy="collect the moments of this model")
    return moments
