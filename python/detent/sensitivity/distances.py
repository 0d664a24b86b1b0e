"""How far a changed value is from the float one, sample by sample.

Squared differences count relative to the value's energy over all samples. Other distances are numbers of their own for
each sample: the divergence of distributions, and (1 - cosine) / 2, which is 0 for the same direction and 1 for the
opposite one. Sums are float64, in an order that depends on shapes only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Final, get_args

import numpy as np
import numpy.typing as npt
import torch

from detent._registry import unknown_name
from detent.config.mixed_precision import Distance
from detent.errors import ConfigError
from detent.graph import GraphNode
from detent.graph.roles import OPS, argument
from detent.kernels.comparison import distances as squared_distances
from detent.kernels.perturbation import dots

__all__ = ["USUAL_DISTANCES", "Metric", "Yardstick", "checked_distances", "yardstick"]

Metric = Callable[[torch.Tensor, torch.Tensor], float]
"""From a value of the float network and its changed form, for a whole batch, to how far they are apart."""

USUAL_DISTANCES: Final[Mapping[str, Distance]] = {"softmax": "kl", "sigmoid": "cosine", "linear": "cosine"}
"""Operations whose values are not compared by squared differences."""

_LEAST: Final = 1e-6
"""Probabilities below it count as this: rounding may make zeros of them."""

Doubles = npt.NDArray[np.float64]


class Yardstick:
    """Measures one value. Where samples are mixed, what all have together stands at the first.

    Args:
        item: the value.
        distance: how; a callable is asked once for each batch.
        axis: the axis along which probabilities add up to 1, for `"kl"`.
    """

    def __init__(self, item: GraphNode, distance: Distance | Metric, axis: int | None = None) -> None:
        self.item = item
        self.distance = distance
        self._axis = axis

    def size(self, value: torch.Tensor, samples: int) -> Doubles:
        """What distances are relative to, `[samples]`: the value's energy, or 1."""
        if self.distance != "mse":
            return np.ones(samples)
        rows = _by_sample(self.item, value)
        return self._placed(dots(rows, rows), samples, mean=False)

    def apart(self, wanted: torch.Tensor, found: torch.Tensor, samples: int) -> Doubles:
        """How far the changed value is from the float one, `[samples]`.

        Raises:
            ConfigError: a metric of the user's returned something else than a number from 0.
        """
        if callable(self.distance):
            return np.full(samples, self._asked(self.distance(wanted, found)))
        if wanted.numel() == 0:
            return np.zeros(samples)
        if self.distance == "kl":
            assert self._axis is not None
            rows = _by_sample(self.item, _divergence(wanted, found, self._axis))
            return self._placed(rows.reshape(len(rows), -1).mean(dim=1, dtype=torch.float64).numpy(), samples)
        a, b = _by_sample(self.item, wanted), _by_sample(self.item, found)
        if a.stride() != b.stride():
            b = torch.empty_like(a).copy_(b)
        if self.distance == "mse":
            squares = squared_distances(a, b, np.zeros(len(a), np.float32), axis=0)[0]
            return self._placed(squares, samples, mean=False)
        return self._placed(_angle(a, b), samples)

    def _placed(self, rows: Doubles, samples: int, *, mean: bool = True) -> Doubles:
        if len(rows) == samples:
            return rows
        placed = np.zeros(samples)
        placed[0] = rows.sum() * (samples if mean else 1)
        return placed

    def _asked(self, answer: object) -> float:
        if isinstance(answer, torch.Tensor) and answer.dim() == 0:
            answer = answer.item()
        if isinstance(answer, bool) or not isinstance(answer, Real) or not 0 <= float(answer) < np.inf:
            raise ConfigError(
                f"the metric must return a finite number from 0, it returned {answer!r}", where=self.item.name
            )
        return float(answer)


def yardstick(item: GraphNode, distances: Mapping[str, Distance], metric: Metric | None) -> Yardstick:
    """What measures a value: the metric if there is one, else the distance of its operation, by name or kind."""
    if metric is not None:
        return Yardstick(item, metric)
    words = () if item.op is None else (item.op.name, item.op.kind)
    named: list[Distance] = [distances[word] for word in words if word in distances]
    distance = named[0] if named else "mse"
    if distance != "kl":
        return Yardstick(item, distance)
    # What is no softmax has no axis along which it adds up to 1.
    known = item.op is not None and item.op.name == "softmax"
    return Yardstick(item, "kl", int(argument(item.node, "dim"))) if known else Yardstick(item, "mse")


def checked_distances(distances: Mapping[str, Distance] | None) -> Mapping[str, Distance]:
    """The distances to use by name or kind of operation.

    Raises:
        ConfigError: an operation or a distance that is not known.
    """
    if distances is None:
        return USUAL_DISTANCES
    known = {word for name in OPS for word in (OPS[name].name, OPS[name].kind)}
    for word in distances:
        if word not in known:
            raise unknown_name("operation in `distances`", word, known)
    for name in distances.values():
        if name not in get_args(Distance):
            raise unknown_name("distance", name, get_args(Distance))
    return distances


def _divergence(wanted: torch.Tensor, found: torch.Tensor, axis: int) -> torch.Tensor:
    """Kullback-Leibler divergence along an axis, which is kept: p log(p / q) - p + q.

    The last two terms cancel if both add up to 1. Rounded probabilities do not, and these terms keep it from 0 up.
    """
    p, q = wanted.double().clamp(min=_LEAST), found.double().clamp(min=_LEAST)
    return (p * (p / q).log() - p + q).sum(dim=axis, keepdim=True).clamp(min=0)


def _angle(a: torch.Tensor, b: torch.Tensor) -> Doubles:
    """(1 - cosine) / 2 for each sample: 0 if both are zero, 1/2 if one is."""
    lengths = np.sqrt(dots(a, a)), np.sqrt(dots(b, b))
    products = lengths[0] * lengths[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = np.where(products == 0, (lengths[0] == lengths[1]).astype(np.float64), dots(a, b) / products)
    angles: Doubles = np.maximum(0.0, (1 - cosines) / 2)
    return angles


def _by_sample(item: GraphNode, value: torch.Tensor) -> torch.Tensor:
    """Dense `[samples, ...]` with samples outermost in memory; a single sample if they are mixed."""
    if value.dtype not in (torch.float32, torch.float64):
        value = value.float()
    batch = item.batch
    rows = value.reshape(1, -1) if batch is None or batch.outer is None else batch.samples_first(value)
    # Memory formats are kept for dense tensors only, so a new tensor tells.
    dense = torch.empty_like(rows, device="meta").stride() == rows.stride()
    outermost = rows.numel() == rows.stride(0) * rows.shape[0]
    return rows if dense and outermost else rows.contiguous()
