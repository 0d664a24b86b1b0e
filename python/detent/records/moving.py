"""`MovingMaximum`: the largest magnitude of every value, forgotten batch by batch, as QuantizeML calibrates.

m <- momentum * m + (1 - momentum) * max |x| after each batch; the first batch sets m. Unlike everything else in the
statistics it depends on the order and the size of the batches, so it cannot be merged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from detent.config import QuantizationConfig
from detent.errors import ConfigError
from detent.records.rules import Rule

__all__ = ["MOVING_MAXIMUM", "MovingMaximum", "momentum_to_calibrate", "require_momentum"]

MOVING_MAXIMUM: Final = "moving_maximum"
"""The metric that takes it for the clipping limit."""
_MOMENTUM: Final = 0.9


@dataclass(frozen=True, kw_only=True)
class MovingMaximum:
    """The moving maxima of one calibration.

    Args:
        momentum: what the old value counts at each batch, at least 0 and below 1.
        batches: batches seen.
        maxima: value name to its moving maximum, in units of the tensor.

    Raises:
        ValueError: numbers that no calibration gives.
    """

    momentum: float
    batches: int
    maxima: Mapping[str, float]

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1 or self.batches < 0:
            raise ValueError(f"no moving maximum has momentum {self.momentum!r} and {self.batches!r} batches")
        wrong = [name for name, size in self.maxima.items() if not 0 <= size < math.inf]
        if wrong:
            raise ValueError(f"the moving maximum of {wrong[0]} is {self.maxima[wrong[0]]!r}")

    @property
    def note(self) -> str:
        """What a user should know of it."""
        return (
            f"moving maxima with momentum {self.momentum:g} over {self.batches} batches: limits chosen by them depend "
            "on the order and the size of the batches"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"momentum": self.momentum, "batches": self.batches, "maxima": dict(self.maxima)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MovingMaximum:
        """Rebuild it from `to_dict`'s data; raises KeyError, TypeError or ValueError for anything else."""
        maxima = {str(name): float(size) for name, size in data["maxima"].items()}
        return cls(momentum=float(data["momentum"]), batches=int(data["batches"]), maxima=maxima)


def require_momentum(momentum: object) -> None:
    """Refuse what is no momentum.

    Raises:
        ConfigError: not a number, or outside [0, 1).
    """
    number = not isinstance(momentum, bool) and isinstance(momentum, int | float)
    if not number or not 0 <= momentum < 1:  # type: ignore[operator]
        raise ConfigError(
            f"`moving_maximum` is a momentum, a number from 0 and below 1, got {momentum!r}",
            remedy=f"QuantizeML has {_MOMENTUM:g}",
        )


def momentum_to_calibrate(config: QuantizationConfig, rules: Iterable[Rule] = ()) -> float | None:
    """The momentum to calibrate with for a plan by `config` and `rules`; None if neither asks for a moving maximum."""
    by_rule = any(rule.activations is not None and rule.activations.metric == MOVING_MAXIMUM for rule in rules)
    if config.activation_metric != MOVING_MAXIMUM and not by_rule:
        return None
    return _MOMENTUM if config.moving_maximum is None else config.moving_maximum
