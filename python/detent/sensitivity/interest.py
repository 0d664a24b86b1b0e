"""Which values measured scores look at, and how much each counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from detent._registry import unknown_name
from detent.config.mixed_precision import Weighting
from detent.errors import CalibrationError, ConfigError
from detent.graph import Graph, GraphNode

__all__ = ["Interest", "choose"]

_OPERATIONS: Final = frozenset({"conv", "conv_transposed", "linear", "sigmoid", "softmax", "add", "cat"})
"""Names or kinds of operations whose values tell how far an error has come."""
_SPREAD: Final = 0.1
"""Distance at which the exponential weight is 1 - 1/e."""

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interest:
    """The values that are compared, and what their distances add up to.

    Args:
        items: all of them.
        points: places in `items` of the points of interest.
        outputs: places in `items` of the outputs.
        weighting: how points count against each other; None if only outputs are measured.
        weights: of the points, for `"hessian"`.
    """

    items: tuple[GraphNode, ...]
    points: tuple[int, ...]
    outputs: tuple[int, ...]
    weighting: Weighting | None
    weights: Doubles

    def factors(self, distances: Doubles, sizes: Doubles) -> Doubles:
        """What the distance of each item is multiplied by in a score, `[widths, items]`.

        Args:
            distances: averages over all samples `[widths, items]`.
            sizes: what they are relative to, averages over all samples `[items]`.

        Raises:
            CalibrationError: everything that is compared is zero for all samples.
        """
        factors = np.zeros(distances.shape)
        known = sizes > 0
        if not known.any():
            raise CalibrationError("the outputs are zero for all samples", remedy="score on other samples")
        each = np.divide(1.0, sizes, out=np.zeros(len(sizes)), where=known)
        if self.weighting is None:
            # As for probes: outputs that are not zero count alike.
            factors += each / known.sum()
            return factors
        points, outputs = list(self.points), list(self.outputs)
        if points:
            weights = self._weights((distances * each)[:, points])
            total = weights.sum(axis=1, keepdims=True)
            factors[:, points] += np.divide(weights, total, out=np.zeros(weights.shape), where=total > 0) * each[points]
        if outputs:
            factors[:, outputs] += each[outputs] / len(outputs)
        return factors

    def _weights(self, distances: Doubles) -> Doubles:
        if self.weighting == "exponential":
            weights: Doubles = -np.expm1(-distances / _SPREAD)
            return weights
        if self.weighting == "last_layer":
            last = np.zeros(distances.shape)
            last[:, -1] = 1
            return last
        return np.broadcast_to(self.weights, distances.shape)

    def __str__(self) -> str:
        if self.weighting is None:
            return "outputs"
        return f"{len(self.points)} points ({self.weighting}) and outputs"


def choose(
    graph: Graph,
    points: Sequence[str] | Literal["outputs"] | None,
    weighting: Weighting,
    weights: Mapping[str, float] | None,
) -> Interest:
    """The values to compare.

    Args:
        graph: the float network.
        points: names of values; None for those of the usual operations but for outputs, `"outputs"` for none.
        weighting: how points count against each other.
        weights: of every point, by name, for `"hessian"`.

    Raises:
        ConfigError: an unknown name, a value that cannot be compared, weights that do not fit, or nothing to compare.
    """
    if weighting not in get_args(Weighting):
        raise unknown_name("weighting", weighting, get_args(Weighting))
    ends = set(graph.outputs())
    comparable = [item for item in graph.nodes() if item.is_float and item.batch is not None]
    outputs = [item for item in comparable if item.node in ends]
    if isinstance(points, str):
        if points != "outputs":
            raise ConfigError(f'`points` must be names of values, "outputs" or None, got {points!r}')
        chosen: list[GraphNode] = []
        if weighting != "average" or weights is not None:
            raise ConfigError("a weighting is for points of interest, and only outputs are measured")
    elif points is None:
        chosen = [item for item in comparable if item.node not in ends and _usual(item)]
    else:
        named = {_named(graph, name, comparable) for name in points}
        chosen = [item for item in comparable if item in named]
        if not chosen:
            raise ConfigError("`points` names no value", remedy='give names, or "outputs"')
    items = tuple(item for item in comparable if item in chosen or item in outputs)
    if not items:
        raise ConfigError(
            "no output of the network is a floating-point value that depends on the samples",
            remedy="return what comes before the argmax or rounding, or give `points`",
        )
    return Interest(
        items,
        tuple(items.index(item) for item in chosen),
        tuple(items.index(item) for item in outputs),
        None if isinstance(points, str) else weighting,
        _checked_weights(weighting, weights, [item.name for item in chosen]),
    )


def _named(graph: Graph, name: str, comparable: Sequence[GraphNode]) -> GraphNode:
    item = graph.find(name)
    if item not in comparable:
        raise ConfigError("this is no floating-point value that depends on the samples", where=name)
    return item


def _usual(item: GraphNode) -> bool:
    return item.op is not None and (item.op.name in _OPERATIONS or item.op.kind in _OPERATIONS)


def _checked_weights(weighting: Weighting, weights: Mapping[str, float] | None, names: Sequence[str]) -> Doubles:
    """Weights of the points, in their order; ones if none are needed."""
    if (weighting == "hessian") != (weights is not None):
        raise ConfigError(
            'weighting "hessian" needs `weights`' if weights is None else '`weights` are for weighting "hessian" only'
        )
    if weights is None:
        return np.ones(len(names))
    missing = [name for name in names if name not in weights]
    if missing:
        raise ConfigError(f"`weights` has none for {', '.join(missing)}")
    for name in weights:
        if name not in names:
            raise unknown_name("point of interest in `weights`", name, names)
    found = np.array([weights[name] for name in names], np.float64)
    if not bool(np.isfinite(found).all()) or bool((found < 0).any()) or not found.any():
        raise ConfigError("`weights` must be finite, not negative, and not all zero")
    return found
