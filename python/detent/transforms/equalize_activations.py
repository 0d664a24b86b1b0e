"""Activation channel equalization: wide channels are narrowed by what the folded norms say of them."""

from __future__ import annotations

import math
from typing import Final

import torch

from detent.graph.clamps import is_clamp, limits
from detent.graph.graph import Graph, GraphNode
from detent.transforms.channel_factors import scale_path
from detent.transforms.channel_paths import ChannelPath, channel_paths, summarize
from detent.transforms.edits import FOLDED_NORM, finish

__all__ = ["clipped_deviation", "equalize_activations"]

ROUNDING: Final = 1e-6
"""How far above 1 a deviation may be and still count as 1."""


def equalize_activations(graph: Graph) -> Graph:
    """A new graph in which no activation channel has, by its folded norm, a standard deviation above 1.

    A layer with a folded batch norm gives channel c the distribution N(beta_c, gamma_c^2) before its ReLU or clamp;
    with r_c the deviation after it, the channel is multiplied by min(1 / r_c, 1), and the layers that read it undo
    that, so the float function stays the same. No data is needed.

    Args:
        graph: a network whose batch norms were folded by `fold_batch_norm`.
    """
    equal = graph.copy()
    paths, rejected = channel_paths(equal, lambda item: FOLDED_NORM in item.node.meta)
    done = []
    for path in paths:
        factors = _factors(equal, path)
        if factors is not None and bool((factors < 1).any()):
            scale_path(equal, path, factors)
            done.append(path.source.name)
    summarize(equal, "activations not equalized", rejected)
    if done:
        equal.notes.append(f"equalized the activations of {len(done)} layer{'s' * (len(done) > 1)}: {', '.join(done)}")
    return finish(equal)


def _factors(graph: Graph, path: ChannelPath) -> torch.Tensor | None:
    """min(1 / r, 1) per channel; None on a path without exactly such activations as the formula is for."""
    activations = [item for item in path.between if item.kind == "activation"]
    if not activations or not all(_is_clipping(item) for item in activations):
        return None
    mean, std = (torch.as_tensor(t).double() for t in path.source.node.meta[FOLDED_NORM])
    deviations = []
    for item in activations:
        lower, upper = limits(graph, item) if is_clamp(item) else (torch.zeros(()), torch.tensor(math.inf))
        if max(lower.numel(), upper.numel()) not in (1, path.channels):
            return None
        deviations.append(clipped_deviation(mean, std, lower.double().flatten(), upper.double().flatten()))
    widest = torch.stack(deviations).amax(0)
    return torch.where(widest > 1 + ROUNDING, 1 / widest, 1.0) if bool(torch.isfinite(widest).all()) else None


def _is_clipping(item: GraphNode) -> bool:
    return item.op is not None and (item.op.name == "relu" or is_clamp(item))


def clipped_deviation(mean: torch.Tensor, std: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """Standard deviation of clamp(X, lower, upper) for normal X, elementwise, float64.

    From the first two moments of a clipped normal; with lower 0 and upper infinite, those of a rectified one:
    E = mean Phi(mean / std) + std phi(mean / std).
    """

    def part(limit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        z = (limit - mean) / std.clamp(min=1e-300)
        mass = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
        density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
        return (
            mass,
            density,
            torch.where(z.isinf() | (density == 0), 0.0, z * density),
            torch.where(limit.isinf(), 0.0, limit),
        )

    below, low_density, low_slope, low = part(lower)
    within, high_density, high_slope, high = part(upper)
    above, inside = 1 - within, within - below
    first = low * below + high * above + mean * inside + std * (low_density - high_density)
    second = low.square() * below + high.square() * above + (mean.square() + std.square()) * inside
    second = second + 2 * mean * std * (low_density - high_density) + std.square() * (low_slope - high_slope)
    return (second - first.square()).clamp(min=0).sqrt()
