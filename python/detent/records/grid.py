"""`Grid`: the set of values a tensor may take after quantization.

A grid is described by what a person would change (kind, bits, threshold or range); step and zero point follow from
that by one rule each, so that an edited plan is always consistent:

* power-of-two and symmetric, threshold T, n bits, s = 1 if signed: step = T / 2^(n-s), zero point 0;
* uniform over [lower, upper]: widened to hold zero, step = (upper - lower) / (2^n - 1), and the integer zero point
  puts real zero exactly on the grid;
* lut: any increasing codebook of 2^n values in units of T / 2^7, times the threshold (a per-channel scale); one for the
  tensor or one for each channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from detent._registry import unknown_name
from detent.errors import ConfigError
from detent.kernels.quantize import (
    dequantize,
    fake_quantize,
    lut_dequantize,
    lut_fake_quantize,
    lut_quantize,
    quantize,
)

__all__ = ["GRID_KINDS", "LUT_STEPS", "FloatVector", "Grid", "GridKind"]

GridKind = Literal["power_of_two", "symmetric", "uniform", "lut"]
GRID_KINDS: Final[tuple[GridKind, ...]] = get_args(GridKind)
LUT_STEPS: Final = 128
"""Codebook entries are in units of threshold / LUT_STEPS."""

FloatVector = npt.NDArray[np.float32]
IntVector = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """The representable values of one tensor.

    Args:
        kind: `"power_of_two"`, `"symmetric"`, `"uniform"` or `"lut"`.
        bits: code width, 1 to 16 (2 to 16 if signed, 1 to 7 for lut).
        signed: whether codes are signed. For uniform grids this shifts codes and zero point only.
        threshold: real clipping limits, float32 `[n]`; n = 1 for a per-tensor grid. Not for uniform grids.
        lower: real lower limits, float32 `[n]`, uniform grids only.
        upper: real upper limits, float32 `[n]`, uniform grids only.
        axis: channel axis the vectors run along; None for a per-tensor grid.
        group_size: for grids per group along the input axis (axis 1 when `axis` is 0), channels per group; the vectors
            then have one entry per (channel, group), channel first.
        narrow_range: drop the lowest code (signed symmetric grids; TFLite and TensorRT weights).
        table: codebook of a lut grid, float32 `[2^bits]`, increasing, in units of threshold / 128; or one for each
            entry of `threshold`, `[n, 2^bits]`.

    Raises:
        ConfigError: the description contradicts itself.
    """

    kind: GridKind
    bits: int
    signed: bool
    threshold: FloatVector | None = None
    lower: FloatVector | None = None
    upper: FloatVector | None = None
    axis: int | None = None
    group_size: int | None = None
    narrow_range: bool = False
    table: FloatVector | None = None

    def __post_init__(self) -> None:
        if self.kind not in GRID_KINDS:
            raise unknown_name("grid kind", self.kind, GRID_KINDS)
        self._check_types()
        most = 7 if self.kind == "lut" else 16
        least = 2 if self.signed and self.kind not in ("uniform", "lut") else 1
        if not isinstance(self.bits, int) or isinstance(self.bits, bool) or not least <= self.bits <= most:
            raise ConfigError(
                f"bits must be a whole number in {least}..{most} for a {'signed' if self.signed else 'unsigned'} "
                f"{self.kind} grid, got {self.bits!r}"
            )
        if self.kind == "uniform":
            if self.threshold is not None or self.lower is None or self.upper is None:
                raise ConfigError("a uniform grid takes `lower` and `upper`, and no `threshold`")
            object.__setattr__(self, "lower", _vector(self.lower, "lower"))
            object.__setattr__(self, "upper", _vector(self.upper, "upper"))
            if len(self.lower) != len(self.upper) or bool(np.any(self.lower > self.upper)):
                raise ConfigError("`lower` and `upper` must have the same length and lower <= upper")
        else:
            if self.threshold is None or self.lower is not None or self.upper is not None:
                raise ConfigError(f"a {self.kind} grid takes `threshold`, and neither `lower` nor `upper`")
            object.__setattr__(self, "threshold", _vector(self.threshold, "threshold"))
            self._check_threshold()
        if self.axis is None and self.size != 1:
            raise ConfigError(f"a per-tensor grid has one entry, got {self.size}", remedy="give the channel `axis`")
        if self.group_size is not None and (self.axis is None or self.group_size < 1):
            raise ConfigError("`group_size` needs an `axis` and must be at least 1")
        if self.narrow_range and not (self.signed and self.kind in ("power_of_two", "symmetric")):
            raise ConfigError("`narrow_range` is for signed power-of-two and symmetric grids")
        self._check_table()
        self._check_step()

    def _check_types(self) -> None:
        # A plan edited by hand may say "false" where false is meant, which Python would take for true.
        for name in ("signed", "narrow_range"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"`{name}` must be true or false, got {getattr(self, name)!r}")
        for name in ("axis", "group_size"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                raise ConfigError(f"`{name}` must be a whole number, got {value!r}")

    def _check_step(self) -> None:
        with np.errstate(over="ignore"):
            scale = self.scale
        if not bool(np.all((scale > 0) & np.isfinite(scale))):
            raise ConfigError(
                f"the step of a {self.bits}-bit {self.kind} grid is not a float32 number at these limits",
                remedy="give limits between 1e-30 and 1e38 in magnitude",
            )

    def _check_threshold(self) -> None:
        threshold = self.threshold
        if threshold is None or bool(np.any(threshold <= 0)):
            raise ConfigError("every threshold must be positive")
        if self.kind == "power_of_two" and bool(np.any(np.frexp(threshold)[0] != 0.5)):
            wrong = float(threshold[np.frexp(threshold)[0] != 0.5][0])
            raise ConfigError(
                f"threshold {wrong!r} of a power_of_two grid is not a power of two",
                remedy=f"use {2.0 ** round(float(np.log2(wrong)))!r}, or kind 'symmetric'",
            )

    def _check_table(self) -> None:
        if (self.table is not None) != (self.kind == "lut"):
            raise ConfigError("a codebook `table` belongs to a lut grid and only there")
        if self.table is not None:
            table = _array(self.table, "table", (1, 2))
            object.__setattr__(self, "table", table)
            if table.shape[-1] != 1 << self.bits or bool(np.any(np.diff(table) < 0)):
                raise ConfigError(f"the codebook of a {self.bits}-bit lut grid has {1 << self.bits} values, increasing")
            if table.ndim == 2 and (self.axis is None or len(table) != self.size or self.group_size is not None):
                raise ConfigError(f"{len(table)} codebooks need as many channels along `axis`, and no groups")

    @property
    def size(self) -> int:
        """Entries of the scale: 1 for a per-tensor grid, else channels (times groups)."""
        vector = self.upper if self.threshold is None else self.threshold
        assert vector is not None
        return len(vector)

    @property
    def qmin(self) -> int:
        """Lowest code."""
        return (-(1 << (self.bits - 1)) + self.narrow_range) if self.signed else 0

    @property
    def qmax(self) -> int:
        """Highest code."""
        return (1 << (self.bits - self.signed)) - 1

    @cached_property
    def scale(self) -> FloatVector:
        """Step of the grid, float32 `[n]` (for lut: threshold / 128)."""
        if self.threshold is not None:
            steps = LUT_STEPS if self.kind == "lut" else 1 << (self.bits - self.signed)
            scale: FloatVector = self.threshold / np.float32(steps)
            return scale
        return self._uniform[0]

    @cached_property
    def zero_point(self) -> IntVector:
        """Code of real zero, int32 `[n]`; zeros for symmetric and power-of-two grids."""
        if self.threshold is not None:
            return np.zeros(self.size, np.int32)
        return self._uniform[1]

    @cached_property
    def _uniform(self) -> tuple[FloatVector, IntVector]:
        assert self.lower is not None
        assert self.upper is not None
        lower = np.minimum(self.lower.astype(np.float64), 0.0)
        upper = np.maximum(self.upper.astype(np.float64), 0.0)
        steps = (1 << self.bits) - 1
        scale = ((upper - lower) / steps).astype(np.float32)
        # A constant zero tensor still gets a valid grid.
        scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(2.0**-16), scale).astype(np.float32)
        zero_point = np.rint(-lower / scale.astype(np.float64)).astype(np.int64).clip(0, steps) + self.qmin
        return scale, zero_point.astype(np.int32)

    @property
    def limits(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Real values of the lowest and highest code, float64 `[n]` each."""
        scale = self.scale.astype(np.float64)
        if self.table is not None:
            return scale * self.table[..., 0], scale * self.table[..., -1]
        return scale * (self.qmin - self.zero_point), scale * (self.qmax - self.zero_point)

    @property
    def dtype(self) -> str:
        """Narrowest storage type of the codes: `int4`, `uint4`, `int8`, `uint8`, `int16` or `uint16`."""
        return self.storage if self.bits > 4 else self.storage.replace("8", "4")

    @property
    def storage(self) -> str:
        """NumPy type of codes outside of files: those of up to 8 bits lie in one byte each. Files pack them."""
        # Codes of a codebook are places in its table.
        return ("int" if self.signed and self.table is None else "uint") + ("8" if self.bits <= 8 else "16")

    @property
    def code_range(self) -> tuple[int, int]:
        """Lowest and highest code; places in the table for lut."""
        return (self.qmin, self.qmax) if self.table is None else (0, (1 << self.bits) - 1)

    @property
    def has_bias_step(self) -> bool:
        """Whether sums of products with these codes are multiples of one step a channel, as codes of a bias need.

        The values of a codebook of whole numbers are such multiples too; `check_plan` holds kernels to that.
        """
        return self.group_size is None

    @property
    def keeps_powers_of_two(self) -> bool:
        """Whether its thresholds are powers of two and have to stay so; with a codebook, whether they are."""
        if self.threshold is None or self.kind == "symmetric":
            return False
        return bool(np.all(np.frexp(self.threshold)[0] == 0.5))

    def round(self, values: FloatVector) -> FloatVector:
        """The values of the grid nearest to float32 `values`, whose axes are those of the tensor it is for."""
        if self.table is not None:
            return lut_fake_quantize(values, self.scale, self.table, axis=self.axis)
        return fake_quantize(
            values, self.scale, self.zero_point, self.qmin, self.qmax, axis=self.axis, group_size=self.group_size
        )

    def codes(self, values: FloatVector) -> npt.NDArray[Any]:
        """The codes, in `storage`, of the values of the grid nearest to float32 `values`."""
        if self.table is not None:
            return lut_quantize(values, self.scale, self.table, axis=self.axis)
        return quantize(
            values,
            self.scale,
            self.zero_point,
            self.qmin,
            self.qmax,
            dtype=self.storage,
            axis=self.axis,
            group_size=self.group_size,
        )

    def values(self, codes: npt.NDArray[Any]) -> FloatVector:
        """The float32 values that codes in `storage` stand for."""
        if self.table is not None:
            return lut_dequantize(codes, self.scale, self.table, axis=self.axis)
        return dequantize(codes, self.scale, self.zero_point, axis=self.axis, group_size=self.group_size)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(repr(self.to_dict()))

    def __str__(self) -> str:
        name = {"power_of_two": "pow2"}.get(self.kind, self.kind)
        low, high = self.limits
        span = f"[{low.min():.4g}, {high.max():.4g}]"
        per = "" if self.axis is None else f" x{self.size}"
        per += "" if self.group_size is None else f" (groups of {self.group_size})"
        return f"{name}{self.bits}{'s' if self.signed else 'u'}{per} {span}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data that a person can read and edit; vectors of one entry become numbers."""
        data: dict[str, Any] = {"kind": self.kind, "bits": self.bits, "signed": self.signed}
        for name in ("threshold", "lower", "upper"):
            vector = getattr(self, name)
            if vector is not None:
                data[name] = _plain(vector) if self.axis is not None else _plain(vector)[0]
        if self.axis is not None:
            data["axis"] = self.axis
        if self.group_size is not None:
            data["group_size"] = self.group_size
        if self.narrow_range:
            data["narrow_range"] = True
        if self.table is not None:
            data["table"] = _plain(self.table) if self.table.ndim == 1 else [_plain(row) for row in self.table]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Grid:
        """Rebuild a grid from `to_dict`'s data, edited or not.

        Raises:
            ConfigError: an unknown key, a missing one, or a contradiction.
        """
        known = {"kind", "bits", "signed", "threshold", "lower", "upper", "axis", "group_size", "narrow_range", "table"}
        for key in data:
            if key not in known:
                raise unknown_name("grid key", key, known)
        missing = [key for key in ("kind", "bits", "signed") if key not in data]
        if missing:
            raise ConfigError(f"a grid needs {', '.join(missing)}")
        return cls(**data)


def _plain(vector: FloatVector) -> list[float]:
    # The shortest decimal that reads back as the same float32, so that a saved plan loads bit for bit.
    return [float(np.format_float_scientific(v, unique=True)) for v in vector]


def _vector(values: Any, name: str) -> FloatVector:
    return _array(values, name, (1,))


def _array(values: Any, name: str, ranks: tuple[int, ...]) -> FloatVector:
    try:
        wide = np.atleast_1d(np.asarray(values, dtype=np.float64))
    except (TypeError, ValueError, OverflowError):  # OverflowError: a whole number of hundreds of digits
        raise ConfigError(f"`{name}` must be a number or a list of numbers, got {values!r}") from None
    with np.errstate(over="ignore"):
        array = wide.astype(np.float32)
    if array.ndim not in ranks or not array.size or not bool(np.all(np.isfinite(array))):
        raise ConfigError(f"`{name}` must be a vector of finite float32 numbers, not empty")
    array.setflags(write=False)
    return array
