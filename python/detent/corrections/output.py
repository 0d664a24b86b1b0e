"""The error of quantization at the outputs of the network: it judges corrections that help every layer alone.

Bringing each layer's mean back can still make the network worse, since what a correction takes away at one layer may
have cancelled an error elsewhere (a shortcut beside it, a clipped activation behind it).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx
from torch.utils import _pytree as pytree

from detent.graph.executor import Executor

__all__ = ["output_error"]

Batches = Sequence[Sequence[torch.Tensor]]


def output_error(wanted: fx.GraphModule, found: fx.GraphModule, batches: Batches) -> float:
    """Squared distance of the outputs of two networks, relative to the first's energy, averaged over the outputs.

    Args:
        wanted: the float network.
        found: the quantized one, with the same outputs.
        batches: inputs of both.

    Raises:
        CalibrationError: an operator failed; names the layer.
    """
    ours, theirs = _outputs(wanted, batches), _outputs(found, batches)
    ratios = []
    for index, values in ours.items():
        pairs = list(zip(values, theirs.get(index, ()), strict=False))
        energy = sum(float(value.square().sum(dtype=torch.float64)) for value, _ in pairs)
        lost = sum(float((value - other).square().sum(dtype=torch.float64)) for value, other in pairs)
        if energy > 0:
            ratios.append(lost / energy)
    return sum(ratios) / len(ratios) if ratios else 0.0


def _outputs(module: fx.GraphModule, batches: Batches) -> dict[int, list[torch.Tensor]]:
    """The floating-point outputs that depend on the inputs, by their place, batch by batch."""
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    leaves = [leaf for leaf in pytree.tree_leaves(output.args[0]) if isinstance(leaf, fx.Node)]
    watched = list(dict.fromkeys(leaves))
    executor = Executor(module, watched, lambda node: str(node.name))
    seen = {watched[index]: values for index, values in executor.walk(batches)}
    return {
        place: seen[leaf]
        for place, leaf in enumerate(leaves)
        if leaf in seen and all(isinstance(value, torch.Tensor) and value.is_floating_point() for value in seen[leaf])
    }
