"""New operators in a captured graph, with all that the graph knows of the others: name, shape, samples, source."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from detent.graph.graph import Graph
from detent.graph.layouts import BATCH, BatchLayout
from detent.graph.names import LAYER, NAME, SOURCE
from detent.graph.shapes import value_of
from detent.graph.tensors import add_tensor, free_path

__all__ = ["Inserter"]


class Inserter:
    """Writes operators that belong to one value in front of a node.

    Args:
        graph: the graph under edit.
        before: the node in front of which operators are written, in the order of the calls.
        value: the value they start from; theirs are called `<its name>.<word>`.
    """

    def __init__(self, graph: Graph, before: fx.Node, value: fx.Node) -> None:
        self._graph, self._before, self._value = graph, before, value
        self._taken = {str(node.meta[NAME]) for node in graph.module.graph.nodes if NAME in node.meta}
        self._mode = value_of(value).fake_mode

    def call(self, word: str, operator: Any, *args: Any, layout: BatchLayout | None, **kwargs: Any) -> fx.Node:
        """A call of an ATen operator on values of the graph; `layout` says where its samples lie."""
        graph = self._graph.module.graph
        with graph.inserting_before(self._before):
            node = graph.call_function(operator, args, kwargs)
        node.meta[NAME] = self._free(f"{self._value.meta[NAME]}.{word}")
        node.meta[LAYER], node.meta[SOURCE] = self._value.meta[LAYER], self._value.meta[SOURCE]
        with self._mode:
            node.meta["val"] = operator(*fx.node.map_arg(args, value_of), **kwargs)
        if layout is not None:
            node.meta[BATCH] = layout
        return node

    def store(self, word: str, tensor: torch.Tensor) -> fx.Node:
        """A read of a new stored tensor."""
        path = free_path(self._graph.module, f"{self._value.name}_{word}")
        add_tensor(self._graph.module, path, tensor.contiguous())
        with self._graph.module.graph.inserting_before(self._before):
            node = self._graph.module.graph.get_attr(path)
        node.meta["val"] = self._mode.from_tensor(tensor)
        return node

    def _free(self, wish: str) -> str:
        names = (wish if not count else f"{wish}:{count}" for count in range(len(self._taken) + 1))
        name = next(name for name in names if name not in self._taken)
        self._taken.add(name)
        return name
