"""The error of quantization at the outputs of the network: it judges corrections that help every layer alone.

Bringing each layer's mean back can still make the network worse, since what a correction takes away at one layer may
have cancelled an error elsewhere (a shortcut beside it, a clipped activation behind it).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import fx
from torch.utils import _pytree as pytree

from detent.graph.executor import Executor
from detent.graph.names import NAME

__all__ = ["Batches", "Outputs", "output_error", "outputs_of", "walk"]

Batches = Sequence[Sequence[torch.Tensor]]
Outputs = dict[int, list[torch.Tensor]]
"""The floating-point outputs that depend on the inputs, by their place, batch by batch."""


def output_error(wanted: Outputs, found: Outputs) -> float:
    """Squared distance of the outputs of two networks, relative to the first's energy, averaged over the outputs.

    Args:
        wanted: of the float network.
        found: of the quantized one, on the same inputs.
    """
    ratios = []
    for index, values in wanted.items():
        pairs = list(zip(values, found.get(index, ()), strict=False))
        energy = sum(float(value.square().sum(dtype=torch.float64)) for value, _ in pairs)
        lost = sum(float((value - other).square().sum(dtype=torch.float64)) for value, other in pairs)
        if energy > 0:
            ratios.append(lost / energy)
    return sum(ratios) / len(ratios) if ratios else 0.0


def outputs_of(module: fx.GraphModule, batches: Batches) -> Outputs:
    """What a network returns for the batches.

    Raises:
        CalibrationError: an operator failed; names the layer.
    """
    outputs: Outputs = {}
    for _ in walk(module, (), batches, outputs, held_out=len(batches)):
        pass
    return outputs


def walk(
    module: fx.GraphModule,
    layers: Sequence[fx.Node],
    batches: Batches,
    outputs: Outputs | None = None,
    *,
    held_out: int = 0,
) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """Run a network over all batches together, operator by operator, and stop at each of some layers.

    Args:
        module: the network.
        layers: where to stop.
        batches: its inputs.
        outputs: receives what it returns for the last batches; None if nobody needs it.
        held_out: how many these are.

    Yields:
        The place of a layer in the list, and its output for each batch, which may be changed in place.

    Raises:
        CalibrationError: an operator failed; names the layer.
    """
    places = _outputs(module) if outputs is not None else {}
    watched = list(dict.fromkeys([*layers, *places]))
    executor = Executor(module, watched, lambda node: str(node.meta.get(NAME, node.name)))
    for index, values in executor.walk(batches):
        if index < len(layers):
            yield index, values
        last = values[len(values) - held_out :]
        if all(isinstance(value, torch.Tensor) and value.is_floating_point() for value in last):
            for place in places.get(watched[index], ()):
                assert outputs is not None
                # Operators behind it may write into a value that is also returned.
                outputs[place] = [value.clone() for value in last]


def _outputs(module: fx.GraphModule) -> dict[fx.Node, list[int]]:
    """The nodes whose values a network returns, with their places."""
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    places: dict[fx.Node, list[int]] = {}
    for place, leaf in enumerate(pytree.tree_leaves(output.args[0])):
        if isinstance(leaf, fx.Node):
            places.setdefault(leaf, []).append(place)
    return places
