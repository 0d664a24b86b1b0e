"""Pareto fronts: the best widths over a range of budgets, from one scoring."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detent._registry import unknown_name
from detent.config import Budget, MixedPrecisionConfig, QuantizationConfig
from detent.edit import Rule
from detent.errors import ConfigError, InfeasibleBudgetError
from detent.graph import Graph
from detent.mixed_precision import LatencyTable
from detent.mixing import distribute, prepare, readable_twice
from detent.quantized import QuantizedModel, assemble
from detent.records.front import ParetoFront, ParetoPoint
from detent.records.moments import InputMoments
from detent.records.sensitivity import SensitivityTable
from detent.records.statistics import Statistics
from detent.records.widths import Widths
from detent.scoring import Request
from detent.targets import Target

__all__ = ["pareto"]

_LIMITS = ("100%", "87.5%", "75%", "62.5%", "50%", "43.75%", "37.5%", "31.25%", "25%")


def pareto(
    graph: Graph,
    stats: Statistics,
    data: Any,
    resource: str = "weights",
    limits: Sequence[float | str] = _LIMITS,
    *,
    evaluate: Callable[[QuantizedModel], float] | None = None,
    target: str | Path | Target = "default",
    config: QuantizationConfig | Mapping[str, Any] | None = None,
    mixed_precision: MixedPrecisionConfig | Mapping[str, Any] | None = None,
    rules: Sequence[Rule] = (),
    moments: InputMoments | None = None,
    table: SensitivityTable | None = None,
    latency: LatencyTable | str | Path | None = None,
    progress: bool = True,
    **options: Any,
) -> ParetoFront:
    """The best widths within each of several limits of a resource; widths are scored once.

    Args:
        graph: the captured network.
        stats: what calibration saw of it.
        data: calibration batches in any form `detent.calibrate` takes.
        resource: what is limited: `weights`, `activations`, `total`, `bit_operations` or `latency`.
        limits: in numbers or in per cent of 8 bits, as in `detent.Budget`; those that nothing keeps are named.
        evaluate: measures a quantized model, e.g. its accuracy on held-out data; None predicts only.
        target: name of a built-in target or path of a target file.
        config: options; single ones can be given by keyword and take precedence.
        mixed_precision: options of scoring and solving.
        rules: what to decide otherwise for some tensors; a width they ask for is fixed.
        moments: what `detent.collect_moments` saw, for options that need it.
        table: scores of this graph, made by `score` with the same options; None makes them.
        latency: measured times, or the path of a JSON file of them, for `resource="latency"`.
        progress: show progress on a terminal.
        **options: fields of `QuantizationConfig`.

    Raises:
        ConfigError: an unknown resource, no limits, or as `choose_widths`.
    """
    if resource not in Budget.model_fields:
        raise unknown_name("resource", resource, list(Budget.model_fields))
    if isinstance(limits, str) or not limits:
        raise ConfigError("`limits` must be a list of one limit or more", remedy='give e.g. ["75%", "50%"]')
    budgets = [Budget(**{resource: limit}) for limit in limits]
    request = Request.of(
        graph,
        stats,
        target,
        QuantizationConfig.resolve(config, options),
        mixed_precision,
        rules=rules,
        moments=moments,
        progress=progress,
        budget=budgets[0],
        latency=latency,
    )
    data = readable_twice(request, data)
    scored = prepare(request, data, table)
    at_8_bits = scored.model.figures(8, 8)
    ordered = sorted(zip(budgets, limits, strict=True), key=lambda entry: -entry[0].limits(at_8_bits)[resource])
    points: list[ParetoPoint] = []
    infeasible: dict[str, str] = {}
    start: Widths | None = None
    for budget, limit in ordered:
        try:
            found = distribute(scored, budget, data, start)
        except InfeasibleBudgetError as error:
            infeasible[str(limit)] = error.what
            continue
        start, measured = found.widths, None
        if evaluate is not None:
            measured = float(evaluate(assemble(graph, request.plan(found.widths))))
        points.append(ParetoPoint(limit=limit, amount=found.use[resource], distribution=found, measured=measured))
    return ParetoFront(resource=resource, points=tuple(points), infeasible=infeasible)
