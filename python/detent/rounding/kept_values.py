"""Values of all samples at a place of the network, kept while the block behind it is learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["KeptValues", "Shelf"]

_LARGEST: Final = 2.0**15
"""Magnitudes are brought below this, so that half precision holds them."""


class Shelf:
    """Room for values: memory as long as it lasts, then files.

    Args:
        memory_mb: how much memory all values on it may take together.
        folder: where files go; they are removed with it.
    """

    def __init__(self, memory_mb: int, folder: Path) -> None:
        self._left = memory_mb << 20
        self._folder = folder
        self._files = 0

    def array(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array to be filled."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size <= self._left:
            self._left -= size
            return np.empty(shape, dtype)
        self._files += 1
        return np.memmap(self._folder / f"values{self._files}", dtype, "w+", shape=tuple(shape))

    def give_back(self, array: npt.NDArray[Any]) -> None:
        """An array is no longer read."""
        if isinstance(array, np.memmap):
            Path(str(array.filename)).unlink()
        else:
            self._left += array.nbytes


class KeptValues:
    """One value for all samples: floating-point numbers in half precision, after a power of two of each sample.

    Args:
        shelf: where they lie.
        samples: how many there will be.
        axis: the samples' axis of the value.
    """

    def __init__(self, shelf: Shelf, samples: int, axis: int) -> None:
        self._shelf, self._samples, self.axis = shelf, samples, axis
        self._array: npt.NDArray[Any] | None = None
        self._dtype = torch.float32
        self._exponents = np.zeros(samples, np.int32)
        self._finite = np.ones(samples, np.bool_)
        self._channels_last = False

    def put(self, start: int, value: torch.Tensor) -> None:
        """Keep the samples from `start` on; different parts may be put at the same time, the first one alone."""
        first = value.detach().movedim(self.axis, 0)
        if self._array is None:
            self._dtype = value.dtype
            self._channels_last = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
            kind = np.float16 if value.dtype.is_floating_point else _numpy_type(value.dtype)
            shape = (first.shape[0], *self._laid_out(first).shape[1:])
            self._array = self._shelf.array((self._samples, *shape[1:]), kind)
        numbers = self._laid_out(first).cpu().numpy()
        place = slice(start, start + len(numbers))
        if self._array.dtype == np.float16:
            flat = np.abs(numbers.reshape(len(numbers), -1))
            largest = flat.max(axis=1, initial=0.0).astype(np.float64)
            self._finite[place] = np.isfinite(largest)
            _, exponents = np.frexp(np.where(self._finite[place], largest, 1.0) / _LARGEST)
            self._exponents[place] = exponents
            numbers = np.ldexp(numbers, -exponents.reshape(-1, *[1] * (numbers.ndim - 1)))
        self._array[place] = numbers

    def take(self, samples: npt.NDArray[np.int64]) -> torch.Tensor:
        """Some samples, as the network computes them."""
        assert self._array is not None
        numbers = torch.from_numpy(np.ascontiguousarray(self._array[samples])).to(self._dtype)
        if self._array.dtype == np.float16:
            units = np.ldexp(np.float32(1), self._exponents[samples])
            numbers *= torch.from_numpy(units).reshape(-1, *[1] * (numbers.dim() - 1))
        if self._channels_last:
            return numbers.permute(0, 3, 1, 2)
        return numbers.movedim(0, self.axis)

    @property
    def size(self) -> int:
        """Numbers of one sample."""
        assert self._array is not None
        return math.prod(self._array.shape[1:])

    @property
    def is_finite(self) -> bool:
        """Whether no sample holds NaN or infinity."""
        return bool(self._finite.all())

    def drop(self) -> None:
        """They are no longer read."""
        if self._array is not None:
            self._shelf.give_back(self._array)
            self._array = None

    def _laid_out(self, first: torch.Tensor) -> torch.Tensor:
        return first.permute(0, 2, 3, 1) if self._channels_last else first


def _numpy_type(dtype: torch.dtype) -> np.dtype[Any]:
    return torch.empty(0, dtype=dtype).numpy().dtype
