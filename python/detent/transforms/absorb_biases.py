"""High-bias absorption: what a channel always exceeds moves from its bias into the next layer's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from detent.graph.clamps import limits
from detent.graph.graph import Graph, GraphNode
from detent.graph.roles import argument, argument_names, op_name
from detent.records.statistics import Statistics
from detent.transforms.channel_factors import grouped_kernel, replace_bias, set_limits
from detent.transforms.channel_paths import ChannelPath, channel_paths, summarize
from detent.transforms.edits import FOLDED_NORM, finish
from detent.transforms.observed import observed_channels, require_statistics_of

__all__ = ["absorb_high_biases", "read_by_absorption"]


def absorb_high_biases(graph: Graph, statistics: Statistics) -> Graph:
    """A new graph in which channels that are always positive before their ReLU start at zero after it.

    For c = max(0, least value observed of the channel), ReLU(x) = ReLU(x - c) + c wherever x >= c, so c leaves b1 and
    W2 c enters b2 (Nagel et al. 2019, arXiv:1906.04721, equations 12 to 15). The paper estimates c = beta - 3 |gamma|,
    which fails for one value in 740; the observed minimum makes the rewrite exact on the calibration data, but not on
    other data with lower values: unlike other rewrites it does not keep the float function everywhere. Needed on the
    way: a ReLU, leaky ReLU, PReLU or clamp, and readers without zero padding, whose border would lack c.

    Args:
        graph: any captured network; fold its batch norms and equalize it first.
        statistics: what calibration saw of this graph.

    Raises:
        ConfigError: the statistics belong to another graph.
    """
    require_statistics_of(graph, statistics)
    absorbed = graph.copy()
    paths, _ = channel_paths(absorbed)
    done, rejected = [], {}
    for path in paths:
        if not _has_activation(path):
            continue
        reason = _obstacle(path)
        if reason is not None:
            # Whether there would be anything to absorb is not asked: nobody needs to observe such values for it.
            rejected[path.source.name] = reason
            continue
        amount = _amount(absorbed, statistics, path)
        if amount is not None and bool((amount > 0).any()):
            _absorb(absorbed, path, amount)
            done.append(f"{path.source.name} ({int((amount > 0).sum())} of {path.channels} channels)")
    summarize(absorbed, "high biases not absorbed", rejected)
    if done:
        absorbed.notes.append(f"absorbed high biases of {', '.join(done)}: exact for values seen in calibration only")
    return finish(absorbed)


def read_by_absorption(graph: Graph) -> Iterator[tuple[fx.Node, ...]]:
    """The values whose statistics per channel `absorb_high_biases` reads, of each group the first that there is."""
    return (_telling(path) for path in channel_paths(graph)[0] if _has_activation(path) and _obstacle(path) is None)


def _has_activation(path: ChannelPath) -> bool:
    return any(item.kind == "activation" for item in path.between)


def _telling(path: ChannelPath) -> tuple[fx.Node, ...]:
    """The values either of which tells what to absorb."""
    # Above zero an activation's output is its input, so either tells; a target that fuses both observes the second.
    return (path.source.node, *(item.node for item in path.between if len(path.between) == 1))


def _amount(graph: Graph, statistics: Statistics, path: ChannelPath) -> torch.Tensor | None:
    """What to absorb per channel, float64 `[C]` in steps of float32; None without observations."""
    found = (observed_channels(graph, statistics, node, path.channels) for node in _telling(path))
    seen = next((ranges for ranges in found if ranges is not None), None)
    if seen is None:
        return None
    amount = seen.minimum.clamp(min=0)
    for clamp in path.clamps:
        lower, upper = limits(graph, clamp.item)
        if clamp.spread > 1 or max(lower.numel(), upper.numel()) not in (1, path.channels):
            return None
        # A channel that is always cut off at the top would become a constant: it keeps its bias.
        inside = (amount >= lower.flatten()) & (amount < upper.flatten())
        amount = torch.where(inside, amount, 0.0)
    return amount


def _obstacle(path: ChannelPath) -> str | None:
    """Why a constant added to a channel does not arrive unchanged at all readers; None if it does."""
    for item in path.between:
        if item.kind == "sum" or (item.kind == "pad" and _fills_with_zeros(item)):
            return f"{op_name(item.node)} does not pass a constant"
        padded = "padding" in argument_names(item.node) and _nonzero(argument(item.node, "padding"))
        if op_name(item.node).startswith("avg_pool") and padded:
            return f"{item.name} pads with zeros"
    for reader in path.readers:
        if reader.layer.kind == "conv_transposed":
            return f"{reader.layer.name} is a transposed convolution, which adds up fewer products at its border"
        if reader.layer.kind == "conv" and _nonzero(argument(reader.layer.node, "padding")):
            return f"{reader.layer.name} pads with zeros"
    return None


def _fills_with_zeros(item: GraphNode) -> bool:
    return op_name(item.node) == "constant_pad_nd" or argument(item.node, "mode") == "constant"


def _nonzero(padding: Any) -> bool:
    if isinstance(padding, str):
        return padding != "valid"
    return any(padding) if isinstance(padding, list | tuple) else bool(padding)


def _absorb(graph: Graph, path: ChannelPath, amount: torch.Tensor) -> None:
    source = path.source
    old = torch.zeros(()) if source.bias is None else graph.tensor(source.bias).detach()
    replace_bias(graph, source, old.double() - amount)
    if FOLDED_NORM in source.node.meta:
        shift, gain = source.node.meta[FOLDED_NORM]
        source.node.meta[FOLDED_NORM] = (shift - amount, gain)
    for clamp in path.clamps:
        rank = len(clamp.item.shape or ()) - 1 - clamp.axis
        lower, upper = limits(graph, clamp.item)
        # The lower limit stays where it is: no value comes near it, and zero keeps the output unsigned.
        set_limits(graph, clamp.item, lower.expand(upper.shape), upper - amount.reshape(-1, *[1] * rank))
    for reader in path.readers:
        assert reader.layer.weight is not None
        kernel = grouped_kernel(graph.tensor(reader.layer.weight), reader.layer, reader.spread).sum(-1)
        share = (kernel * amount.reshape(kernel.shape[0], 1, -1)).sum(-1).flatten()
        bias = reader.layer.bias
        before = torch.zeros(()) if bias is None else graph.tensor(bias).detach()
        replace_bias(graph, reader.layer, before.double() + share)
