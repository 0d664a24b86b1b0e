"""Batch layouts of all values: from symbolic shapes where they say it, by trial where they do not."""

from __future__ import annotations

from torch import fx

from detent.graph.axes import BatchLayout, symbolic_layouts
from detent.graph.shapes import concrete_shape, is_tensor

__all__ = ["layouts_of"]


def layouts_of(module: fx.GraphModule, symbol: str | None, size: int) -> dict[fx.Node, BatchLayout]:
    """The batch layout of every value that depends on the batch.

    Args:
        module: the captured network.
        symbol: name of the symbolic batch size, None if the batch is fixed.
        size: samples in the example.
    """
    if symbol is not None:
        return symbolic_layouts(module.graph, symbol)
    return fixed_layouts(module.graph, size)


def fixed_layouts(graph: fx.Graph, size: int) -> dict[fx.Node, BatchLayout]:
    """Layouts for a fixed batch: a value that depends on an input and whose axis 0 is a multiple of the batch.

    A fixed batch is always run whole, so nothing has to be cut off and a single sample may have any layout.
    """
    dependent: set[fx.Node] = set()
    layouts: dict[fx.Node, BatchLayout] = {}
    for node in graph.nodes:
        if node.op == "placeholder" or any(source in dependent for source in node.all_input_nodes):
            dependent.add(node)
            if is_tensor(node):
                axis = _axis_of(concrete_shape(node), size)
                if axis is not None:
                    layouts[node] = BatchLayout(axis, concrete_shape(node)[axis] // size, None if size > 1 else True)
    return layouts


def _axis_of(shape: tuple[int, ...], size: int) -> int | None:
    return next((axis for axis, length in enumerate(shape) if length and length % size == 0), None)
