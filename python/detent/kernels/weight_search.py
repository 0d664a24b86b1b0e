"""Threshold search on raw weights: per tensor, channel or group, for several bit widths in one call."""

from __future__ import annotations

from collections.abc import Sequence

from detent import _core
from detent.kernels.arrays import ArrayLike, as_array
from detent.kernels.weight_divergence import search_divergence, split_rows
from detent.kernels.weight_options import Method, WeightGrid, WeightMetric, WeightSearch, check_options, is_exact

__all__ = ["WeightGrid", "WeightMetric", "WeightSearch", "search_weights"]


def search_weights(
    w: ArrayLike,
    *,
    bits: Sequence[int],
    grid: WeightGrid,
    metric: WeightMetric,
    p: float = 2.0,
    axis: int | None = 0,
    group_size: int | None = None,
    weights: ArrayLike | None = None,
    narrow_range: bool = False,
    min_threshold: float = 2.0**-16,
    method: Method = "exact",
) -> list[WeightSearch]:
    """Find the grids with signed codes that lose least on each channel of `w`, for each bit width.

    With method "exact", symmetric grids of at most 8 bits for mse and hmse are globally optimal over all real
    thresholds, found by branch and bound over the breakpoints |x| / (k - 1/2) and the closed-form scale
    sum(h k x) / sum(h k^2) between them (csrc/search/exact_scale.h), then rounded to the nearest float32. Power-of-two
    grids try every useful power, whatever the method. All other searches take a dense grid of candidates, refined
    around the best ones.

    The result does not depend on the memory layout of `w`, which may have any strides, on threads or instruction set.

    Args:
        w: float32 weights of any shape.
        bits: code widths, each 2 to 16.
        grid: `"power_of_two"`, `"symmetric"` or `"uniform"`.
        metric: `"noclipping"` (the tightest grid that clips nothing), `"mse"`, `"mae"`, `"lp"` (mean |error|^p), `"kl"`
            (Kullback-Leibler divergence of each channel's histogram, as in `search_histogram`; slow) or `"hmse"`
            (squared error weighted by `weights`).
        p: power of lp, 0.5 to 6.
        axis: channel axis; None for one grid for the whole array.
        group_size: search one grid per so many elements of the input axis (axis 1 if `axis` is 0, axis 0 if it is 1).
        weights: importance of each element for hmse, float32, not negative, with the shape of `w`.
        narrow_range: drop the lowest code (power-of-two and symmetric grids).
        min_threshold: least threshold, or width of a uniform range, 2^-100 to 2^100; a channel of zeros gets it.
        method: `"exact"` or `"grid"`.

    Returns:
        One search per entry of `bits`.

    Raises:
        TypeError: `w` or `weights` is not an array on the CPU.
        ValueError: NaN or infinity (the channel is named), wrong dtype or shape, or an option that is unknown or out of
            range.
    """
    check_options(bits, grid, metric, method, p, narrow_range, min_threshold, weights is not None)
    values = as_array(w, "w")
    if metric == "kl":
        return search_divergence(split_rows(values, axis, group_size), bits, grid, narrow_range, min_threshold)
    importance = None if weights is None else as_array(weights, "weights")
    exact = method == "exact"
    first, second, errors = _core.search_weights(
        values, list(bits), grid, metric, p, axis, group_size, importance, narrow_range, min_threshold, exact
    )
    return [
        WeightSearch(
            bits=width,
            thresholds=first[i] if second is None else None,
            lowers=None if second is None else first[i],
            uppers=None if second is None else second[i],
            errors=errors[i],
            exact=is_exact(width, grid, metric, p, method),
        )
        for i, width in enumerate(bits)
    ]
