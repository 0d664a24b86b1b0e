"""`BiasCorrection`: what quantization moved the mean of a layer's output by, to be taken back through its bias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from detent._registry import unknown_name
from detent.errors import ConfigError

__all__ = ["BiasCorrection"]


@dataclass(frozen=True, kw_only=True, eq=False)
class BiasCorrection:
    """Added to the bias of one layer; a layer without a bias gets one.

    Args:
        shift: float32 `[C_out]`, in units of the layer's output.
        method: how it was found, `"analytic"` or `"sequential"`.
    """

    shift: npt.NDArray[np.float32]
    method: str

    def __post_init__(self) -> None:
        shift = np.array(self.shift, np.float32)
        if shift.ndim != 1 or not shift.size or not bool(np.isfinite(shift).all()):
            raise ConfigError("a bias correction is a list of finite numbers, one per output channel")
        shift.setflags(write=False)
        object.__setattr__(self, "shift", shift)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BiasCorrection) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def added_to(self, other: BiasCorrection | None) -> BiasCorrection:
        """Both shifts together, under this one's method."""
        if other is None:
            return self
        return BiasCorrection(shift=self.shift + other.shift, method=self.method)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; each number is the shortest that reads back as the same float32."""
        return {"method": self.method, "shift": [float(str(number)) for number in self.shift]}

    @classmethod
    def from_dict(cls, data: object, where: str) -> BiasCorrection:
        """Rebuild a correction; errors carry `where`, the name of the layer."""
        if not isinstance(data, Mapping):
            raise ConfigError(f"a bias correction is an object with `method` and `shift`, got {data!r}", where=where)
        for key in data:
            if key not in ("method", "shift"):
                raise ConfigError(unknown_name("key of a bias correction", key, ("method", "shift")).what, where=where)
        shift = data.get("shift")
        numbers = isinstance(shift, list) and all(
            isinstance(number, int | float) and not isinstance(number, bool) for number in shift
        )
        if not numbers:
            raise ConfigError("`shift` must be a list of numbers, one per output channel", where=where)
        try:
            return cls(shift=np.array(shift, np.float64).astype(np.float32), method=str(data.get("method", "edited")))
        except (ConfigError, OverflowError) as error:
            raise ConfigError(str(getattr(error, "what", error)), where=where) from None
