"""Networks that stop at layers and keep what they return, and the error of quantization at their outputs.

That error judges corrections that help every layer alone. Bringing each layer's mean back can still make the network
worse, since what a correction takes away at one layer may have cancelled an error elsewhere (a shortcut beside it, a
clipped activation behind it).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import fx
from torch.utils import _pytree as pytree

from detent.graph.executor import Executor
from detent.graph.names import NAME

__all__ = ["Batches", "Outputs", "Stepped", "output_error"]

Batches = Sequence[Sequence[torch.Tensor]]
Outputs = dict[int, torch.Tensor]
"""What a network returns for a batch: the floating-point outputs that depend on the inputs, by their place."""


def output_error(pairs: Iterable[tuple[Outputs, Outputs]]) -> float:
    """Squared distance of the outputs of two networks, relative to the first's energy, averaged over the outputs.

    Args:
        pairs: the outputs of the float network and of the quantized one for each batch.
    """
    energy: dict[int, float] = {}
    lost: dict[int, float] = {}
    for wanted, found in pairs:
        for place in wanted.keys() & found.keys():
            ours, theirs = wanted[place], found[place]
            energy[place] = energy.get(place, 0.0) + float(ours.square().sum(dtype=torch.float64))
            lost[place] = lost.get(place, 0.0) + float((ours - theirs).square().sum(dtype=torch.float64))
    ratios = [lost[place] / energy[place] for place in sorted(energy) if energy[place] > 0]
    return sum(ratios) / len(ratios) if ratios else 0.0


class Stepped:
    """A network made ready to stop at some layers and to keep what it returns.

    Args:
        module: the network.
        layers: where to stop, in execution order.
    """

    def __init__(self, module: fx.GraphModule, layers: Sequence[fx.Node] = ()) -> None:
        self._places = _outputs(module)
        self._layers = len(layers)
        self._watched = list(dict.fromkeys([*layers, *self._places]))
        self._executor = Executor(module, self._watched, lambda node: str(node.meta.get(NAME, node.name)))

    @property
    def draws_random_numbers(self) -> bool:
        """Whether an operator reads torch's random state, so that the order of the batches matters."""
        return self._executor.draws_random_numbers

    def walk(self, batch: Sequence[torch.Tensor], outputs: Outputs) -> Iterator[torch.Tensor]:
        """Run one batch and stop at each layer, possibly in another thread each time.

        Args:
            batch: the network's inputs.
            outputs: receives what the network returns.

        Yields:
            The layer's output, which may be changed in place.

        Raises:
            CalibrationError: an operator failed; names the layer.
        """
        for index, value in self._executor.walk(batch):
            if index < self._layers:
                yield value
            for place in self._places.get(self._watched[index], ()):
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    # Operators behind it may write into a value that is also returned.
                    outputs[place] = value.clone()

    def outputs(self, batch: Sequence[torch.Tensor]) -> Outputs:
        """What the network returns for a batch.

        Raises:
            CalibrationError: an operator failed; names the layer.
        """
        outputs: Outputs = {}
        for _ in self.walk(batch, outputs):
            pass
        return outputs


def _outputs(module: fx.GraphModule) -> dict[fx.Node, list[int]]:
    """The nodes whose values a network returns, with their places."""
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    places: dict[fx.Node, list[int]] = {}
    for place, leaf in enumerate(pytree.tree_leaves(output.args[0])):
        if isinstance(leaf, fx.Node):
            places.setdefault(leaf, []).append(place)
    return places
