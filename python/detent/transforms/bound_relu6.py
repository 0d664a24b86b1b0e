"""Clamps from zero get a power of two as their bound, so that a power-of-two grid has no code beyond it."""

from __future__ import annotations

import math

import torch

from detent.graph.clamps import limits
from detent.graph.graph import Graph
from detent.transforms.channel_factors import scale_path, set_limits
from detent.transforms.channel_paths import ChannelPath, channel_paths, summarize
from detent.transforms.edits import finish

__all__ = ["bound_relu6"]


def bound_relu6(graph: Graph) -> Graph:
    """A new graph in which ReLU6 and hardtanh(0, M) between two layers end at 2^ceil(log2 M): 8 for ReLU6.

    With k = M / 2^ceil(log2 M), the kernel and bias before are divided by k and the kernels after are multiplied by k:
    clamp(x / k, 0, M / k) = clamp(x, 0, M) / k, so the float function stays the same. Bounds that are powers of two
    already, or differ between channels, stay.

    Args:
        graph: any captured network; fold its batch norms first.
    """
    bounded = graph.copy()
    paths, rejected = channel_paths(bounded)
    done = []
    for path in paths:
        bound = _bound(bounded, path)
        if bound is None:
            continue
        power = 2.0 ** math.ceil(math.log2(bound))
        scale_path(bounded, path, torch.full((path.channels,), power / bound, dtype=torch.float64))
        for clamp in path.clamps:
            # Written out: bound * (power / bound) need not round to the power.
            set_limits(bounded, clamp.item, torch.zeros(1), torch.full((1,), power))
        done.append(f"{' and '.join(clamp.item.name for clamp in path.clamps)} at {power:g} instead of {bound:g}")
    near = {item.name for item in bounded.nodes() if item.op is not None and item.op.name in ("relu6", "hardtanh")}
    followed = {
        name: reason
        for name, reason in rejected.items()
        if any(bounded.name_of(user) in near for user in bounded.find(name).node.users)
    }
    summarize(bounded, "bound not moved to a power of two", followed)
    if done:
        bounded.notes.append(f"bounded by a power of two: {', '.join(done)}")
    return finish(bounded)


def _bound(graph: Graph, path: ChannelPath) -> float | None:
    """The one upper limit of all clamps on a path; None if there is none to move."""
    bounds = set()
    for clamp in path.clamps:
        lower, upper = limits(graph, clamp.item)
        if lower.numel() > 1 or upper.numel() > 1 or float(lower) != 0:
            return None
        bounds.add(float(upper))
    bound = bounds.pop() if len(bounds) == 1 else 0.0
    return bound if 0 < bound < math.inf and math.frexp(bound)[0] != 0.5 else None
