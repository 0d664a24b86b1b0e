"""`Widths`: the code widths of single tensors, as mixed precision distributes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from detent._registry import unknown_name
from detent.errors import ConfigError

__all__ = ["Widths"]


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Code widths by tensor. What rules ask for a tensor wins over them.

    Args:
        weights: layer name to the width of its kernel.
        activations: value name to its width; only values with a grid of their own.

    Raises:
        ConfigError: a width that is no whole number in 1..16.
    """

    weights: Mapping[str, int] = field(default_factory=dict)
    activations: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for table in (self.weights, self.activations):
            for name, bits in table.items():
                if type(bits) is not int or not 1 <= bits <= 16:
                    raise ConfigError(f"a width must be a whole number in 1..16, got {bits!r}", where=name)

    def __bool__(self) -> bool:
        return bool(self.weights or self.activations)

    @property
    def least(self) -> int:
        """The smallest width, 16 if there is none."""
        return min([*self.weights.values(), *self.activations.values()], default=16)

    def to_dict(self) -> dict[str, dict[str, int]]:
        """Plain data."""
        return {"weights": dict(self.weights), "activations": dict(self.activations)}

    @classmethod
    def from_dict(cls, data: Any, where: str) -> Widths:
        """Rebuild what `to_dict` gave.

        Raises:
            ConfigError: it is something else; the error carries `where`.
        """
        if not isinstance(data, Mapping) or not all(isinstance(part, Mapping) for part in data.values()):
            raise ConfigError("widths are two tables, `weights` and `activations`", where=where)
        for key in data:
            if key not in ("weights", "activations"):
                error = unknown_name("table of widths", key, ("weights", "activations"))
                raise ConfigError(error.what, where=where, remedy=error.remedy)
        return cls(**{name: dict(part) for name, part in data.items()})
