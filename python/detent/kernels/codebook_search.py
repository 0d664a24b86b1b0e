"""Codebook search on raw weights: the best few levels of a fine lattice, and a threshold per channel.

A codebook holds whole numbers in -128..127, in units of threshold / 128, and zero is one of them, so that zero stays
exact. For given thresholds the best choice of 2^bits such levels is found exactly, by a dynamic program over the 256
points of the lattice (after Wu 1991, doi:10.1016/0196-6774(91)90039-2; csrc/search/codebook_levels.h): no k-means,
whose clusters depend on where they start and are rounded only afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from detent import _core
from detent._registry import unknown_name
from detent.errors import ConfigError
from detent.kernels.arrays import ArrayLike, as_array
from detent.kernels.weight_options import LEAST_FLOOR, MOST_FLOOR
from detent.kernels.weight_search import search_weights

__all__ = [
    "CODEBOOK_BITS",
    "CodebookMetric",
    "CodebookScale",
    "CodebookSearch",
    "Scope",
    "check_codebook_options",
    "search_codebook",
    "starting_thresholds",
]

CODEBOOK_BITS: Final = (2, 7)
"""Least and most bits of a codebook; with 8, every point of the lattice would be in it."""

CodebookScale = Literal["symmetric", "power_of_two"]
CodebookMetric = Literal["mse", "hmse"]
Scope = Literal["tensor", "channel"]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class CodebookSearch:
    """The codebook found, and the thresholds it is scaled by.

    Args:
        bits: code width.
        thresholds: float32 `[n]`, one per channel; n = 1 without a channel axis.
        tables: float32 `[1, 2^bits]`, or `[n, 2^bits]` with a codebook per channel: whole numbers in -128..127,
            increasing, in units of threshold / 128.
        errors: float64 `[n]`, mean error per element.
    """

    bits: int
    thresholds: FloatArray
    tables: FloatArray
    errors: npt.NDArray[np.float64]


def search_codebook(
    w: ArrayLike,
    *,
    bits: int,
    scale: CodebookScale = "symmetric",
    metric: CodebookMetric = "mse",
    axis: int | None = 0,
    scope: Scope = "tensor",
    weights: ArrayLike | None = None,
    thresholds: ArrayLike | None = None,
    min_threshold: float = 2.0**-16,
) -> CodebookSearch:
    """Find a codebook and a threshold per channel that lose little together.

    The best levels for the thresholds, and the best thresholds for the levels, take turns until neither changes; the
    better of two starts is returned (nothing clipped, as MCT does; the best symmetric grid). So the error is never
    above that of the best symmetric grid of as many bits, whose values a codebook can hold. The result does not depend
    on memory layout, threads or instruction set.

    Args:
        w: float32 weights of any shape and strides.
        bits: code width, 2 to 7.
        scale: kind of thresholds, `"symmetric"` (any) or `"power_of_two"`.
        metric: `"mse"`, or `"hmse"` (squared error weighted by `weights`).
        axis: channel axis; None for one threshold for the whole array.
        scope: one codebook for the `"tensor"`, or one for each `"channel"`.
        weights: importance of each element for hmse, float32, not negative, with the shape of `w`.
        thresholds: keep these, float32 `[n]`, positive, and search the levels alone, which is exact.
        min_threshold: least threshold, 2^-100 to 2^100; a channel of zeros gets it.

    Raises:
        ConfigError: an option is unknown or out of range, or two contradict each other.
        TypeError: `w` or `weights` is not an array on the CPU.
        ValueError: NaN or infinity (the channel is named), or a wrong dtype or shape.
    """
    check_codebook_options(bits, scale, metric, scope, min_threshold, weights is not None)
    values = as_array(w, "w")
    importance = None if weights is None else as_array(weights, "weights")
    keep = thresholds is not None
    if thresholds is None:
        starts = starting_thresholds(values, bits, scale, axis, importance, min_threshold)
    else:
        starts = np.ascontiguousarray(np.atleast_2d(as_array(thresholds, "thresholds")))
    found, tables, errors = _core.search_codebook(
        values, bits, scale == "power_of_two", scope == "tensor", axis, importance, starts, keep, min_threshold
    )
    return CodebookSearch(bits=bits, thresholds=found, tables=tables, errors=errors)


def starting_thresholds(
    w: npt.NDArray[np.float32],
    bits: int,
    scale: CodebookScale,
    axis: int | None,
    importance: npt.NDArray[np.float32] | None,
    min_threshold: float,
) -> FloatArray:
    """Where the search starts, float32 `[2, n]`: thresholds that clip nothing, and those of the best symmetric grid."""
    (unclipped,) = search_weights(w, bits=[8], grid=scale, metric="noclipping", axis=axis, min_threshold=min_threshold)
    (best,) = search_weights(
        w,
        bits=[bits],
        grid=scale,
        metric="mse" if importance is None else "hmse",
        axis=axis,
        weights=importance,
        min_threshold=min_threshold,
    )
    assert unclipped.thresholds is not None
    assert best.thresholds is not None
    return np.stack([unclipped.thresholds, best.thresholds])


def check_codebook_options(
    bits: int, scale: str, metric: str, scope: str, min_threshold: float, has_weights: bool
) -> None:
    """Refuse what the search cannot honour.

    Raises:
        ConfigError: an option is unknown or out of range, or two contradict each other.
    """
    least, most = CODEBOOK_BITS
    if isinstance(bits, bool) or not isinstance(bits, int) or not least <= bits <= most:
        raise ConfigError(f"bits of a codebook must be a whole number in {least}..{most}, got {bits!r}")
    for name, given, known in (("scale", scale, CodebookScale), ("scope", scope, Scope)):
        if given not in get_args(known):
            raise unknown_name(name, given, get_args(known))
    if metric not in get_args(CodebookMetric):
        raise ConfigError(
            f"a codebook is searched by squared error, got metric {metric!r}",
            remedy="use 'mse', or 'hmse' with importance weights",
        )
    if not LEAST_FLOOR <= min_threshold <= MOST_FLOOR:
        raise ConfigError(f"min_threshold must be in {LEAST_FLOOR!r}..{MOST_FLOOR!r}, got {min_threshold!r}")
    if has_weights != (metric == "hmse"):
        raise ConfigError(f"`weights` belong to metric 'hmse', and only there; got metric {metric!r}")
