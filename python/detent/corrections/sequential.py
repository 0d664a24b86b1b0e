"""Sequential bias correction: layer by layer, each measured behind predecessors already quantized and corrected.

The mean of a layer's quantized output is compared with that of the float network on the same samples, and the
difference goes into the bias before the next layer is looked at (Nagel et al. 2021, arXiv:2106.08295, section 3.3,
empirical bias correction). Where a ReLU or clamp follows, only elements count that the two networks do not cut off
alike: the mean over all of them is mostly about what the ReLU cuts off, and correcting for it moves what it lets
through away from float.

Both networks run all batches side by side from layer to layer, so the whole correction costs one pass of each. The
last batches are held out: a correction that does not bring a layer's output, as far as it is seen, closer to float on
them is not applied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from math import inf

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from detent.corrections.output import Batches, Outputs, Stepped
from detent.errors import CalibrationError
from detent.graph import Graph, GraphNode
from detent.graph.clamps import limits_behind
from detent.graph.side_by_side import sharing_cores, worker_count
from detent.kernels.comparison import differences, distances
from detent.records.correction import BiasCorrection

__all__ = ["Sequential", "correct_sequentially"]

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Sequential:
    """What was found.

    Args:
        corrections: by layer, of those that gain by one.
        notes: the others are named here.
        outputs: what three networks return for the batches held out: the float one, the quantized one, and that with
            the corrections, whose biases are not rounded to codes yet.
    """

    corrections: dict[str, BiasCorrection]
    notes: list[str]
    outputs: list[tuple[Outputs, Outputs, Outputs]]


def correct_sequentially(
    graph: Graph,
    quantized: fx.GraphModule,
    layers: Sequence[str],
    batches: Batches,
    held_out: int,
    show: Callable[[int], None] = lambda done: None,
) -> Sequential:
    """The correction of each layer that gains by one.

    Args:
        graph: the float network.
        quantized: the same network on the grids of its plan; its values keep their names.
        layers: names of the operations whose bias can be changed, in execution order.
        batches: inputs of both networks.
        held_out: how many batches at the end judge instead of being corrected for.
        show: told how many layers are done.

    Raises:
        CalibrationError: a layer's output holds NaN or infinity.
        ValueError: there are no batches to correct for, or none to judge by.
    """
    if not 0 < held_out < len(batches):
        raise ValueError(f"{held_out} of {len(batches)} batches cannot be held out")
    nodes = [graph.find(name) for name in layers]
    floats = Stepped(graph.module, [node.node for node in nodes])
    theirs = Stepped(quantized, _layers_of(graph, quantized, layers))
    pairs = [_Pair(floats, theirs, batch) for batch in batches]
    found = Sequential(corrections={}, notes=[], outputs=[])
    worse = []
    in_order = floats.draws_random_numbers or theirs.draws_random_numbers
    with sharing_cores(worker_count(in_order=in_order), "detent-correct") as pool:
        for done, (name, node) in enumerate(zip(layers, nodes, strict=True), 1):
            seen = _Seen.of(graph, node)
            sums = list(pool.map(_Pair.advance, pairs, repeat(seen)))
            if not all(bool(np.isfinite(total).all()) for total, _ in sums):
                raise CalibrationError(
                    "the output of the layer holds NaN or infinity",
                    where=name,
                    remedy="look for such values in the data; detent.calibrate names the sample",
                )
            shift = _mean_difference(sums[:-held_out])
            if _helps(pool.map(_Pair.distances, pairs[-held_out:], repeat(shift), repeat(seen))):
                list(pool.map(_Pair.correct, pairs, repeat(shift), repeat(seen.axis)))
                found.corrections[name] = BiasCorrection(shift=shift, method="sequential")
            else:
                worse.append(name)
            show(done)
        found.outputs.extend(pool.map(_Pair.finish, pairs[-held_out:]))
    if worse:
        found.notes.append(f"bias correction made {', '.join(worse)} no better on held-out samples and was left out")
    return found


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What is seen of a layer's output.

    Args:
        axis: of the channels.
        lower: limit at and below which nothing sees it, for all channels or one each.
        upper: limit at and above which nothing does.
    """

    axis: int
    lower: float | Floats
    upper: float | Floats

    @classmethod
    def of(cls, graph: Graph, layer: GraphNode) -> _Seen:
        """As the operators behind a layer have it."""
        axis = layer.channel_axis
        assert axis is not None
        limits = limits_behind(graph, layer)
        lower, upper = (-inf, inf) if limits is None else (_by_channel(one, layer, axis) for one in limits)
        if lower is None or upper is None:
            lower, upper = -inf, inf
        return cls(axis=axis, lower=lower, upper=upper)


def _by_channel(limit: torch.Tensor, layer: GraphNode, axis: int) -> float | Floats | None:
    """A limit as a number or as one for each channel; None if it varies otherwise."""
    if limit.numel() == 1:
        return float(limit)
    sizes = [1] * (len(layer.shape or ()) - limit.dim()) + list(limit.shape)
    if any(size != 1 for place, size in enumerate(sizes) if place != axis):
        return None
    return limit.reshape(-1).float().numpy()


class _Pair:
    """One batch on its way through the float and the quantized network; its steps may run in different threads."""

    def __init__(self, floats: Stepped, quantized: Stepped, batch: Sequence[torch.Tensor]) -> None:
        self._batch = batch
        self._quantized = quantized
        self._wanted: Outputs = {}
        self._corrected: Outputs = {}
        self._ours = floats.walk(batch, self._wanted)
        self._theirs = quantized.walk(batch, self._corrected)
        self._values: list[torch.Tensor] = []

    def advance(self, seen: _Seen) -> tuple[Doubles, Doubles]:
        """Go on to the next layer: sums and numbers of what is seen of the differences from float, by channel."""
        self._values.clear()
        ours, theirs = next(self._ours), next(self._theirs)
        if ours.stride() != theirs.stride():
            ours = torch.empty_like(theirs).copy_(ours)
        self._values += ours, theirs
        return differences(ours, theirs, lower=seen.lower, upper=seen.upper, axis=seen.axis)

    def distances(self, shift: Floats, seen: _Seen) -> tuple[Doubles, Doubles]:
        """Squared distances from float of what is seen, by channel, as it is and with a shift."""
        ours, theirs = self._values
        return distances(ours, theirs, shift, lower=seen.lower, upper=seen.upper, axis=seen.axis)

    def correct(self, shift: Floats, axis: int) -> None:
        """Add a shift to the quantized layer's output."""
        value = self._values[1]
        with torch.inference_mode():
            value.add_(torch.from_numpy(shift).reshape([-1 if i == axis else 1 for i in range(value.dim())]))

    def finish(self) -> tuple[Outputs, Outputs, Outputs]:
        """Run to the end: what the float, the quantized and the corrected network return."""
        self._values.clear()
        for walk in (self._ours, self._theirs):
            for _ in walk:
                pass
        return self._wanted, self._quantized.outputs(self._batch), self._corrected


def _mean_difference(sums: Iterable[tuple[Doubles, Doubles]]) -> Floats:
    """The mean difference of each channel, from sums and numbers batch by batch; 0 where nothing is seen."""
    total, count = (np.sum(parts, axis=0) for parts in zip(*sums, strict=True))
    mean: Floats = (total / np.maximum(count, 1)).astype(np.float32)
    return mean


def _helps(distances: Iterable[tuple[Doubles, Doubles]]) -> bool:
    """Whether a shift brings a layer closer to float, from squared distances without and with it, batch by batch."""
    before, after = np.sum([[part.sum() for part in batch] for batch in distances], axis=0)
    return bool(np.isfinite(after) and after < before)


def _layers_of(graph: Graph, quantized: fx.GraphModule, layers: Sequence[str]) -> list[fx.Node]:
    """The nodes of the quantized network that compute the layers."""
    targets = {name: graph.find(name).node.target for name in layers}
    found = {}
    for node in quantized.graph.nodes:
        name = graph.name_of(node)
        if name in targets and node.target is targets[name]:
            found[name] = node
    return [found[name] for name in layers]
