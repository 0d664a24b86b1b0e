"""Shift-negative correction: a constant makes the output of SiLU and the like positive, so that no code is negative."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Final, TypedDict

import numpy as np
import numpy.typing as npt
from torch import fx

from detent.config import QuantizationConfig
from detent.errors import ConfigError
from detent.graph.graph import Graph, GraphNode
from detent.graph.placement import ActivationPoint, place
from detent.graph.roles import OPS
from detent.graph.shifts import UNSIGNED
from detent.kernels.histogram_search import Metric, search_histogram
from detent.kernels.histogram_shift import ShiftSearch, search_shift
from detent.records.statistics import Statistics, TensorStatistics
from detent.targets import Target
from detent.transforms.channel_paths import summarize
from detent.transforms.edits import finish, producer
from detent.transforms.observed import observed_value, require_statistics_of
from detent.transforms.shift_paths import ObstacleError, find_shift_path, shift_path

__all__ = ["read_by_negative_shift", "require_unsigned_codes", "shift_negative"]

_SHIFTED: Final = frozenset(("silu", "gelu", "hardswish", "mish", "elu", "celu", "selu", "prelu", "leaky_relu"))
"""Activations with small negative outputs."""

_GATES: Final = {("sigmoid",): "silu", ("hardsigmoid",): "hardswish", ("tanh", "softplus"): "mish"}
"""Operators of g, the last first, to the activation that x g(x) is."""


class _Known(TypedDict):
    """What both searches, with and without a shift, are told alike."""

    counts: npt.NDArray[np.int64]
    first_bin: int
    width: float
    minimum: float
    maximum: float
    zeros: float
    mean: float
    std: float
    metric: Metric
    p: float
    z_threshold: float
    min_threshold: float


@dataclass(frozen=True)
class _Candidate:
    """A value that might be shifted: its name, how it gets its grid, and the least value it can have."""

    name: str
    point: ActivationPoint
    limit: float


def shift_negative(graph: Graph, statistics: Statistics, target: Target, config: QuantizationConfig) -> Graph:
    """A new graph in which values with a short negative tail are shifted to be served by unsigned codes.

    For a value y >= -m of SiLU, GELU, Hardswish, Mish, ELU, CELU, SELU, PReLU or leaky ReLU, a signed grid spends half
    its codes on the tail. y + s needs no sign, so with s about m the same width has nearly twice the resolution. The
    operator that makes y adds s before it rounds. Readers take s back: a layer by b <- b - s sum W, a sum by a constant
    of its own; zero padding becomes padding with s. The float function stays the same.

    It is done where m <= `config.shift_negative_ratio` T, with T the threshold the search gives y and m the least value
    the activation can take, or the least observed if it has no limit; and where the best threshold and shift together,
    all shifts by whole steps tried, none included, give a smaller error than T.

    Args:
        graph: any captured network; other rewrites come before, `fold_forward` would undo this one.
        statistics: what calibration saw of this graph.
        target: decides which values have a grid, and of which kind.
        config: code width, metric and limits of the search, as for `detent.plan`.

    Raises:
        ConfigError: the statistics belong to another graph, or the target has no unsigned power-of-two or symmetric
            activations for any such value.
    """
    require_statistics_of(graph, statistics)
    candidates = _candidates(graph, target)
    _require_offer(candidates, target)
    shifted = graph.copy()
    done, rejected = [], {}
    for candidate in candidates:
        name = candidate.name
        seen = observed_value(shifted, statistics, shifted.find(name).node)
        if seen is not None and seen.minimum >= 0:
            continue
        try:
            found = _search(candidate, seen, target, config)
            if found.shift:
                shift_path(shifted, find_shift_path(shifted, shifted.find(name)), found.shift)
            else:
                # The tail is lost in the first step anyway: codes without sign serve best as they are.
                shifted.find(name).node.meta[UNSIGNED] = 0.0
        except ObstacleError as obstacle:
            rejected[name] = str(obstacle)
            continue
        finish(shifted)
        done.append(f"{name} (by {found.shift:.4g}, threshold {found.threshold:.4g})")
    summarize(shifted, "not shifted to unsigned codes", rejected)
    if done:
        shifted.notes.append(f"shifted to unsigned codes: {', '.join(done)}")
    return finish(shifted)


def require_unsigned_codes(graph: Graph, target: Target) -> None:
    """Refuse a target on which no value of the graph could be shifted, before anything is calibrated for it.

    Raises:
        ConfigError: there are values to shift, and the target has uniform or signed activations for all of them.
    """
    _require_offer(_candidates(graph, target), target)


def read_by_negative_shift(graph: Graph) -> Iterator[tuple[fx.Node, ...]]:
    """The values whose statistics `shift_negative` may read, each in a group of its own; a target may need fewer."""
    return ((item.node,) for item in graph.nodes() if _limit(graph, item) is not None)


def _candidates(graph: Graph, target: Target) -> list[_Candidate]:
    """The values with a grid whose operator is one of those that are shifted, in order of execution."""
    points = place(graph, target).activations
    found = []
    for item in graph.nodes():
        limit = _limit(graph, item) if item.name in points else None
        if limit is not None:
            found.append(_Candidate(item.name, points[item.name], limit))
    return found


def _limit(graph: Graph, item: GraphNode) -> float | None:
    """The least value of an activation that is shifted, also of one written as x g(x); None for other operators."""
    if item.op is None or not item.is_float:
        return None
    if item.op.name in _SHIFTED:
        return item.op.bounds[0]
    if item.kind != "mul" or len(item.data) != 2:
        return None
    for operand, gate in (item.data, item.data[::-1]):
        known = _GATES.get(_operators_between(graph, operand, gate))
        if known is not None:
            return OPS[known].bounds[0]
    return None


def _operators_between(graph: Graph, start: fx.Node, end: fx.Node) -> tuple[str, ...]:
    """Names of the one or two operators that lead from one value to another, the last first; empty if none do."""
    names: tuple[str, ...] = ()
    while end is not start:
        item = producer(graph, end)
        if item is None or item.op is None or not item.data or len(names) == 2:
            return ()
        names, end = (*names, item.op.name), item.data[0]
    return names


def _refusal(point: ActivationPoint) -> str | None:
    """What about the target's rule for a value keeps it from being shifted."""
    if point.rule.kind == "uniform":
        return "uniform activations, which fit any range without a shift"
    return "signed activations only" if point.rule.signed else None


def _require_offer(candidates: list[_Candidate], target: Target) -> None:
    refusals = [(candidate.name, _refusal(candidate.point)) for candidate in candidates]
    if refusals and all(reason for _, reason in refusals):
        name, reason = refusals[0]
        raise ConfigError(
            f"`shift_negative` is on, and target {target.name!r} has {reason}",
            where=name,
            remedy="choose a target whose activations are power_of_two or symmetric, and unsigned or of free sign, or "
            "leave `shift_negative` off",
        )


def _search(
    candidate: _Candidate, seen: TensorStatistics | None, target: Target, config: QuantizationConfig
) -> ShiftSearch:
    """The best threshold and shift of a value.

    Raises:
        ObstacleError: none is better than no shift, or a rule forbids it.
    """
    point = candidate.point
    refusal = _refusal(point)
    if refusal is not None:
        raise ObstacleError(f"the target has {refusal}")
    bits = point.rule.choose_bits(config.activation_bits, what="activations", target=target.name)
    if point.same_as is not None or len(point.members) > 1 or point.op_rule.fixed_output(bits) is not None:
        raise ObstacleError("it shares its grid with other values, or the target prescribes it")
    if seen is None:
        raise ObstacleError("it was not observed")
    kind, known = point.rule.kind, _known(seen, config)
    (plain,) = search_histogram(**known, bits=[bits], grid=kind, signed=point.rule.signed)
    least = -seen.minimum if candidate.limit == -inf else -candidate.limit
    if least > config.shift_negative_ratio * plain.threshold:
        raise ObstacleError(f"its negative tail is more than {config.shift_negative_ratio:g} of its threshold")
    assert kind != "uniform"
    found = search_shift(**known, bits=bits, grid=kind)
    if not found.error < plain.error:
        raise ObstacleError("no shift makes its error smaller")
    return found


def _known(seen: TensorStatistics, config: QuantizationConfig) -> _Known:
    assert config.activation_metric != "moving_maximum"  # a configuration cannot have both
    return _Known(
        counts=seen.counts,
        first_bin=seen.first_bin,
        width=seen.width,
        minimum=seen.minimum,
        maximum=seen.maximum,
        zeros=seen.zeros,
        mean=seen.mean,
        std=seen.std,
        metric=config.activation_metric,
        p=config.p,
        z_threshold=config.z_threshold,
        min_threshold=config.min_threshold,
    )
