"""What a threshold search on weights may be asked for, and its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from detent._registry import unknown_name
from detent.errors import ConfigError

__all__ = ["Method", "WeightGrid", "WeightMetric", "WeightSearch", "check_options", "is_exact"]

WeightGrid = Literal["power_of_two", "symmetric", "uniform"]
WeightMetric = Literal["noclipping", "mse", "mae", "lp", "kl", "hmse"]
Method = Literal["exact", "grid"]

FloatArray = npt.NDArray[np.float32]
ErrorArray = npt.NDArray[np.float64]

EXACT_BITS: Final = 8
"""Widest codes for which the exact search is used."""
LEAST_POWER: Final = 0.5
MOST_POWER: Final = 6.0
LEAST_FLOOR: Final = 2.0**-100
MOST_FLOOR: Final = 2.0**100


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightSearch:
    """The best grids of one bit width.

    Args:
        bits: code width.
        thresholds: float32 `[n]`, for power-of-two and symmetric grids; n counts channels, times groups, channel first.
        lowers: float32 `[n]`, lower limits of uniform grids, at most zero.
        uppers: float32 `[n]`, upper limits of uniform grids, at least zero.
        errors: float64 `[n]`, mean error per element by the metric (for noclipping: squared error).
        exact: proven that no grid of this kind does better in real arithmetic, up to rounding the threshold to float32
            (errors are those of float32 values, which differ by about one part in a million at 8 bits).
    """

    bits: int
    thresholds: FloatArray | None = None
    lowers: FloatArray | None = None
    uppers: FloatArray | None = None
    errors: ErrorArray
    exact: bool


def check_options(
    bits: Sequence[int],
    grid: str,
    metric: str,
    method: str,
    p: float,
    narrow_range: bool,
    min_threshold: float,
    has_weights: bool,
) -> None:
    """Refuse what no search can honour.

    Raises:
        ConfigError: an option is unknown or out of range, or two contradict each other.
    """
    for width in bits:
        if isinstance(width, bool) or not isinstance(width, int) or not 2 <= width <= 16:
            raise ConfigError(f"bits of signed codes must be whole numbers in 2..16, got {width!r}")
    if grid not in get_args(WeightGrid):
        raise unknown_name("grid", grid, get_args(WeightGrid))
    if metric not in get_args(WeightMetric):
        raise unknown_name("metric", metric, get_args(WeightMetric))
    if method not in get_args(Method):
        raise unknown_name("method", method, get_args(Method))
    if not LEAST_POWER <= p <= MOST_POWER:
        raise ConfigError(f"p must be in {LEAST_POWER}..{MOST_POWER}, got {p!r}")
    if not LEAST_FLOOR <= min_threshold <= MOST_FLOOR:
        raise ConfigError(f"min_threshold must be in {LEAST_FLOOR!r}..{MOST_FLOOR!r}, got {min_threshold!r}")
    if narrow_range and grid == "uniform":
        raise ConfigError("`narrow_range` is for power_of_two and symmetric grids")
    if has_weights != (metric == "hmse"):
        raise ConfigError(f"`weights` belong to metric 'hmse', and only there; got metric {metric!r}")


def is_exact(bits: int, grid: str, metric: str, p: float, method: str) -> bool:
    """Whether the search proves that no other grid of the kind has less error."""
    if metric == "noclipping":
        return True
    if grid == "power_of_two":
        return metric != "kl" and (metric != "lp" or p >= 1)
    return method == "exact" and grid == "symmetric" and metric in ("mse", "hmse") and bits <= EXACT_BITS
