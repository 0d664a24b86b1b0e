"""Mixed precision: scores of candidate widths, and their distribution under a budget. Comes before planning."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from detent._arguments import expect, fingerprint_of
from detent.candidate_widths import Setting, checked_budget, setting_of, widths_in
from detent.config import Budget, MixedPrecisionConfig, QuantizationConfig
from detent.corrections import output_error
from detent.corrections.output import Outputs, Stepped
from detent.edit import Rule
from detent.errors import ConfigError
from detent.graph import Graph
from detent.graph.placement import Placement
from detent.mixed_precision import (
    Problem,
    ResourceModel,
    Solution,
    assignment_of,
    formulate,
    resource_model,
    resource_of,
    solve,
    widths_of,
)
from detent.planning import plan
from detent.quantized import assemble
from detent.records.distribution import Distribution, Evaluated
from detent.records.moments import InputMoments
from detent.records.plan import QuantPlan
from detent.records.sensitivity import SensitivityTable
from detent.records.statistics import Statistics
from detent.records.widths import Widths
from detent.sensitivity import Candidates, score_by_measuring, score_by_probes
from detent.statistics import first_samples, progress_bar
from detent.targets import Target

__all__ = ["Scored", "choose_widths", "distribute", "prepare", "score"]

Batches = Sequence[Sequence[Any]]


def score(
    graph: Graph,
    stats: Statistics,
    data: Any,
    *,
    target: str | Path | Target = "default",
    config: QuantizationConfig | Mapping[str, Any] | None = None,
    mixed_precision: MixedPrecisionConfig | Mapping[str, Any] | None = None,
    rules: Sequence[Rule] = (),
    moments: InputMoments | None = None,
    progress: bool = True,
    **options: Any,
) -> SensitivityTable:
    """Score every width that the target offers for every tensor: what it does to the outputs of the network.

    Args:
        graph: the captured network.
        stats: what calibration saw of it.
        data: calibration batches in any form `detent.calibrate` takes.
        target: name of a built-in target or path of a target file.
        config: options; single ones can be given by keyword and take precedence.
        mixed_precision: options of scoring: samples, probes, loss, candidate widths.
        rules: what to decide otherwise for some tensors; a width they ask for is the only candidate.
        moments: what `detent.collect_moments` saw, for options that need it.
        progress: show progress on a terminal.
        **options: fields of `QuantizationConfig`.

    Raises:
        ConfigError: no tensor has a choice, no output carries a gradient, or as `detent.plan`.
        CalibrationError: the data do not fit the model, or a gradient is not finite.
    """
    setting = setting_of(graph, target, QuantizationConfig.resolve(config, options), mixed_precision, rules)
    plans = _candidate_plans(setting, stats, moments)
    return _score(setting, plans, data, progress=progress)


def choose_widths(
    graph: Graph,
    stats: Statistics,
    data: Any,
    budget: Budget | Mapping[str, Any],
    *,
    target: str | Path | Target = "default",
    config: QuantizationConfig | Mapping[str, Any] | None = None,
    mixed_precision: MixedPrecisionConfig | Mapping[str, Any] | None = None,
    rules: Sequence[Rule] = (),
    moments: InputMoments | None = None,
    table: SensitivityTable | None = None,
    latency: Any = None,
    progress: bool = True,
    **options: Any,
) -> Distribution:
    """The widths that cost the outputs least within a budget; give its `widths` to `detent.plan`.

    Args:
        graph: the captured network.
        stats: what calibration saw of it.
        data: calibration batches in any form `detent.calibrate` takes.
        budget: limits on what the network needs, in numbers or in per cent of 8 bits.
        target: name of a built-in target or path of a target file.
        config: options; single ones can be given by keyword and take precedence.
        mixed_precision: options of scoring and solving.
        rules: what to decide otherwise for some tensors; a width they ask for is fixed.
        moments: what `detent.collect_moments` saw, for options that need it.
        table: scores of this graph, made by `score` with the same options; None makes them.
        latency: measured times, for a budget with `latency`.
        progress: show progress on a terminal.
        **options: fields of `QuantizationConfig`.

    Raises:
        InfeasibleBudgetError: no distribution fits; says how much is needed and what holds it up.
        ConfigError: an empty budget, one without any tensor that has a choice, or as `score`.
    """
    limits = checked_budget(budget)
    if limits is None:
        raise ConfigError("there is no budget", remedy='give a limit, e.g. detent.Budget(weights="50%")')
    setting = setting_of(graph, target, QuantizationConfig.resolve(config, options), mixed_precision, rules, limits)
    if "latency" in limits.limited and latency is None:
        raise ConfigError("latency is limited, but nothing is known about it", remedy="pass `latency`, measured times")
    data = readable_twice(setting, data)
    scored = prepare(setting, stats, data, moments, table, latency, progress=progress)
    return distribute(scored, limits, data)


def readable_twice(setting: Setting, data: Any) -> Any:
    """Data that scoring and evaluation can read one after the other: of a one-shot iterator, what these need."""
    return (
        first_samples(setting.graph, data, 2 * setting.options.samples, parts=1) if isinstance(data, Iterator) else data
    )


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A network whose widths can be chosen under any budget.

    Args:
        setting: what was asked for.
        plans: in which tensors take their candidate widths in turn.
        table: the scores.
        model: what resources follow from.
        settled: widths of tensors without candidates.
        seconds: spent so far, by stage.
    """

    setting: Setting
    plans: Sequence[QuantPlan]
    table: SensitivityTable
    model: ResourceModel
    settled: Widths
    seconds: Mapping[str, float]


def prepare(
    setting: Setting,
    stats: Statistics,
    data: Any,
    moments: InputMoments | None,
    table: SensitivityTable | None,
    latency: Any,
    *,
    progress: bool,
) -> Scored:
    """Everything that does not depend on the budget's numbers.

    Raises:
        ConfigError: no tensor has a choice, or the scores are of another model, other tensors or other widths.
    """
    clock = _Clock()
    with clock.stage("plans"):
        plans = _candidate_plans(setting, stats, moments)
    with clock.stage("scores"):
        table = _score(setting, plans, data, progress=progress) if table is None else _checked(table, setting, plans)
    model = resource_model(
        setting.graph, setting.placement, setting.target, latency=latency, order=setting.options.order
    )
    settled = _settled(table, plans[0])
    return Scored(setting=setting, plans=plans, table=table, model=model, settled=settled, seconds=clock.seconds)


def distribute(scored: Scored, budget: Budget, data: Any, start: Widths | None = None) -> Distribution:
    """The widths that cost the outputs least within a budget.

    Args:
        scored: the network.
        budget: the limits.
        data: calibration batches, for the distributions that are run.
        start: widths that the search may begin with, of a neighbouring budget for instance.

    Raises:
        InfeasibleBudgetError: none fit.
    """
    options, table, clock = scored.setting.options, scored.table, _Clock(dict(scored.seconds))
    with clock.stage("solver"):
        numbers = budget.limits(scored.model.figures(8, 8))
        problem = formulate(table, scored.model, numbers, scored.settled)
        solutions = _solutions(problem, options, start=None if start is None else assignment_of(table, start))
    with clock.stage("evaluation"):
        evaluated = _evaluate(scored, data, solutions) if len(solutions) > 1 else []
    best, joint = solutions[evaluated[0][0] if evaluated else 0]
    use = {name: max(best.use[row.name] for row in problem.rows if resource_of(row.name) == name) for name in numbers}
    return Distribution(
        widths=widths_of(table, best.assignment, scored.settled),
        objective=best.objective,
        bound=best.bound,
        gap=best.gap,
        limits=numbers,
        use=use,
        binding=tuple(dict.fromkeys(map(resource_of, best.binding))),
        interactions=joint,
        evaluated=tuple(one for _, one in evaluated),
        seconds=clock.seconds,
    )


def _solutions(
    problem: Problem, options: MixedPrecisionConfig, start: Sequence[int] | None
) -> list[tuple[Solution, bool]]:
    """The distributions to choose among, and whether interactions are in their objective.

    Those of both objectives are among them if more than one is run: interactions of many tensors along few directions
    can promise more than they keep, which samples that were not scored then tell.
    """
    found: list[tuple[Solution, bool]] = []
    wanted, joint = max(1, options.evaluated), options.interactions and problem.factors is not None
    shares = {True: -(-wanted // 2) if joint else 0, False: wanted // 2 if joint else wanted}
    for interactions, distinct in shares.items():
        if distinct:
            solutions = solve(
                problem,
                interactions=interactions,
                gap=options.gap,
                time_limit_s=options.time_limit_s,
                distinct=distinct,
                start=start,
            )
            known = {solution.assignment for solution, _ in found}
            found += [(solution, interactions) for solution in solutions if solution.assignment not in known]
    return found


def _candidate_plans(setting: Setting, stats: Statistics, moments: InputMoments | None) -> list[QuantPlan]:
    """Plans in which the tensors take their candidate widths in turn, the widest first."""
    fingerprint_of(setting.graph, stats)
    kernels, values = widths_in(setting)
    rounds = max(map(len, [*kernels.values(), *values.values()]))

    def turn(table: Mapping[str, tuple[int, ...]], number: int) -> dict[str, int]:
        return {name: widths[min(number, len(widths) - 1)] for name, widths in table.items()}

    return [
        plan(
            setting.graph,
            stats,
            target=setting.named,
            config=setting.config,
            rules=setting.rules,
            moments=moments,
            widths=Widths(weights=turn(kernels, number), activations=turn(values, number)),
        )
        for number in range(rounds)
    ]


def _score(setting: Setting, plans: Sequence[QuantPlan], data: Any, *, progress: bool) -> SensitivityTable:
    options = setting.options
    graph, placement = setting.graph, setting.placement
    batches = first_samples(graph, data, options.samples, parts=2)
    with progress_bar("scoring widths", "batches", len(batches), wanted=progress) as show:
        if options.scores == "measured":
            return score_by_measuring(graph, placement, plans, batches, points="outputs", show=show)
        return score_by_probes(
            graph,
            placement,
            plans,
            batches,
            probes=options.probes,
            loss=options.loss,
            seed=options.seed,
            show=show,
        )


def _checked(table: SensitivityTable, setting: Setting, plans: Sequence[QuantPlan]) -> SensitivityTable:
    """A table that is given, with the candidates of these plans only."""
    expect(table, SensitivityTable, "table", "detent.score")
    if table.fingerprint != setting.graph.fingerprint():
        raise ConfigError("the scores are of another model", remedy="score this model with detent.score")
    wanted = {(slot.role, slot.name): slot for slot in Candidates.of(setting.graph, setting.placement, plans).slots}
    kept = []
    for tensor in table:
        slot = wanted.pop((tensor.role, tensor.name), None)
        places = [] if slot is None else [place for place, bits in enumerate(tensor.bits) if bits in slot.bits]
        if slot is None or slot.members != tensor.members or not places:
            raise _of_others(tensor.name)
        parts = {part: getattr(tensor, part)[places] for part in ("scores", "errors", "factors")}
        kept.append(replace(tensor, bits=tuple(tensor.bits[place] for place in places), **parts))
    if wanted:
        raise _of_others(next(iter(wanted.values())).name)
    return replace(table, tensors=tuple(kept))


def _of_others(name: str) -> ConfigError:
    remedy = "score with the same target, rules and options"
    return ConfigError("the scores are of other tensors or widths", where=name, remedy=remedy)


def _settled(table: SensitivityTable, widest: QuantPlan) -> Widths:
    """Widths of the tensors without candidates: those of the first plan."""
    known = {(tensor.role, member) for tensor in table for member in tensor.members}
    weights = {
        layer: entry.grid.bits
        for layer, entry in widest.weights.items()
        if entry.grid is not None and ("weights", layer) not in known
    }
    values = {
        value: entry.grid.bits
        for value, entry in widest.activations.items()
        if entry.grid is not None and ("activations", value) not in known
    }
    return Widths(weights=weights, activations=values)


def _evaluate(scored: Scored, data: Any, solutions: Sequence[tuple[Solution, bool]]) -> list[tuple[int, Evaluated]]:
    """Run distributions on samples behind those that were scored, the best first, with their place."""
    graph, samples = scored.setting.graph, scored.setting.options.samples
    # Twice as many are read, so that half of them were not scored; all of them if there are no more.
    batches = first_samples(graph, data, 2 * samples, parts=2)
    held_out = batches[len(batches) // 2 :]
    wanted = _outputs(graph, held_out)
    found = []
    for place, (solution, _) in enumerate(solutions):
        widths = widths_of(scored.table, solution.assignment, scored.settled)
        module = assemble(graph, _composed(scored.setting.placement, scored.plans, widths)).graph_module
        stepped = Stepped(module)
        error = output_error([(ours, stepped.outputs(batch)) for ours, batch in zip(wanted, held_out, strict=True)])
        found.append((place, Evaluated(widths=widths, predicted=solution.objective, measured=error)))
    return sorted(found, key=lambda entry: (entry[1].measured, entry[0]))


def _outputs(graph: Graph, batches: Batches) -> list[Outputs]:
    stepped = Stepped(graph.module)
    return [stepped.outputs(batch) for batch in batches]


def _composed(placement: Placement, plans: Sequence[QuantPlan], widths: Widths) -> QuantPlan:
    """A plan whose tensors are those of the plan that has their width."""

    def with_bits(table: str, name: str, bits: int) -> QuantPlan:
        for one in plans:
            entry = getattr(one, table)[name]
            if entry.grid is not None and entry.grid.bits == bits:
                return one
        return plans[0]

    base = plans[0]
    sources = {layer: with_bits("weights", layer, bits) for layer, bits in widths.weights.items()}
    weights = {layer: sources.get(layer, base).weights[layer] for layer in base.weights}
    activations = {
        value: (
            with_bits("activations", value, widths.activations[value]) if value in widths.activations else base
        ).activations[value]
        for value in base.activations
    }
    kernels = {user: layer for layer, point in placement.weights.items() for user in point.users}
    corrections = {}
    for name in dict.fromkeys(layer for one in plans for layer in one.bias_corrections):
        source = sources.get(kernels.get(name, name), base)
        if name in source.bias_corrections:
            corrections[name] = source.bias_corrections[name]
    return replace(base, weights=weights, activations=activations, bias_corrections=corrections, widths=widths)


@dataclass
class _Clock:
    """Seconds of each stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = time.perf_counter() - start
