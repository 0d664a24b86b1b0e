"""`Budget`: how much a quantized network may need."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final, Protocol

from pydantic import ValidationInfo, field_validator

from detent._registry import unknown_name
from detent._validation import Options
from detent.errors import ConfigError

__all__ = ["Budget", "Figures"]

Amount = float | int | str | None

_THOUSANDS: Final = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BYTES: Final = {f"{prefix}B": factor for prefix, factor in _THOUSANDS.items()} | {
    "KB": 1e3,
    "KiB": 2.0**10,
    "MiB": 2.0**20,
    "GiB": 2.0**30,
    "TiB": 2.0**40,
}
_OPERATIONS: Final = {f"{prefix}BOPs": factor for prefix, factor in _THOUSANDS.items()}
_TIMES: Final = {"s": 1.0, "ms": 1e-3, "us": 1e-6} | {f"{p}cycles": factor for p, factor in _THOUSANDS.items()}
_UNITS: Final[dict[str, dict[str, float]]] = {
    "weights": _BYTES,
    "activations": _BYTES,
    "total": _BYTES,
    "bit_operations": _OPERATIONS,
    "latency": _TIMES,
}
_WRITTEN: Final = re.compile(r"\s*(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(?P<unit>%|[A-Za-z]*)\s*")


class Figures(Protocol):
    """What a network needs; `detent.resources` returns such a record."""

    @property
    def weights(self) -> float:
        """Bytes."""

    @property
    def activations(self) -> float:
        """Bytes."""

    @property
    def total(self) -> float:
        """Bytes."""

    @property
    def bit_operations(self) -> float:
        """Operations."""

    @property
    def latency(self) -> float | None:
        """In the unit of the latency table; None without one."""


class Budget(Options):
    """Limits on what a network needs for one sample; keyword only, immutable.

    A limit is a number, a number with a unit (`"1.5MB"`, `"200 kB"`, `"64KiB"`, `"3 GBOPs"`, `"2 ms"`), or a share of
    what the network needs at 8 bits (`"50%"`). kB, MB and GB are powers of 1000, KiB, MiB and GiB of 1024. None limits
    nothing.

    Attributes:
        weights: bytes of kernels, biases and all else that is stored.
        activations: bytes of activations alive at once.
        total: bytes of both together.
        bit_operations: sum over layers of multiply-accumulates x bits x bits.
        latency: in the unit of the latency table, which is seconds where a limit is written in s, ms or us.

    Raises:
        ConfigError: an unknown key (with a suggestion), or no amount.
    """

    weights: Amount = None
    activations: Amount = None
    total: Amount = None
    bit_operations: Amount = None
    latency: Amount = None

    @field_validator("*", mode="before")
    @classmethod
    def _an_amount(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None:
            _read(value, _UNITS[str(info.field_name)])
        return value

    @property
    def limited(self) -> tuple[str, ...]:
        """Names of the resources it limits."""
        return tuple(name for name, value in self if value is not None)

    def limits(self, model_at_8_bits: Figures) -> dict[str, float]:
        """The limits as numbers: bytes, operations, and the unit of the latency table.

        Args:
            model_at_8_bits: what the network needs with all tensors in 8 bits; shares are taken of it.

        Raises:
            ConfigError: latency is limited, and there is no latency table.
        """
        found = {}
        for name in self.limited:
            number, relative = _read(getattr(self, name), _UNITS[name])
            whole = getattr(model_at_8_bits, name)
            if whole is None:
                raise ConfigError(
                    "latency is limited, but nothing is known about it", where=name, remedy="pass a latency table"
                )
            found[name] = number * whole if relative else number
        return found

    @classmethod
    def resolve(cls, budget: Budget | Mapping[str, Any]) -> Budget:
        """A budget from what a user gives for one: itself, or a mapping of its limits.

        Raises:
            ConfigError: it is neither, or a limit is wrong.
        """
        if isinstance(budget, cls):
            return budget
        if isinstance(budget, Mapping) and all(isinstance(name, str) for name in budget):
            return cls(**budget)
        raise ConfigError(f"`budget` must be a Budget or a mapping of its limits, got {type(budget).__name__}")

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        return list(self.differences().items())

    def __str__(self) -> str:
        return repr(self)


def _read(value: object, units: Mapping[str, float]) -> tuple[float, bool]:
    """The number of an amount in its base unit, and whether it is a share of what 8 bits need.

    Raises:
        ConfigError: it is no amount.
    """
    if isinstance(value, str):
        written = _WRITTEN.fullmatch(value)
        if written is None:
            raise ConfigError(
                f"{value!r} is no amount", remedy=f"write a number, '50%', or a number with {', '.join(units)}"
            )
        unit = written["unit"]
        if unit not in ("", "%") and unit not in units:
            raise unknown_name("unit", unit, units)
        factor = 0.01 if unit == "%" else units.get(unit, 1.0)
        number, relative = float(written["number"]) * factor, unit == "%"
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number, relative = float(value), False
        except OverflowError:
            number, relative = math.inf, False
    else:
        raise ConfigError(f"a limit is a number, or text such as '50%' or '1.5MB', got {value!r}")
    if not math.isfinite(number) or number <= 0:
        raise ConfigError(f"a limit is a positive finite number, got {value!r}")
    return number, relative
