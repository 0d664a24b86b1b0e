"""`TensorPlan`: what a plan decides for one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detent._registry import unknown_name
from detent.errors import ConfigError
from detent.records.codes import KernelCodes
from detent.records.grid import Grid
from detent.records.grid_values import multiplied

__all__ = ["TensorPlan"]

_FLOAT: Final = "float"

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorPlan:
    """What is decided for one tensor.

    Args:
        grid: the grid, or None to keep the tensor in float. Must be None if `same_as` is given.
        same_as: name of the activation whose grid this one shares (inputs of a concatenation, for instance).
        error: mean quantization error per element in `metric`, estimated when the grid was chosen; None if edited.
        metric: the error metric the grid was chosen by.
        bias_bits: width of the bias codes, weights only; None leaves the bias in float.
        frozen: later stages leave the tensor as it is, and a plan made anew takes it over.
        gain: what the kernel's channels are multiplied by before they go to the grid, weights only: float32
            `[channels]`, or `[1]` for a grid of the whole kernel; None multiplies by nothing.
        codes: of a kernel that was not rounded to nearest, weights only; None rounds to nearest. No `gain` then.
    """

    grid: Grid | None
    same_as: str | None = None
    error: float | None = None
    metric: str | None = None
    bias_bits: int | None = None
    frozen: bool = False
    gain: FloatArray | None = None
    codes: KernelCodes | None = None

    def codes_of(self, kernel: FloatArray) -> npt.NDArray[Any]:
        """The codes of a kernel, float32 and dense, on the grid that this entry must have."""
        assert self.grid is not None
        if self.codes is not None:
            return self.codes.codes
        return self.grid.codes(multiplied(kernel, self.gain, self.grid.axis))

    def rounded(self, kernel: FloatArray) -> FloatArray:
        """What becomes of a kernel, float32 and dense, on the grid that this entry must have."""
        assert self.grid is not None
        if self.codes is not None:
            return self.grid.values(self.codes.codes)
        return self.grid.round(multiplied(kernel, self.gain, self.grid.axis))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TensorPlan) and all(
            np.array_equal(mine, theirs) if isinstance(mine, np.ndarray) else mine == theirs
            for mine, theirs in ((getattr(self, item.name), getattr(other, item.name)) for item in fields(self))
        )

    __hash__ = None  # type: ignore[assignment]

    def to_dict(self) -> dict[str, Any] | str:
        """Plain data; a tensor kept in float is the word `"float"`."""
        if self.same_as is not None:
            return {"same_as": self.same_as}
        if self.grid is None and not self.frozen:
            return _FLOAT
        data: dict[str, Any] = {"grid": _FLOAT if self.grid is None else self.grid.to_dict()}
        for name in ("error", "metric", "bias_bits"):
            value = getattr(self, name)
            if value is not None:
                data[name] = value
        if self.frozen:
            data["frozen"] = True
        if self.gain is not None:
            data["gain"] = [float(str(number)) for number in self.gain]
        if self.codes is not None:
            data["codes"] = self.codes.to_dict()
        return data

    @classmethod
    def from_dict(cls, data: object, where: str) -> TensorPlan:
        """Rebuild an entry; errors carry `where`, the name of the tensor."""
        if data == _FLOAT:
            return cls(grid=None)
        if not isinstance(data, Mapping):
            raise ConfigError(f"an entry is an object or the word {_FLOAT!r}, got {data!r}", where=where)
        known = {"grid", "same_as", "error", "metric", "bias_bits", "frozen", "gain", "codes"}
        for key in data:
            if key not in known:
                raise unknown_name("plan key", key, known).at(where)
        if "same_as" in data:
            if len(data) > 1:
                raise ConfigError("`same_as` stands alone: the grid is that of the named tensor", where=where)
            return cls(grid=None, same_as=str(data["same_as"]))
        frozen = data.get("frozen", False)
        if not isinstance(frozen, bool):
            raise ConfigError(f"`frozen` must be true or false, got {frozen!r}", where=where)
        if data.get("grid") == _FLOAT:
            return cls(grid=None, frozen=frozen)
        if not isinstance(data.get("grid"), Mapping):
            raise ConfigError("an entry needs a `grid` object, `same_as`, or to be 'float'", where=where)
        try:
            grid = Grid.from_dict(data["grid"])
        except ConfigError as reason:
            raise reason.at(where) from None
        except TypeError as reason:
            raise ConfigError(f"the grid has a value of the wrong type: {reason}", where=where) from None
        error = data.get("error")
        if error is not None and (isinstance(error, bool) or not isinstance(error, int | float)):
            raise ConfigError(f"`error` must be a number, got {error!r}", where=where)
        bias_bits = data.get("bias_bits")
        if bias_bits not in (None, 32):
            raise ConfigError(f"`bias_bits` must be 32 or absent, got {bias_bits!r}", where=where)
        metric, gain = data.get("metric"), _gain(data.get("gain"), where)
        codes = KernelCodes.from_dict(data["codes"], grid, where) if "codes" in data else None
        if codes is not None and gain is not None:
            raise ConfigError("`gain` is for kernels rounded to nearest, this one has `codes`", where=where)
        return cls(
            grid=grid,
            error=error,
            metric=None if metric is None else str(metric),
            bias_bits=bias_bits,
            frozen=frozen,
            gain=gain,
            codes=codes,
        )


def _gain(data: object, where: str) -> FloatArray | None:
    if data is None:
        return None
    numbers = data if isinstance(data, list) else [data]
    try:
        gain = np.array(numbers, np.float64).astype(np.float32)
    except (TypeError, ValueError, OverflowError):
        gain = np.zeros(0, np.float32)
    if gain.ndim != 1 or not len(gain) or not bool(np.all(np.isfinite(gain) & (gain > 0))):
        raise ConfigError("`gain` must be a list of positive numbers, one per channel of the grid", where=where)
    return gain
