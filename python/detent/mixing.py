"""Mixed precision: the distribution of widths under a budget. Comes before planning."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from detent.candidate_widths import check_times, checked_budget, widths_in
from detent.config import Budget, MixedPrecisionConfig, QuantizationConfig
from detent.corrections import output_error
from detent.corrections.output import Outputs, Stepped
from detent.edit import Rule
from detent.errors import ConfigError, InfeasibleBudgetError
from detent.graph import Graph
from detent.graph.placement import Placement
from detent.mixed_precision import (
    LatencyTable,
    Problem,
    ResourceModel,
    Solution,
    assignment_of,
    formulate,
    overwritten,
    raise_for_free,
    resource_model,
    resource_of,
    solution_of,
    solve,
    widths_of,
    without_others,
)
from detent.quantized import assemble
from detent.records.distribution import Distribution, Evaluated
from detent.records.moments import InputMoments
from detent.records.plan import QuantPlan
from detent.records.sensitivity import SensitivityTable
from detent.records.statistics import Statistics
from detent.records.widths import Widths
from detent.scoring import Request, candidate_plans, checked_table, make_table
from detent.sensitivity import Candidates
from detent.statistics import first_samples
from detent.targets import Target

__all__ = ["Scored", "choose_widths", "distribute", "prepare", "readable_twice"]

Batches = Sequence[Sequence[Any]]


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
    latency: LatencyTable | str | Path | None = None,
    checkpoint: str | Path | None = None,
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
        latency: measured times, or the path of a JSON file of them, for a budget with `latency`.
        checkpoint: file for batches whose scores are done, see `score`.
        progress: show progress on a terminal.
        **options: fields of `QuantizationConfig`.

    Raises:
        InfeasibleBudgetError: no distribution fits; says how much is needed and what holds it up.
        ConfigError: an empty budget, one without any tensor that has a choice, or as `score`.
    """
    limits = checked_budget(budget)
    if limits is None:
        raise ConfigError("there is no budget", remedy='give a limit, e.g. detent.Budget(weights="50%")')
    if table is not None and checkpoint is not None:
        raise ConfigError("`checkpoint` is for scoring, and the scores are given", remedy="leave out one of them")
    request = Request.of(
        graph,
        stats,
        target,
        QuantizationConfig.resolve(config, options),
        mixed_precision,
        rules=rules,
        moments=moments,
        progress=progress,
        budget=limits,
        latency=latency,
    )
    data = readable_twice(request, data)
    return distribute(prepare(request, data, table, checkpoint), limits, data)


def readable_twice(request: Request, data: Any) -> Any:
    """Data that scoring and evaluation can read one after the other: of a one-shot iterator, what these need."""
    setting = request.setting
    return (
        first_samples(setting.graph, data, 2 * setting.options.samples, parts=1) if isinstance(data, Iterator) else data
    )


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A network whose widths can be chosen under any budget.

    Args:
        request: what was asked for.
        plans: in which tensors take their candidate widths in turn.
        table: the scores.
        model: what resources follow from.
        settled: widths of tensors without candidates.
        overwritten: how many tensors with a choice the user gave a width.
        seconds: spent so far, by stage.
    """

    request: Request
    plans: Sequence[QuantPlan]
    table: SensitivityTable
    model: ResourceModel
    settled: Widths
    overwritten: int
    seconds: Mapping[str, float]


def prepare(
    request: Request, data: Any, table: SensitivityTable | None, checkpoint: str | Path | None = None
) -> Scored:
    """Everything that does not depend on the budget's numbers.

    Args:
        request: what was asked for.
        data: calibration batches, for scores.
        table: scores made before; None makes them.
        checkpoint: file for batches whose scores are done.

    Raises:
        ConfigError: no tensor has a choice, an overwrite that does not fit, or the scores are of another model, other
            tensors or other widths.
    """
    setting, clock = request.setting, _Clock()
    check_times(setting, *widths_in(setting))
    with clock.stage("plans"):
        plans = candidate_plans(request)
    given = setting.options.configuration_overwrite
    if given is not None and table is None:
        # A mistake should not cost a scoring.
        overwritten(Candidates.of(setting.graph, setting.placement, plans).slots, given)
    with clock.stage("scores"):
        table = make_table(request, plans, data, checkpoint) if table is None else checked_table(table, setting, plans)
    model = resource_model(
        setting.graph, setting.placement, setting.target, latency=setting.latency, order=setting.options.order
    )
    chosen = [None] * len(table) if given is None else overwritten(table.tensors, given)
    return Scored(
        request=request,
        plans=plans,
        table=without_others(table, chosen),
        model=model,
        settled=_settled(table, plans[0]),
        overwritten=sum(at is not None and len(one.bits) > 1 for one, at in zip(table, chosen, strict=True)),
        seconds=clock.seconds,
    )


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
    options, table, clock = scored.request.setting.options, scored.table, _Clock(dict(scored.seconds))
    with clock.stage("solver"):
        numbers = budget.limits(scored.model.figures(8, 8))
        problem = formulate(table, scored.model, numbers, scored.settled)
        begun = None if start is None else assignment_of(table, start)
        try:
            solutions = _solutions(problem, options, start=begun)
        except InfeasibleBudgetError as error:
            raise _explained(error, scored.overwritten) from None
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
        overwritten=scored.overwritten,
        remarks=tuple(note for note in scored.model.notes if note not in scored.model.network.notes),
    )


def _explained(error: InfeasibleBudgetError, overwritten: int) -> InfeasibleBudgetError:
    """The error that also says how many widths were given."""
    if not overwritten:
        return error
    return InfeasibleBudgetError(
        f"{error.what}; the widths of {overwritten} tensors are those of `configuration_overwrite`",
        needed=error.needed,
        allowed=error.allowed,
        where=error.where,
        remedy="raise the limits named, or overwrite with narrower widths",
    )


def _solutions(
    problem: Problem, options: MixedPrecisionConfig, start: Sequence[int] | None
) -> list[tuple[Solution, bool]]:
    """The distributions to choose among, and whether interactions are in their objective.

    Those of both objectives are among them if more than one is run: interactions of many tensors along few directions
    can promise more than they keep, which samples that were not scored then tell. All are raised where the limits leave
    room: those that differ by nothing else become one.
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
            raised = dict.fromkeys(raise_for_free(problem, one.assignment) for one in solutions)
            bound = solutions[0].bound
            solutions = [solution_of(problem, one, bound, interactions) for one in raised]
            solutions.sort(key=lambda one: (one.objective, one.assignment))
            known = {solution.assignment for solution, _ in found}
            found += [(solution, interactions) for solution in solutions if solution.assignment not in known]
    return found


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
    setting = scored.request.setting
    graph, samples = setting.graph, setting.options.samples
    # Twice as many are read, so that half of them were not scored; all of them if there are no more.
    batches = first_samples(graph, data, 2 * samples, parts=2)
    held_out = batches[len(batches) // 2 :]
    wanted = _outputs(graph, held_out)
    found = []
    for place, (solution, _) in enumerate(solutions):
        widths = widths_of(scored.table, solution.assignment, scored.settled)
        module = assemble(graph, _composed(setting.placement, scored.plans, widths)).graph_module
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
