"""Values that only change places, as TensorFlow Lite's operators.

A move of the integer program is a list of places; what it is in the file depends on how its two tensors are stored. The
cheapest operator that moves just these places is taken, from none at all to a gathering of single codes.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from detent.errors import UnsupportedOpError
from detent.exporters.tflite_file import code_tensor
from detent.exporters.tflite_layout import NEW, Layout, positions, stored_shape
from detent.integer.operations import Move

if TYPE_CHECKING:
    from detent.exporters.tflite_operators import Translation

__all__ = ["add_move", "relay", "transposed"]

Places = npt.NDArray[np.int64]
_MOST_AXES = 5


def transposed(tensor: Translation, name: str, layout: Layout) -> int:
    """The number of a tensor brought into another layout."""
    stem = f"{name}/{'_'.join('new' if axis == NEW else str(axis) for axis in layout)}"
    shape = stored_shape(tensor.shapes[name], layout)
    end = tensor.file.add(code_tensor(stem, tensor.grids[name], shape))
    relay(tensor, name, (tensor.numbers[name], tensor.layouts[name]), (end, layout))
    return end


def relay(tensor: Translation, name: str, source: tuple[int, Layout], end: tuple[int, Layout]) -> None:
    """Bring a stored tensor from one layout into another: numbers of both, which hold values of `name`."""
    (number, chosen), (last, layout) = source, end
    # Axes of one entry come and go by reshaping, the others change places.
    bare, wanted = (tuple(axis for axis in one if axis != NEW) for one in (chosen, layout))
    steps = [order for order, before in ((bare, chosen), (wanted, bare), (layout, wanted)) if order != before]
    for place, order in enumerate(steps):
        grid = tensor.file.tensors[number]
        following = last
        if place < len(steps) - 1:
            shape = stored_shape(tensor.shapes[name], order)
            following = tensor.file.add(replace(grid, name=f"{name}/step_{place}", shape=shape))
        if order == wanted and bare != wanted:
            axes = tensor.file.constant(f"{name}/order", [bare.index(axis) for axis in wanted])
            tensor.operate("TRANSPOSE", (number, axes), following, version=2)
        else:
            _reshaped(tensor, name, number, following)
        number = following


def add_move(tensor: Translation, operation: Move) -> None:
    """The operators of a move.

    Raises:
        UnsupportedOpError: no operator moves values of 16 bits so.
    """
    (name,) = operation.inputs
    number = tensor.numbers[name]
    shape = tensor.file.tensors[number].shape
    output, grid = operation.output, operation.grid
    result = stored_shape(tensor.shapes[output], tensor.layouts[output])
    places = _stored_places(tensor, operation)
    if np.array_equal(places.reshape(-1), np.arange(int(np.prod(shape[1:])))):
        tensor.numbers[output], tensor.grids[output] = number, grid
        if shape != result:
            _reshaped(tensor, output, number, tensor.output_of(operation))
        return
    for recognize in (_pad, _slice, _transpose, _resize):
        found = recognize(tensor, output, shape, places.reshape(result[1:]))
        if found is not None:
            kind, parameters, after, options = found
            direct = after == result
            end = (
                tensor.output_of(operation)
                if direct
                else tensor.file.add(code_tensor(f"{output}/{kind.lower()}", grid, after))
            )
            tensor.operate(kind, (number, *parameters), end, version=2, **options)
            if not direct:
                _reshaped(tensor, output, end, tensor.output_of(operation))
            return
    _gather(tensor, operation, places.reshape(-1))


def _stored_places(tensor: Translation, operation: Move) -> Places:
    """For each stored place of the result, the stored place of the source; -1 for zero."""
    (name,) = operation.inputs
    inner, outer = tensor.shapes[name][1:], tensor.shapes[operation.output][1:]
    source = positions((1, *inner), tensor.layouts[name]).reshape(-1)
    stored_at = np.empty_like(source)
    stored_at[source] = np.arange(source.size)
    wanted = positions((1, *outer), tensor.layouts[operation.output]).reshape(-1)
    places = np.arange(source.size) if operation.places is None else operation.places
    moved = places[wanted]
    found: Places = np.where(moved < 0, -1, stored_at[np.maximum(moved, 0)])
    return found


def _reshaped(tensor: Translation, output: str, source: int, end: int) -> None:
    shape = tensor.file.constant(f"{output}/shape", tensor.file.tensors[end].shape)
    tensor.operate("RESHAPE", (source, shape), end)


Found = tuple[str, tuple[int, ...], tuple[int, ...], dict[str, int]]


def _pad(tensor: Translation, output: str, shape: tuple[int, ...], places: Places) -> Found | None:
    there = np.argwhere(places >= 0)
    if places.ndim != len(shape) - 1 or not len(there) or bool((places >= 0).all()):
        return None
    first, last = there.min(axis=0), there.max(axis=0) + 1
    box = places[tuple(slice(begin, end) for begin, end in zip(first, last, strict=True))]
    if box.shape != shape[1:] or not np.array_equal(box.reshape(-1), np.arange(box.size)):
        return None
    ends = np.stack([first, np.array(places.shape) - last], axis=1)
    paddings = tensor.file.matrix(f"{output}/paddings", np.concatenate([[(0, 0)], ends]).astype(np.int32))
    return "PAD", (paddings,), (shape[0], *places.shape), {}


def _along_axes(shape: tuple[int, ...], places: Places) -> list[Places] | None:
    """For each axis the entries that are taken, where these do not depend on the other axes."""
    if places.ndim != len(shape) - 1 or bool((places < 0).any()):
        return None
    found = []
    for axis, taken in enumerate(np.unravel_index(places, shape[1:])):
        entries = np.moveaxis(taken, axis, 0).reshape(places.shape[axis], -1)
        if not np.array_equal(entries, np.broadcast_to(entries[:, :1], entries.shape)):
            return None
        found.append(entries[:, 0])
    return found


def _slice(tensor: Translation, output: str, shape: tuple[int, ...], places: Places) -> Found | None:
    axes = _along_axes(shape, places)
    if axes is None or len(shape) > _MOST_AXES:
        return None
    begins, ends, steps = [0], [shape[0]], [1]
    for entries in axes:
        step = int(entries[1] - entries[0]) if len(entries) > 1 else 1
        if step < 1 or bool(np.any(np.diff(entries) != step)):
            return None
        begins.append(int(entries[0]))
        ends.append(int(entries[-1]) + 1)
        steps.append(step)
    parameters = tuple(
        tensor.file.constant(f"{output}/{word}", numbers)
        for word, numbers in (("begin", begins), ("end", ends), ("strides", steps))
    )
    return "STRIDED_SLICE", parameters, (shape[0], *places.shape), {}


def _transpose(tensor: Translation, output: str, shape: tuple[int, ...], places: Places) -> Found | None:
    numbers = np.arange(int(np.prod(shape[1:]))).reshape(shape[1:])
    if places.size != numbers.size or len(shape) > _MOST_AXES:
        return None
    for order in permutations(range(len(shape) - 1)):
        if np.array_equal(numbers.transpose(order).reshape(-1), places.reshape(-1)):
            parameter = tensor.file.constant(f"{output}/order", [0, *(1 + axis for axis in order)])
            return "TRANSPOSE", (parameter,), (shape[0], *(shape[1 + axis] for axis in order)), {}
    return None


def _resize(tensor: Translation, output: str, shape: tuple[int, ...], places: Places) -> Found | None:
    """Rows and columns repeated: the nearest ones in a larger picture."""
    axes = _along_axes(shape, places)
    if axes is None or len(shape) != 4:
        return None
    for entries, size in zip(axes, shape[1:], strict=True):
        if not np.array_equal(entries, np.arange(len(entries)) * size // len(entries)):
            return None
    if places.shape[2] != shape[3]:
        return None
    size = tensor.file.constant(f"{output}/size", places.shape[:2])
    return "RESIZE_NEAREST_NEIGHBOR", (size,), (shape[0], *places.shape), {}


def _gather(tensor: Translation, operation: Move, places: Places) -> None:
    """Single codes by their places in the flattened sample, with a zero behind them where some are zero."""
    (name,) = operation.inputs
    number, grid, output = tensor.numbers[name], operation.grid, operation.output
    if grid.dtype.itemsize > 1:
        raise UnsupportedOpError(
            "this move has no operator but GATHER, which takes no 16-bit codes on microcontrollers",
            remedy="use 8-bit activations here",
        )
    samples, count = tensor.file.tensors[number].shape[0], int(np.prod(tensor.shapes[name][1:]))
    flat = tensor.file.add(code_tensor(f"{output}/flat", grid, (samples, count)))
    _reshaped(tensor, output, number, flat)
    if bool((places < 0).any()):
        longer = tensor.file.add(code_tensor(f"{output}/flat_and_zero", grid, (samples, count + 1)))
        paddings = tensor.file.matrix(f"{output}/zero", np.array([(0, 0), (0, 1)], np.int32))
        tensor.operate("PAD", (flat, paddings), longer, version=2)
        flat = longer
    entries = tensor.file.constant(f"{output}/places", np.where(places < 0, count, places).tolist())
    taken = tensor.file.add(code_tensor(f"{output}/taken", grid, (samples, len(places))))
    tensor.operate("GATHER", (flat, entries), taken, version=2, axis=1)
    _reshaped(tensor, output, taken, tensor.output_of(operation))
