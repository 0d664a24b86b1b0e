"""Where the channels lie: in networks of PyTorch behind the samples, in TensorFlow Lite's last.

A layout lists, for each axis of a stored tensor, the axis of the network's tensor that lies there; `NEW` is an axis of
one entry. Layouts are chosen for whole groups of tensors that pass through operations of single values, so that no
transposition is left between layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detent.integer.operations import Concatenate, Convolution, LinearLayer, Operation, Product, Sum, Table
from detent.integer.windows import Average, MaximumPool

__all__ = [
    "NEW",
    "Layout",
    "channels_last",
    "choose_layouts",
    "from_stored",
    "plain",
    "positions",
    "stored_shape",
    "to_stored",
]

Layout = tuple[int, ...]
NEW: Final = -1

_TOGETHER: Final = (Sum, Product, Table, Concatenate, MaximumPool)


def plain(rank: int) -> Layout:
    """The network's own order."""
    return tuple(range(rank))


def channels_last(rank: int) -> Layout:
    """Samples, rows, columns, channels; a signal is one row of columns."""
    return (0, 2, 3, 1) if rank == 4 else (0, NEW, 2, 1)


def stored_shape(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    """Shape of the stored tensor."""
    return tuple(1 if axis == NEW else shape[axis] for axis in layout)


def positions(shape: tuple[int, ...], layout: Layout) -> npt.NDArray[np.int64]:
    """For each place of a stored tensor, the place its entry has in the network's; shaped as it is stored."""
    order = [axis for axis in layout if axis != NEW]
    numbers: npt.NDArray[np.int64] = np.arange(int(np.prod(shape))).reshape(shape).transpose(order)
    return numbers.reshape(stored_shape(shape, layout))


def to_stored(values: npt.NDArray[Any], layout: Layout) -> npt.NDArray[Any]:
    """A tensor of the network as it is stored."""
    order = [axis for axis in layout if axis != NEW]
    return np.ascontiguousarray(values.transpose(order).reshape(stored_shape(values.shape, layout)))


def from_stored(values: npt.NDArray[Any], layout: Layout, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """A stored tensor as the network has it."""
    order = [axis for axis in layout if axis != NEW]
    bare = values.reshape([shape[axis] for axis in order])
    return np.ascontiguousarray(bare.transpose([order.index(axis) for axis in range(len(order))]))


def choose_layouts(operations: tuple[Operation, ...], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Layout]:
    """A layout for each tensor.

    Args:
        operations: of the program.
        shapes: of its tensors, samples included.
    """
    leaders = {operation.output: operation.output for operation in operations}

    def leader(tensor: str) -> str:
        while leaders[tensor] != tensor:
            tensor = leaders[tensor]
        return tensor

    for operation in operations:
        keeping = isinstance(operation, Average) and (operation.window is not None or operation.keep)
        if isinstance(operation, _TOGETHER) or keeping:
            for name in operation.inputs:
                if len(shapes[name]) == len(shapes[operation.output]):
                    leaders[leader(name)] = leader(operation.output)
    wanted: dict[str, Layout] = {}
    for operation in operations:
        ends = [*operation.inputs, operation.output]
        if isinstance(operation, Convolution | MaximumPool) or (isinstance(operation, Average) and operation.window):
            wanted.update({leader(name): channels_last(len(shapes[name])) for name in ends})
    for operation in operations:
        if isinstance(operation, LinearLayer):
            for name in (*operation.inputs, operation.output):
                wanted.setdefault(leader(name), plain(len(shapes[name])))
    return {
        name: wanted.get(leader(name), channels_last(4) if len(shapes[name]) == 4 else plain(len(shapes[name])))
        for name in leaders
    }
