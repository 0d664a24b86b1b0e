"""The stored form of tensor statistics: names, dtypes, and the checks that a state read from a file must pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["DTYPES", "HISTOGRAM_BITS", "SUM_DIGITS", "SUM_PLACES", "State", "check_state", "exact_integer"]

State = dict[str, npt.NDArray[Any]]

HISTOGRAM_BITS: Final = 12
"""The histogram's range is 2^12 bins on each side of zero."""
SUM_DIGITS: Final = 22
SUM_PLACES: Final = 352
"""Exact sums are integers of 22 digits of 32 bits, lowest first, in units of 2^-352; the top digit has the sign."""

_SCALARS: Final = {
    "samples": np.int64,
    "count": np.int64,
    "zeros": np.int64,
    "nonfinite": np.int64,
    "minimum": np.float32,
    "maximum": np.float32,
    "exponent": np.int64,
    "first_bin": np.int64,
}
_VECTORS: Final = {"counts": np.int64, "sum_digits": np.int64, "sum_of_squares_digits": np.int64}
_CHANNELS: Final = {
    "channel_axis": np.int64,
    "channel_minimum": np.float32,
    "channel_maximum": np.float32,
    "channel_nonfinite": np.int64,
    "channel_sum_digits": np.int64,
}
DTYPES: Final[dict[str, Any]] = {**_SCALARS, **_VECTORS, **_CHANNELS}
"""dtype of every field of a state; those of channels are absent where channels are not told apart."""


def exact_integer(digits: npt.NDArray[np.int64]) -> int:
    """The integer that canonical digits stand for, in units of 2^-352."""
    low = int.from_bytes(digits[:-1].astype("<u4").tobytes(), "little")
    return low + (int(digits[-1]) << 32 * (SUM_DIGITS - 1))


def check_state(state: Mapping[str, Any]) -> State:
    """The state as arrays the kernels take, once nothing in it contradicts anything else.

    Raises:
        ValueError: a field is missing, unknown, of the wrong dtype or shape, or contradicts another.
    """
    _check_names(state)
    checked = {name: np.ascontiguousarray(value).reshape(value.shape) for name, value in state.items()}
    for name, value in checked.items():
        if value.dtype != DTYPES[name]:
            _refuse(f"{name} has dtype {value.dtype} instead of {np.dtype(DTYPES[name])}")
    for name in [*_SCALARS, *(["channel_axis"] if "channel_axis" in checked else [])]:
        if checked[name].ndim:
            _refuse(f"{name} has shape {list(checked[name].shape)} instead of being one number")
    if checked["counts"].ndim != 1:
        _refuse("counts is not a vector")
    for name in ("sum_digits", "sum_of_squares_digits"):
        if checked[name].shape != (SUM_DIGITS,):
            _refuse(f"{name} has shape {list(checked[name].shape)} instead of [{SUM_DIGITS}]")
    for name in ("sum_digits", "sum_of_squares_digits", "channel_sum_digits"):
        if name in checked:
            _check_digits(name, checked[name])
    _check_counts(checked)
    _check_range(checked)
    if "channel_axis" in checked:
        _check_channels(checked)
    return checked


def _refuse(what: str) -> None:
    raise ValueError(f"not a state of tensor statistics: {what}")


def _check_names(state: Mapping[str, Any]) -> None:
    expected = set(_SCALARS) | set(_VECTORS)
    if set(state) & set(_CHANNELS):
        expected |= set(_CHANNELS)
    if missing := sorted(expected - set(state)):
        _refuse(f"{', '.join(missing)} missing")
    if unknown := sorted(set(state) - expected):
        _refuse(f"{', '.join(map(str, unknown))} unknown")
    for name, value in state.items():
        if not isinstance(value, (np.ndarray, np.generic)):
            _refuse(f"{name} is not an array")


def _check_digits(name: str, digits: npt.NDArray[np.int64]) -> None:
    if digits.shape[-1:] in ((), (0,)):
        _refuse(f"{name} has no digits")
    low, top = digits[..., :-1], digits[..., -1]
    if np.any(low < 0) or np.any(low >= 1 << 32) or np.any(top < -(1 << 31)) or np.any(top >= 1 << 31):
        _refuse(f"{name} has a digit out of range")


def _check_counts(state: State) -> None:
    counts, first = state["counts"], int(state["first_bin"])
    half = 1 << HISTOGRAM_BITS
    for name in ("samples", "count", "zeros", "nonfinite"):
        if int(state[name]) < 0:
            _refuse(f"{name} is negative")
    if np.any(counts < 0):
        _refuse("counts has a negative entry")
    if sum(counts.tolist()) != int(state["count"]):
        _refuse(f"counts add up to {sum(counts.tolist())}, count says {int(state['count'])}")
    if not (-half <= first and first + len(counts) <= half):
        _refuse(f"bins {first} to {first + len(counts) - 1} lie outside the histogram")
    if len(counts) and not (counts[0] and counts[-1]):
        _refuse("counts begins or ends with an empty bin")
    zero_bin = int(counts[-first]) if 0 <= -first < len(counts) else 0
    if int(state["zeros"]) > zero_bin:
        _refuse(f"{int(state['zeros'])} zeros do not fit into the {zero_bin} values of their bin")
    if int(state["count"]) and not int(state["samples"]):
        _refuse("values without samples")


def _check_range(state: State) -> None:
    low, high, count = float(state["minimum"]), float(state["maximum"]), int(state["count"])
    exponent, first = int(state["exponent"]), int(state["first_bin"])
    magnitude = max(abs(low), abs(high)) if count else 0.0
    total, squares = exact_integer(state["sum_digits"]), exact_integer(state["sum_of_squares_digits"])
    if count == 0:
        if (low, high) != (math.inf, -math.inf) or total or squares or first:
            _refuse("a range, bin or sum without values")
    elif not (math.isfinite(low) and math.isfinite(high) and low <= high):
        _refuse(f"the range [{low}, {high}] is impossible")
    if exponent != math.frexp(max(magnitude, 2.0**-149))[1] - HISTOGRAM_BITS:
        _refuse(f"exponent {exponent} does not suit the range [{low}, {high}]")
    if not count:
        return
    for value, occupied, which in ((low, first, "first"), (high, first + len(state["counts"]) - 1, "last")):
        if math.floor(math.ldexp(value, -exponent)) != occupied:
            _refuse(f"the {which} occupied bin {occupied} does not hold {value}")
    # Float64 sums of runs are off by much less than this share of what they add.
    slack = 1.0 + 2.0**-30
    if abs(total) / (1 << SUM_PLACES) > magnitude * count * slack:
        _refuse("the sum is larger than its terms allow")
    if not 0.0 <= squares / (1 << SUM_PLACES) <= magnitude * magnitude * count * slack:
        _refuse("the sum of squares is larger than its terms allow")


def _check_channels(state: State) -> None:
    shape = state["channel_minimum"].shape
    for name, expected in (
        ("channel_minimum", (*shape[:1],)),
        ("channel_maximum", (*shape[:1],)),
        ("channel_nonfinite", (*shape[:1],)),
        ("channel_sum_digits", (*shape[:1], SUM_DIGITS)),
    ):
        if state[name].shape != expected or not shape:
            _refuse(f"{name} has shape {list(state[name].shape)}, with {shape[0] if shape else 'no'} channels")
    low, high, nonfinite = state["channel_minimum"], state["channel_maximum"], state["channel_nonfinite"]
    values = int(state["count"]) + int(state["nonfinite"])
    channels = shape[0]
    if values % max(1, channels):
        _refuse(f"{values} values do not divide among {channels} channels")
    if values and not channels:
        _refuse("values without channels")
    if np.any(nonfinite < 0) or sum(nonfinite.tolist()) != int(state["nonfinite"]):
        _refuse("channel_nonfinite does not add up to nonfinite")
    counts = values // max(1, channels) - nonfinite
    empty = counts == 0
    if np.any(counts < 0) or np.any((low == np.inf) != empty) or np.any((high == -np.inf) != empty):
        _refuse("channels and their counts contradict each other")
    if np.any(low[~empty] > high[~empty]) or np.any(np.isnan(low)) or np.any(np.isnan(high)):
        _refuse("the range of a channel is impossible")
    if channels and (low.min() != state["minimum"] or high.max() != state["maximum"]):
        _refuse("the ranges of the channels do not make up the range of the tensor")
