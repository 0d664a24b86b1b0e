"""`CodeGrid`: what the codes of a tensor stand for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detent.kernels.quantize import quantize
from detent.kernels.requantize import Requantization, Rule

__all__ = ["CodeGrid"]

Codes = npt.NDArray[Any]

_LARGEST: Final = {"uint8": 255, "int8": 127, "uint16": 65535, "int16": 32767}


@dataclass(frozen=True, kw_only=True)
class CodeGrid:
    """The grid of a tensor of codes: a value is `(code - zero_point) * scale`.

    Args:
        scale: a float32 number.
        zero_point: code of zero.
        lowest: code.
        highest: code.
        storage: type that holds the codes: uint8, int8, uint16 or int16.
    """

    scale: float
    zero_point: int
    lowest: int
    highest: int
    storage: str

    @classmethod
    def of(cls, scale: float, zero_point: int, lowest: int, highest: int) -> CodeGrid:
        """A grid whose codes are held by the narrowest type that has them."""
        names = ("uint8", "uint16") if lowest >= 0 else ("int8", "int16")
        storage = next(name for name in names if highest <= _LARGEST[name])
        return cls(scale=scale, zero_point=zero_point, lowest=lowest, highest=highest, storage=storage)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the codes."""
        return np.dtype(self.storage)

    @property
    def whole(self) -> CodeGrid:
        """The same with all codes that the type has."""
        ends = np.iinfo(self.dtype)
        return replace(self, lowest=int(ends.min), highest=int(ends.max))

    def codes(self, values: npt.NDArray[np.float32]) -> Codes:
        """Codes of values, rounded half to even."""
        scale, zero = np.array([self.scale], np.float32), np.array([self.zero_point], np.int32)
        dense = np.ascontiguousarray(values, np.float32)
        return quantize(dense, scale, zero, self.lowest, self.highest, dtype=self.dtype.name)

    @property
    def every_code(self) -> npt.NDArray[np.int64]:
        """For all numbers that the type has, the least one first, the code next to them."""
        ends = np.iinfo(self.dtype)
        return np.clip(np.arange(ends.min, ends.max + 1), self.lowest, self.highest)

    def centred(self, codes: Codes) -> npt.NDArray[np.int64]:
        """Codes less the zero point."""
        return codes.astype(np.int64) - self.zero_point

    def values(self, codes: Codes) -> npt.NDArray[np.float32]:
        """Values of codes, float32."""
        found: npt.NDArray[np.float32] = (codes.astype(np.int32) - np.int32(self.zero_point)).astype(np.float32)
        found *= np.float32(self.scale)
        return found

    def clipped(self, numbers: npt.NDArray[Any]) -> Codes:
        """Codes of whole numbers of steps."""
        ends = self.lowest - self.zero_point, self.highest - self.zero_point
        found: Codes = (np.clip(numbers, *ends) + self.zero_point).astype(self.dtype)
        return found

    def is_within(self, other: CodeGrid) -> bool:
        """Whether codes are codes of the other grid as they are."""
        alike = (self.scale, self.zero_point, self.dtype) == (other.scale, other.zero_point, other.dtype)
        return alike and other.lowest <= self.lowest and self.highest <= other.highest

    def clamped(self, lower: float, upper: float) -> CodeGrid:
        """The same with the codes of values in `lower..upper` only."""
        limits = np.array([lower, upper], np.float32)
        low, high = (int(code) for code in self.codes(limits))
        return replace(self, lowest=low, highest=high)

    def requantization(self, rule: Rule, factors: npt.NDArray[np.float64]) -> Requantization:
        """What accumulators become with factors `[1]` or `[channels]`."""
        return Requantization.of(
            rule,
            factors,
            zero_point=self.zero_point,
            lowest=self.lowest,
            highest=self.highest,
        )
