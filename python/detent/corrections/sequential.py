"""Sequential bias correction: layer by layer, each measured behind predecessors already quantized and corrected.

The mean of a layer's quantized output is compared with that of the float network on the same samples, and the
difference goes into the bias before the next layer is looked at (Nagel et al. 2021, arXiv:2106.08295, section 3.3,
empirical bias correction). Where a ReLU or clamp follows, only elements count that the two networks do not cut off
alike: the mean over all of them is mostly about what the ReLU cuts off, and correcting for it moves what it lets
through away from float.

Both networks run operator by operator over all batches at once, so the whole correction costs one pass of each. The
last batches are held out: a correction that does not bring a layer's output, as far as it is seen, closer to float on
them is not applied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from torch import fx

from detent.corrections.output import Batches, Outputs, walk
from detent.errors import CalibrationError
from detent.graph import Graph, GraphNode
from detent.graph.clamps import limits_behind
from detent.records.correction import BiasCorrection

__all__ = ["Sequential", "correct_sequentially"]

Limits = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Sequential:
    """What was found.

    Args:
        corrections: by layer, of those that gain by one.
        notes: the others are named here.
        wanted: outputs of the float network for the batches held out.
    """

    corrections: dict[str, BiasCorrection]
    notes: list[str]
    wanted: Outputs


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
    limits = [_limits_behind(graph, node) for node in nodes]
    found = Sequential(corrections={}, notes=[], wanted={})
    floats = walk(graph.module, [node.node for node in nodes], batches, found.wanted, held_out=held_out)
    theirs = walk(quantized, _layers_of(graph, quantized, layers), batches)
    worse = []
    for done, ((index, ours), (_, values)) in enumerate(zip(floats, theirs, strict=True), 1):
        axis = nodes[index].channel_axis
        assert axis is not None
        with torch.inference_mode():
            if not all(bool(value.isfinite().all()) for value in ours):
                raise CalibrationError(
                    "the output of the layer holds NaN or infinity",
                    where=layers[index],
                    remedy="look for such values in the data; detent.calibrate names the sample",
                )
            judged = _judge(ours, values, axis, held_out, limits[index])
            for value in values if judged.better else ():
                value.add_(_along(judged.shift, value, axis))
        if judged.better:
            found.corrections[layers[index]] = BiasCorrection(shift=judged.shift.numpy(), method="sequential")
        else:
            worse.append(layers[index])
        show(done)
    if worse:
        found.notes.append(f"bias correction made {', '.join(worse)} no better on held-out samples and was left out")
    return found


def _limits_behind(graph: Graph, layer: GraphNode) -> Limits | None:
    known = limits_behind(graph, layer)
    return None if known is None else (known[0].float(), known[1].float())


@dataclass(frozen=True)
class _Judged:
    shift: torch.Tensor
    better: bool


def _judge(
    wanted: list[torch.Tensor], found: list[torch.Tensor], axis: int, held_out: int, limits: Limits | None = None
) -> _Judged:
    """The mean difference per channel on the first batches, and whether it helps on the others.

    Args:
        wanted: the layer's output in the float network, batch by batch.
        found: in the quantized network.
        axis: of the channels.
        held_out: how many batches at the end judge.
        limits: outside of which nothing sees the output; elements that both networks cut off alike do not count.
    """
    split = len(wanted) - held_out
    others = [i for i in range(wanted[0].dim()) if i != axis]
    sums = counts = torch.zeros(wanted[0].shape[axis], dtype=torch.float64)
    for ours, theirs in zip(wanted[:split], found[:split], strict=True):
        difference = ours - theirs
        if limits is None:
            counts = counts + difference.numel() // difference.shape[axis]
        else:
            seen = _seen(ours, theirs, limits)
            difference.mul_(seen)
            counts = counts + seen.sum(dim=others)
        # Per-batch sums in float64: the order of the batches is fixed, so the result is too.
        sums = sums + difference.sum(dim=others, dtype=torch.float64)
    shift = (sums / counts.clamp(min=1)).float()
    before = after = 0.0
    for ours, theirs in zip(wanted[split:], found[split:], strict=True):
        before += _distance(ours, theirs, limits)
        after += _distance(ours, theirs + _along(shift, theirs, axis), limits)
    return _Judged(shift, bool(np.isfinite(after)) and after < before)


def _seen(ours: torch.Tensor, theirs: torch.Tensor, limits: Limits) -> torch.Tensor:
    """Which elements are not cut off at the same limit in both."""
    lower, upper = limits
    seen = torch.maximum(ours, theirs) > lower
    return seen if bool((upper == inf).all()) else seen.logical_and_(torch.minimum(ours, theirs) < upper)


def _distance(ours: torch.Tensor, theirs: torch.Tensor, limits: Limits | None) -> float:
    """Squared distance of what is seen of two values."""
    if limits is not None:
        ours, theirs = (value.clamp(*limits) for value in (ours, theirs))
    return float((ours - theirs).square_().sum(dtype=torch.float64))


def _along(shift: torch.Tensor, value: torch.Tensor, axis: int) -> torch.Tensor:
    return shift.reshape([-1 if i == axis else 1 for i in range(value.dim())])


def _layers_of(graph: Graph, quantized: fx.GraphModule, layers: Sequence[str]) -> list[fx.Node]:
    """The nodes of the quantized network that compute the layers."""
    targets = {name: graph.find(name).node.target for name in layers}
    found = {}
    for node in quantized.graph.nodes:
        name = graph.name_of(node)
        if name in targets and node.target is targets[name]:
            found[name] = node
    return [found[name] for name in layers]
