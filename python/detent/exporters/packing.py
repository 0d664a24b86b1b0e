"""Tensors as they lie in a weights file.

Codes of fewer bits than their type are packed without gaps, the lowest bit first. Single numbers, zero points that are
all zero and steps of biases that are products of other steps have no array: `entry` tells them. A tensor that does not
lie in C order is stored as the transposed one that does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from detent.errors import ConfigError
from detent.records.codes import pack_codes, unpack_codes

__all__ = ["Packing", "compress_steps", "pack_tensor", "refers", "unpack_tensor"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Packing:
    """One tensor.

    Args:
        entry: what a reader must know to unpack it; empty for an array that is the tensor.
        array: as stored; None if nothing is.
    """

    entry: dict[str, Any]
    array: Array | None


def pack_tensor(tensor: torch.Tensor, bits: int | None) -> Packing:
    """A tensor as it is stored.

    Args:
        tensor: on the CPU.
        bits: width of its codes; None for a tensor of other numbers.

    Raises:
        ConfigError: numbers that safetensors does not hold, or codes that `bits` do not hold.
    """
    try:
        values = tensor.detach().numpy()
    except TypeError:  # bfloat16 and the like
        values = np.empty(0, object)
    if values.dtype.kind not in "biuf":
        raise ConfigError(f"a tensor of type {tensor.dtype} cannot be written", remedy="convert it to float32")
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda axis: (-strides[axis], axis))
    moved = not tensor.is_contiguous() and tensor.permute(order).is_contiguous()
    entry: dict[str, Any] = {"order": order} if moved else {}
    stored = np.ascontiguousarray(values.transpose(order) if moved else values)
    kind = values.dtype.name
    if bits is not None and bits < 8 * values.dtype.itemsize:
        signed = values.dtype.kind == "i"
        packed = pack_codes(stored, bits)
        if not np.array_equal(unpack_codes(packed, stored.size, bits, signed=signed), stored.reshape(-1)):
            raise ConfigError(f"codes of {bits} bits are expected, and some do not fit")
        entry.update(bits=bits, signed=signed, shape=list(stored.shape), type=kind)
        return Packing(entry=entry, array=np.frombuffer(packed, np.uint8))
    if values.dtype == np.int32 and values.size and not values.any():
        return Packing(entry={"zeros": list(values.shape), "type": kind}, array=None)
    if values.dtype == np.int32 and values.shape == (1,):
        return _number(values)
    return Packing(entry=entry, array=stored)


def compress_steps(packings: dict[str, Packing]) -> None:
    """Put references in place of vectors that are float32 products of a number and a vector; take the numbers out."""
    plain = {path: one.array for path, one in packings.items() if one.array is not None and not one.entry}
    steps = {path: array for path, array in plain.items() if array.dtype == np.float32 and array.ndim == 1}
    numbers = {path: array for path, array in steps.items() if len(array) == 1}
    vectors = {path: array for path, array in steps.items() if len(array) > 1}
    found = {
        _start(number * vector[:1], vector): (number_path, path)
        for path, vector in vectors.items()
        for number_path, number in numbers.items()
    }
    for path, vector in vectors.items():
        factors = found.get(_start(vector, vector))
        if factors is not None and path not in factors and np.array_equal(_product(steps, factors), vector):
            packings[path] = Packing(entry={"product": list(factors)}, array=None)
            found = {start: pair for start, pair in found.items() if path not in pair}
    for path, number in numbers.items():
        packings[path] = _number(number)


def _number(array: Array) -> Packing:
    return Packing(entry={"number": array[0].item(), "type": array.dtype.name}, array=None)


def _start(product: Array, vector: Array) -> tuple[int, bytes]:
    return len(vector), product[:1].tobytes()


def _product(steps: Mapping[str, Array], factors: tuple[str, str]) -> Array:
    number, vector = factors
    return steps[number] * steps[vector]


def refers(entry: Mapping[str, Any]) -> bool:
    """Whether a tensor is made of others, which must be unpacked before it."""
    return "same_as" in entry or "product" in entry


def unpack_tensor(array: Array | None, entry: Mapping[str, Any], others: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The tensor that was packed.

    Args:
        array: as stored; None if nothing is.
        entry: as in `Packing`.
        others: tensors unpacked before, one of which it may be.

    Raises:
        KeyError: `entry` is not complete.
        ValueError: array and entry do not fit.
    """
    if "same_as" in entry:
        return others[entry["same_as"]]
    if "product" in entry:
        number, vector = entry["product"]
        return others[number] * others[vector]
    if "number" in entry:
        return torch.from_numpy(np.array([entry["number"]], entry["type"]))
    if "zeros" in entry:
        return torch.from_numpy(np.zeros(entry["zeros"], entry["type"]))
    if array is None:
        raise ValueError("an array is missing")
    if "bits" in entry:
        count, bits = int(np.prod(entry["shape"], dtype=object)), entry["bits"]
        if array.nbytes != -(-count * bits // 8):
            raise ValueError(f"{count} codes of {bits} bits do not take {array.nbytes} bytes")
        codes = unpack_codes(array.tobytes(), count, bits, signed=entry["signed"])
        array = codes.astype(entry["type"]).reshape(entry["shape"])
    tensor = torch.from_numpy(array.copy())
    if "order" in entry:
        order = entry["order"]
        tensor = tensor.permute([order.index(axis) for axis in range(len(order))])
    if "parameter" in entry:
        return nn.Parameter(tensor, requires_grad=entry["parameter"]["trained"])
    return tensor
