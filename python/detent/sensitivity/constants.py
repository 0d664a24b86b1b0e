"""Candidates at values that no sample decides, as an embedding of positions.

All samples share such a value, so its gradient is their sum, and products with what other tensors change sample by
sample are lost in it. Behind these candidates the network is run instead, which tells the outputs' changes themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from detent.graph import Graph
from detent.sensitivity.candidates import Candidates
from detent.sensitivity.downstream import Downstream, Network

__all__ = ["Constants"]

Doubles = npt.NDArray[np.float64]


class Constants:
    """The slots of such values, but for those before operators that draw random numbers.

    Args:
        graph: the float network.
        candidates: of all slots.
        outputs: of the network, in each of which samples are apart.
    """

    def __init__(self, graph: Graph, candidates: Candidates, outputs: Sequence[fx.Node]) -> None:
        self._graph = graph
        self._outputs = list(outputs)
        known = [*candidates.users.items(), *candidates.values.items()]
        slots = sorted({slot for name, slot in known if graph.find(name).batch is None})
        self._parts: dict[int, list[Downstream]] = {}
        network = Network(graph, self._outputs) if slots else None
        for number in slots:
            assert network is not None
            slot = candidates.slots[number]
            users = [graph.find(name) for name, of in candidates.users.items() if of == number]
            parts = [Downstream.of(network, slot, users, (place,)) for place in range(len(slot.bits))]
            # Operators that draw random numbers would draw others than the float network did.
            if not any(part.executor.draws_random_numbers for part in parts):
                self._parts[number] = parts
        self.slots = tuple(self._parts)
        self.sources = list(dict.fromkeys(s for parts in self._parts.values() for one in parts for s in one.sources))

    def changes(
        self, slot: int, values: Mapping[fx.Node, torch.Tensor], directions: Sequence[torch.Tensor], samples: int
    ) -> Doubles:
        """Changes of the outputs along directions, `[widths, directions, samples]`.

        Args:
            slot: its number.
            values: float values of the batch, of `sources` and outputs.
            directions: of each output, `[directions, *shape]`.
            samples: in the batch.
        """
        found = np.zeros((len(self._parts[slot]), len(directions[0]), samples))
        for width, part in enumerate(self._parts[slot]):
            for place, value in part.walk(values):
                node = self._outputs[place]
                change = self._by_sample(node, value - values[node])
                for number, direction in enumerate(directions[place]):
                    found[width, number] += (self._by_sample(node, direction) * change).sum(axis=1)
        return found

    def _by_sample(self, node: fx.Node, value: torch.Tensor) -> Doubles:
        batch = self._graph.find(self._graph.name_of(node)).batch
        assert batch is not None
        rows = batch.samples_first(value)
        return rows.reshape(len(rows), -1).double().numpy()
