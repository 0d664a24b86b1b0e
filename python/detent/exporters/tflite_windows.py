"""Windows of TensorFlow Lite's convolutions and pools, and what is padded around their inputs."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from detent.errors import UnsupportedOpError
from detent.exporters.tflite_file import Tensor, code_tensor
from detent.exporters.tflite_layout import channels_last
from detent.integer.operations import Convolution, Operation
from detent.integer.windows import Average, MaximumPool

if TYPE_CHECKING:
    from detent.exporters.tflite_operators import Translation

__all__ = ["SAME", "VALID", "input_of_convolution", "input_of_pool", "pair"]

Pair = tuple[int, int]
SAME, VALID = 0, 1


def pair(numbers: tuple[int, ...], filling: int) -> Pair:
    """Rows and columns; a signal has columns only."""
    return (filling, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])


def input_of_convolution(tensor: Translation, operation: Convolution) -> tuple[int, int]:
    """The number of the input, padded where the operator cannot, and the operator's own padding."""
    sizes = pair(tensor.shapes[operation.inputs[0]][2:], 1)
    reach = _reach((operation.kernel.shape[2], operation.kernel.shape[3]), operation.dilation)
    ends = _ends(sizes, reach, operation.stride, operation.before, operation.after)
    return _padded(tensor, operation, ends, _is_same(sizes, reach, operation.stride, ends), operation.source.zero_point)


def input_of_pool(tensor: Translation, operation: MaximumPool | Average) -> tuple[int, int]:
    """Likewise of a pool.

    Raises:
        UnsupportedOpError: TensorFlow Lite has no such pool.
    """
    window, shape = operation.window, tensor.shapes[operation.inputs[0]]
    assert window is not None
    if len(window.size) > 2 or len(shape) != 2 + len(window.size):
        raise UnsupportedOpError("TensorFlow Lite pools along one or two axes")
    if set(window.dilation) != {1}:
        raise UnsupportedOpError("TensorFlow Lite has no pools with dilation")
    sizes, reach, stride = pair(shape[2:], 1), pair(window.size, 1), pair(window.stride, 1)
    ends = _ends(sizes, reach, stride, pair(window.before, 0), pair(window.after, 0))
    same = _is_same(sizes, reach, stride, ends)
    if isinstance(operation, MaximumPool):
        return _padded(tensor, operation, ends, same, int(np.iinfo(operation.grid.dtype).min))
    there = window.of(np.ones(shape[2:], np.int64), 0).sum(axis=tuple(range(-len(window.size), 0)))
    counts = np.broadcast_to(operation.counts, there.shape)
    if np.all(counts == np.prod(window.size)):
        return _padded(tensor, operation, ends, False, operation.source.zero_point)
    if not (same and np.array_equal(counts, there)):
        raise UnsupportedOpError(
            "AVERAGE_POOL_2D divides by how many entries its window has",
            remedy="pool without divisor_override; without counting what is padded, only where the size of the output "
            "is that of the input over the stride",
        )
    return _padded(tensor, operation, ends, True, operation.source.zero_point)


def _reach(sizes: Pair, dilation: Pair) -> Pair:
    return (sizes[0] - 1) * dilation[0] + 1, (sizes[1] - 1) * dilation[1] + 1


def _ends(sizes: Pair, reach: Pair, stride: Pair, before: Pair, after: Pair) -> tuple[Pair, Pair]:
    """What windows need of the padding before and behind each axis; what none reaches is left out."""
    found = []
    for size, wide, step, first, last in zip(sizes, reach, stride, before, after, strict=True):
        count = (size + first + last - wide) // step + 1
        found.append((first, max(0, (count - 1) * step + wide - size - first)))
    return found[0], found[1]


def _is_same(sizes: Pair, reach: Pair, stride: Pair, ends: tuple[Pair, Pair]) -> bool:
    """Whether this is TensorFlow Lite's padding SAME."""
    for size, wide, step, given in zip(sizes, reach, stride, ends, strict=True):
        total = max(0, (ceil(size / step) - 1) * step + wide - size)
        if given != (total // 2, total - total // 2):
            return False
    return True


def _padded(
    tensor: Translation, operation: Operation, ends: tuple[Pair, Pair], same: bool, fill: int
) -> tuple[int, int]:
    name = operation.inputs[0]
    number = tensor.read(name, channels_last(len(tensor.shapes[name])))
    if not any((*ends[0], *ends[1])):
        return number, VALID
    if same:
        return number, SAME
    source, grid = tensor.file.tensors[number], tensor.grids[name]
    around = np.array([(0, 0), *ends, (0, 0)], np.int32)
    shape = tuple(size + int(end.sum()) for size, end in zip(source.shape, around, strict=True))
    padded = tensor.file.add(code_tensor(f"{operation.output}/padded", grid, shape))
    inputs: tuple[int, ...] = (number, tensor.file.matrix(f"{operation.output}/paddings", around))
    if fill == grid.zero_point:
        tensor.operate("PAD", inputs, padded, version=2)
        return padded, VALID
    value: Any = np.array([fill], grid.dtype)
    filling = Tensor(
        name=f"{operation.output}/fill",
        shape=(1,),
        dtype=source.dtype,
        data=value.tobytes(),
        scales=source.scales,
        zero_points=source.zero_points,
    )
    tensor.operate("PADV2", (*inputs, tensor.file.add(filling)), padded, version=2)
    return padded, VALID
