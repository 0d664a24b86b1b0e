"""Cross-layer equalization: channels of neighbouring layers share their ranges; the float function stays the same."""

from __future__ import annotations

import math
from typing import Final

import torch

from detent.graph.graph import Graph, GraphNode
from detent.transforms.channel_factors import finite, grouped_kernel, scale_clamp, scale_kernel
from detent.transforms.channel_paths import ChannelPath, channel_paths, layers_of, summarize
from detent.transforms.edits import finish

__all__ = ["equalize_layers"]

ROUNDS: Final = 20
"""Passes over all pairs: each pass brings long chains nearer to the common solution."""

TOLERANCE: Final = 1e-3
"""Passes end when no factor moves by more than this share."""

LIMIT: Final = 2.0**8
"""Greatest factor, and the reciprocal of the least: a channel that is all but dead must not blow up its neighbours."""


def equalize_layers(graph: Graph) -> Graph:
    """A new graph in which a layer's output channels and the input channels of their readers have equal ranges.

    For a channel i with range r1 = max |W1[i]| where it is made and r2 = max |W2[:, i]| where it is read, W1 and b1 are
    multiplied and W2 is divided by m = sqrt(r2 / r1) (Nagel et al. 2019, arXiv:1906.04721, equation 11, with
    m = 1 / s), which makes both ranges sqrt(r1 r2); repeated until nothing moves. The factors pass ReLU, leaky ReLU,
    PReLU, pooling, padding with zeros, resizing, dropout and reshaping; the limits of a clamp (ReLU6) are multiplied
    too and become one pair per channel. Several readers take the greatest of their ranges. Channels of range 0 keep
    their scale. Notes say which layers were equalized and which were left alone for what reason.

    Args:
        graph: any captured network; fold its batch norms first.
    """
    equal = graph.copy()
    paths, rejected = channel_paths(equal)
    solver = _Solver(equal, paths)
    usable = []
    for path in paths:
        if finite(solver.ranges[layer] for layer in layers_of([path])):
            usable.append(path)
        else:
            rejected[path.source.name] = "a kernel holds values that are not finite"
    factors = solver.solve(usable)
    _apply(equal, usable, factors)
    summarize(equal, "not equalized", rejected)
    if usable:
        pairs = ", ".join(f"{p.source.name} with {' and '.join(r.layer.name for r in p.readers)}" for p in usable)
        equal.notes.append(f"equalized the channels of {len(usable)} layer{'s' * (len(usable) > 1)}: {pairs}")
    return finish(equal)


class _Solver:
    """Factors of all paths together, found on the kernels' magnitudes per pair of channels."""

    def __init__(self, graph: Graph, paths: list[ChannelPath]) -> None:
        spread = {reader.layer: reader.spread for path in paths for reader in path.readers}
        self.ranges: dict[GraphNode, torch.Tensor] = {}
        for layer in layers_of(paths):
            assert layer.weight is not None
            kernel = grouped_kernel(graph.tensor(layer.weight), layer, spread.get(layer, 1))
            self.ranges[layer] = kernel.abs().amax(-1)

    def solve(self, paths: list[ChannelPath]) -> list[torch.Tensor]:
        """Total factor per channel of each path, float64 `[C]`."""
        total = [torch.ones(path.channels, dtype=torch.float64) for path in paths]
        for _ in range(ROUNDS):
            moved = 1.0
            for index, path in enumerate(paths):
                made = self.ranges[path.source].amax(2).flatten()
                read = torch.stack([self.ranges[r.layer].amax(1).flatten() for r in path.readers]).amax(0)
                step = torch.where((made > 0) & (read > 0), torch.sqrt(read / made), 1.0)
                bounded = (total[index] * step).clamp(1 / LIMIT, LIMIT)
                step, total[index] = bounded / total[index], bounded
                self._multiply(path, step)
                least, greatest = torch.aminmax(step)
                moved = max(moved, float(greatest), 1 / float(least))
            if math.log(moved) < TOLERANCE:
                break
        return total

    def _multiply(self, path: ChannelPath, step: torch.Tensor) -> None:
        made = self.ranges[path.source]
        self.ranges[path.source] = made * step.reshape(made.shape[0], -1, 1)
        for reader in path.readers:
            read = self.ranges[reader.layer]
            self.ranges[reader.layer] = read / step.reshape(read.shape[0], 1, -1)


def _apply(graph: Graph, paths: list[ChannelPath], factors: list[torch.Tensor]) -> None:
    made = {path.source: total for path, total in zip(paths, factors, strict=True)}
    read = {r.layer: (1 / total, r.spread) for path, total in zip(paths, factors, strict=True) for r in path.readers}
    # Both sides of a kernel at once, so that it is rounded once.
    for layer in layers_of(paths):
        inputs, spread = read.get(layer, (None, 1))
        scale_kernel(graph, layer, outputs=made.get(layer), inputs=inputs, spread=spread)
    for path, total in zip(paths, factors, strict=True):
        for clamp in path.clamps:
            scale_clamp(graph, clamp, total)
