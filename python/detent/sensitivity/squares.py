"""Squared gradients of kernels and activations: what one unit adds, and what all of them say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from detent._registry import unknown_name
from detent.errors import CalibrationError, ConfigError
from detent.graph import Graph, GraphNode
from detent.graph.placement import Placement
from detent.kernels.statistics import weighted_counts
from detent.records.sensitivity import Role
from detent.records.statistics import Statistics
from detent.records.traces import BinScores, TensorTrace
from detent.sensitivity.directions import MOST_ORTHOGONAL

__all__ = ["Found", "Squares", "Traced", "traced_kernels", "traced_values"]

_REMEDY: Final = "look for square roots, logarithms or divisions at zero behind this layer"

Doubles = npt.NDArray[np.float64]
Bins = tuple[int, int, int]
"""Exponent, index of the first, number."""


@dataclass(frozen=True, eq=False)
class Traced:
    """A tensor whose trace is wanted.

    Args:
        name: of the layer with the kernel, or of the value.
        role: which of both.
        nodes: that hold it; a kernel may be read in several places.
        item: the layer, or the value.
        axis: of its output channels.
        members: of a value that decides a grid, the values whose histograms decide it.
        bins: in which its elements are told apart by value.
    """

    name: str
    role: Role
    nodes: tuple[fx.Node, ...]
    item: GraphNode
    axis: int | None
    members: tuple[str, ...] = ()
    bins: Bins | None = None


def traced_kernels(graph: Graph, placement: Placement, wanted: Sequence[str] | None) -> Iterator[Traced]:
    """The kernels that are wanted, in execution order.

    Raises:
        ConfigError: a layer has no kernel that is quantized.
    """
    for name in wanted or ():
        if name not in placement.weights:
            raise unknown_name("layer with a kernel", name, placement.weights)
    for layer, point in placement.weights.items():
        if wanted is None or layer in wanted:
            weights = [graph.find(user).weight for user in point.users]
            nodes = tuple(dict.fromkeys(node for node in weights if node is not None))
            item = graph.find(layer)
            yield Traced(layer, "weights", nodes, item, item.weight_axes[0])


def traced_values(
    graph: Graph, placement: Placement, wanted: Sequence[str] | None, stats: Statistics | None
) -> Iterator[Traced]:
    """The activations that are wanted, in execution order.

    Raises:
        ConfigError: a value is unknown, or no floating-point tensor, or the statistics lack it.
    """
    chosen = [name for name, point in placement.activations.items() if not point.constant] if wanted is None else wanted
    for name in chosen:
        item = graph.find(name)
        if not item.is_float:
            raise ConfigError(f"a value of type {item.dtype} has no gradient", where=name)
        if stats is not None and name not in stats:
            raise ConfigError("the statistics hold nothing about this value", where=name)
    for item in graph.nodes():
        if item.name in chosen:
            point = placement.activations.get(item.name)
            owner = point is not None and point.same_as is None
            members = (point.members or (item.name,)) if point is not None and owner else ()
            bins = None if stats is None else _bins(stats, item.name)
            yield Traced(item.name, "activations", (item.node,), item, item.channel_axis, members, bins)


def _bins(stats: Statistics, name: str) -> Bins:
    tensor = stats[name]
    return tensor.exponent, tensor.first_bin, len(tensor.counts)


class Squares:
    """The squared gradients of one tensor in one unit, direction by direction."""

    def __init__(self, traced: Traced, known: Mapping[fx.Node, torch.Tensor]) -> None:
        self._traced = traced
        self._value = known[traced.nodes[0]].detach()
        self._sum = torch.zeros_like(self._value, dtype=torch.float64)
        self.size = self._value.numel()
        self.totals: list[float] = []
        self.elements: Doubles | None = None
        self.channels: Doubles = np.zeros(0)
        self.bins: tuple[Doubles, Doubles] | None = None

    def take(self, gradients: Mapping[fx.Node, torch.Tensor | None]) -> None:
        """Add a direction.

        Raises:
            CalibrationError: a gradient is not finite.
        """
        parts = [part for node in self._traced.nodes if (part := gradients[node]) is not None]
        if not parts:  # no output depends on it
            self.totals.append(0.0)
            return
        whole = parts[0] if len(parts) == 1 else torch.stack(parts).sum(dim=0)
        squares = whole.double().square_()
        total = float(squares.sum())
        if not np.isfinite(total):
            raise CalibrationError(
                "the gradient of the outputs holds NaN or infinity here", where=self._traced.name, remedy=_REMEDY
            )
        self._sum += squares
        self.totals.append(total)

    def finish(self) -> None:
        """Sum by element, channel and bin, and let go of everything else."""
        axis, batch = self._traced.axis, self._traced.item.batch
        kernel = self._traced.role == "weights"
        if axis is not None and (kernel or batch is None or batch.axis != axis):
            self.channels = self._sum.movedim(axis, 0).reshape(self._sum.shape[axis], -1).sum(dim=1).numpy()
        if kernel or batch is None:
            self.elements = self._sum.numpy()
        elif batch.outer is not None:
            self.elements = batch.samples_first(self._sum).sum(dim=0).numpy()
        if self._traced.bins is not None:
            self.bins = self._by_value(*self._traced.bins)
        del self._sum, self._value

    def _by_value(self, exponent: int, first: int, bins: int) -> tuple[Doubles, Doubles]:
        x = self._value.float().contiguous().numpy()
        if not bool(np.isfinite(x).all()):
            raise CalibrationError("the value holds NaN or infinity", where=self._traced.name, remedy=_REMEDY)
        width = 2.0**exponent
        # Samples that calibration has not seen may lie outside of its histogram.
        last = np.nextafter(np.float32((first + bins) * width), np.float32(-np.inf))
        x = np.clip(x, np.float32(first * width), last)
        top = (float(self._sum.max()) if self._sum.numel() else 0.0) or 1.0
        parts = (self._sum / top).float().contiguous().numpy(), np.ones_like(x)
        sums, counts = (weighted_counts(x, part, exponent, first, bins) for part in parts)
        return sums * top, counts * len(self.totals)


@dataclass(eq=False)
class Found:
    """What all units say about a tensor.

    Args:
        traced: the tensor.
        samples: in each unit.
        sizes: outputs of each unit.
    """

    traced: Traced
    samples: list[int]
    sizes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._totals: list[list[float]] = [[] for _ in self.samples]
        self._sums: dict[str, Any] = {}
        self.size = 0

    @property
    def probes(self) -> int:
        """Directions of each unit so far."""
        return len(self._totals[-1])

    def add(self, unit: int, squares: Squares) -> None:
        """Add the next directions of a unit; units must come in order."""
        self._totals[unit] += squares.totals
        whole = self.traced.role == "weights" or self.traced.item.batch is None
        self.size = squares.size if whole else squares.size // self.samples[unit]
        parts = {"elements": squares.elements, "channels": squares.channels}
        if squares.bins is not None:
            parts |= {"sums": squares.bins[0], "counts": squares.bins[1]}
        for name, part in parts.items():
            if part is not None:
                self._sums[name] = self._sums[name] + part if name in self._sums else part

    @property
    def trace(self) -> float:
        """Mean over samples."""
        return float(np.mean(self._totals, axis=1).sum()) / sum(self.samples)

    @property
    def probe_error(self) -> float:
        """Standard error that the choice of directions causes: of a sum of units, each a mean over directions."""
        totals = np.array(self._totals)
        # Of orthogonal directions none comes twice: with all of them there is no error left (Cochran 1977, chapter 2).
        left = np.array([1 - self.probes / size if size <= MOST_ORTHOGONAL else 1.0 for size in self.sizes])
        if not left.any():
            return 0.0
        variances = totals.var(axis=1, ddof=1) / self.probes * left
        return float(np.sqrt(variances.sum())) / sum(self.samples)

    @property
    def relative_error(self) -> float:
        """The error of the directions in parts of the trace."""
        return self.probe_error / self.trace if self.trace > 0 else 0.0

    def tensor(self) -> TensorTrace:
        """The tensor's entry in the record."""
        traced = self.traced
        count = sum(self.samples) * self.probes
        by_unit = np.mean(self._totals, axis=1) / self.samples
        elements = self._sums.get("elements")
        bins = None
        if traced.bins is not None:
            sums, counts = (self._sums[name] / self.probes for name in ("sums", "counts"))
            bins = BinScores(exponent=traced.bins[0], first_bin=traced.bins[1], sums=sums, counts=counts)
        return TensorTrace(
            name=traced.name,
            role=traced.role,
            size=self.size,
            trace=self.trace,
            probe_error=self.probe_error,
            sample_error=float(by_unit.std(ddof=1)) / len(by_unit) ** 0.5 if len(by_unit) > 1 else float("nan"),
            channels=self._sums["channels"] / count,
            elements=None if elements is None else (elements / count).astype(np.float32),
            members=traced.members,
            bins=bins,
        )
