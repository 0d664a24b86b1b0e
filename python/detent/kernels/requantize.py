"""From accumulators to codes: the rules by which integer runtimes multiply with a real factor and round.

| rule | used by |
|---|---|
| `"float"` | onnxruntime, XNNPACK (LiteRT and ExecuTorch): a float32 product, rounded half to even |
| `"double_rounding"` | TensorFlow Lite for Microcontrollers, LiteRT's reference kernels: gemmlowp's doubled high product, then a shift, each of them rounded |
| `"ruy"` | LiteRT's optimized kernels: the same, with ties of the shift upward |
| `"single_rounding"` | LiteRT's reference `FULLY_CONNECTED`: one rounding of the exact product |
| `"int16x8"` | TensorFlow Lite with 16-bit activations: a multiplier of 16 bits on accumulators of 64 |

`csrc/kernels/requantize.h` has the formulas.
"""  # noqa: E501

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from detent import _core
from detent.kernels.arrays import ArrayLike, as_array

__all__ = ["RULES", "Requantization", "Rule", "fixed_point", "requantize"]

Rule = Literal["float", "double_rounding", "ruy", "single_rounding", "int16x8"]
RULES: Final[tuple[Rule, ...]] = get_args(Rule)

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Requantization:
    """What becomes of accumulators: `clamp(rule(accumulator) + zero_point, lowest, highest)`.

    Args:
        rule: how products with the factor are rounded.
        factor: float32, `[1]` or one for each channel, for rule `"float"` only.
        multiplier: int32 of the same shape, for the other rules: the factor is `multiplier * 2^(shift - 31)`.
        shift: int32, likewise.
        zero_point: of the codes.
        lowest: code; activations fused behind the layer raise it.
        highest: code.
    """

    rule: Rule
    factor: FloatArray | None = None
    multiplier: IntArray | None = None
    shift: IntArray | None = None
    zero_point: int
    lowest: int
    highest: int

    @classmethod
    def of(
        cls, rule: Rule, factors: npt.NDArray[np.float64], *, zero_point: int, lowest: int, highest: int
    ) -> Requantization:
        """From real factors `[1]` or `[channels]`, (input step) x (kernel step) / (output step), as the rule has them.

        Raises:
            ValueError: a factor is not positive and finite, or too large for the rule.
        """
        ends: dict[str, Any] = {"rule": rule, "zero_point": zero_point, "lowest": lowest, "highest": highest}
        if rule == "float":
            return cls(factor=np.asarray(factors).astype(np.float32), **ends)
        multiplier, shift = fixed_point(factors)
        return cls(multiplier=multiplier, shift=shift, **ends)

    def for_core(self) -> _core.RequantizeFactors:
        """The same as the compiled kernels take it."""
        return _core.RequantizeFactors(
            self.rule, self.factor, self.multiplier, self.shift, self.zero_point, self.lowest, self.highest
        )


def fixed_point(factors: npt.NDArray[np.float64]) -> tuple[IntArray, IntArray]:
    """Multipliers of 31 bits and shifts, `factor = multiplier * 2^(shift - 31)`, as TensorFlow Lite finds them.

    Args:
        factors: float64, positive and finite.

    Returns:
        Two int32 arrays like `factors`; the multiplier of a factor below 2^-32 is 0.

    Raises:
        ValueError: a factor is not positive and finite, or 2^30 or more.
    """
    real = np.asarray(factors, np.float64)
    if not bool(np.all((real > 0) & np.isfinite(real))):
        raise ValueError("factors must be positive and finite")
    mantissa, exponent = np.frexp(real)
    multiplier = np.floor(mantissa * 2.0**31 + 0.5).astype(np.int64)
    carried = multiplier == 2**31
    multiplier = np.where(carried, multiplier // 2, multiplier)
    exponent = exponent.astype(np.int64) + carried
    if bool(np.any(exponent > 30)):
        raise ValueError(f"factors must be below 2^30, got {real.max():.4g}")
    small = exponent < -31
    return np.where(small, 0, multiplier).astype(np.int32), np.where(small, 0, exponent).astype(np.int32)


def requantize(
    acc: ArrayLike, how: Requantization, dtype: npt.DTypeLike, *, axis: int | None = None
) -> npt.NDArray[Any]:
    """Codes of `dtype`, with the shape and memory order of `acc`.

    Args:
        acc: int32, or int64 for the rules `"float"` and `"int16x8"`; dense.
        how: with one factor, or one for each channel of `axis`.
        dtype: uint8, int8, uint16, int16 or int32.
        axis: of channels with factors of their own.

    Raises:
        ValueError: a wrong dtype, shape, layout or number; the message says which.
        TypeError: not an array.
    """
    array = as_array(acc, "acc")
    out = np.empty_like(array, dtype)
    _core.requantize(array, axis, how.for_core(), out)
    return out
