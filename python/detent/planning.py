"""Planning: from statistics to a `QuantPlan`, anew or revised. No data are read and no grid is applied here.

The stages of a plan follow each other in `_decide`: grids, limits that suit the outputs, room for biases, gains, steps
without ties, bias corrections. Each sees the grids as the one before left them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detent._arguments import check_plan_is_of, expect, fingerprint_of, reference_of
from detent._registry import unknown_name
from detent.config import QuantizationConfig
from detent.config.quantization import FEW_BITS
from detent.corrections import correct_analytically, correct_gains, corrections_of
from detent.edit import Rule, resolve_changes, resolve_rules
from detent.errors import ConfigError
from detent.graph import Graph
from detent.graph.biases import bias_input, correctable_layers
from detent.graph.placement import Placement
from detent.graph.policy import place_as_asked
from detent.records.choices import Choices
from detent.records.hessians import HessianScores
from detent.records.moments import InputMoments
from detent.records.plan import QuantPlan, TensorPlan
from detent.records.rules import checked_rules
from detent.records.statistics import Statistics
from detent.records.traces import HessianTraces
from detent.records.widths import Widths
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

__all__ = ["FurtherPasses", "further_passes", "plan", "revise", "values_to_observe"]


def plan(
    graph: Graph,
    stats: Statistics,
    *,
    target: str | Path | Target = "default",
    config: QuantizationConfig | Mapping[str, Any] | None = None,
    rules: Sequence[Rule] = (),
    earlier: QuantPlan | None = None,
    moments: InputMoments | None = None,
    hessians: HessianScores | HessianTraces | None = None,
    widths: Widths | None = None,
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
        hessians: what `detent.estimate_traces` found, or scores of your own, for the metric `"hmse"`.
        widths: code widths of single tensors, where rules leave them open; `detent.choose_widths` finds them.
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
        choices = replace(choices, hessians=_scores(hessians, stats))
    widths = _checked_widths(widths, placement, chip)
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
        widths=widths,
    )
    return _decide(graph, stats, chip, settings, placement, choices, decided, moments)


def _scores(hessians: object, stats: Statistics) -> HessianScores:
    """Scores in the bins of the statistics; of kernels alone if activations were not told apart by value.

    Raises:
        ConfigError: neither scores nor traces, or traces of another model or in wider bins.
    """
    if isinstance(hessians, HessianTraces):
        return hessians.scores(stats if hessians.has_bins else None)
    expect(hessians, HessianScores, "hessians", "detent.estimate_traces or detent.HessianScores")
    assert isinstance(hessians, HessianScores)
    return hessians


def _checked_widths(widths: Widths | None, placement: Placement, target: Target) -> Widths:
    """Widths that name owners of grids only, and that the target offers; those of kernels are for the search to check.

    Raises:
        ConfigError: others.
    """
    if widths is None:
        return Widths()
    expect(widths, Widths, "widths", "detent.choose_widths")
    owners = [name for name, point in placement.activations.items() if point.same_as is None]
    for kind, names, known in (("layer", widths.weights, placement.weights), ("value", widths.activations, owners)):
        for name in names:
            if name not in known:
                raise unknown_name(f"{kind} in `widths`", name, list(known))
    for value, bits in widths.activations.items():
        placement.activations[value].rule.choose_bits(bits, what="activations", target=target.name, where=value)
    return widths


@dataclass(frozen=True, kw_only=True)
class FurtherPasses:
    """What reads the data again after calibration.

    Args:
        moments: `plan` makes use of moments of the layers' inputs, for an option, a rule, or kernels of few bits.
        sequential: biases are to be corrected by `detent.correct_biases`.
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
    graph: Graph,
    plan: QuantPlan,
    stats: Statistics,
    rules: Sequence[Rule],
    *,
    moments: InputMoments | None = None,
    hessians: HessianScores | HessianTraces | None = None,
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
        hessians: as for `plan`, if the plan's options or the rules ask for the metric `"hmse"`.

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
    if hessians is not None:
        choices = replace(choices, hessians=_scores(hessians, stats))
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
    choices = choices.with_widths(decided.widths)
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
