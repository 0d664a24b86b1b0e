"""Limits from moving maxima instead of a search: what QuantizeML's calibration gives."""

from __future__ import annotations

import numpy as np

from detent.config import QuantizationConfig
from detent.errors import CalibrationError, ConfigError
from detent.graph.placement import ActivationPoint
from detent.kernels.histogram_candidates import evaluate, power_of_two_above
from detent.kernels.histogram_search import kernel_errors, split_histogram
from detent.records.grid import Grid
from detent.records.moving import MOVING_MAXIMUM
from detent.records.plan import TensorPlan
from detent.records.statistics import Statistics, TensorStatistics

__all__ = ["clip_at_moving_maximum"]


def clip_at_moving_maximum(
    point: ActivationPoint,
    statistics: Statistics,
    observed: TensorStatistics,
    form: tuple[str, int, bool | None],
    config: QuantizationConfig,
) -> TensorPlan:
    """The grid whose outermost code is the moving maximum of a value, or the largest of those that share the grid.

    A stored tensor is the same in all batches, so its largest magnitude serves. Limits of a uniform grid do not reach
    beyond what was seen.

    Args:
        point: the value.
        statistics: of all values, with moving maxima.
        observed: of this value, or of all that share its grid.
        form: kind of grid, code width, and whether codes are signed (None decides by the data).
        config: the options; `moving_maximum` must be what the statistics were collected with.

    Returns:
        The entry; its error is the mean squared one.

    Raises:
        CalibrationError: the statistics hold no moving maximum of the value.
        ConfigError: they have another momentum, or the value was shifted and needs a search.
    """
    kind, bits, signed = form
    size = max(_size(point, statistics, observed, config), config.min_threshold)
    signed = observed.minimum < 0 if signed is None else signed
    if kind == "uniform":
        lower, upper = max(observed.minimum, -size), min(observed.maximum, size)
        upper = max(upper, lower + config.min_threshold)
        grid = Grid.from_dict({"kind": kind, "bits": bits, "signed": signed, "lower": lower, "upper": upper})
    else:
        levels = 1 << (bits - signed)
        # One bit without sign has its only level besides zero at half the threshold.
        threshold = power_of_two_above(size) if kind == "power_of_two" else size * levels / (levels - 1)
        grid = Grid.from_dict({"kind": kind, "bits": bits, "signed": signed, "threshold": threshold})
    return TensorPlan(grid=grid, error=_squared_error(observed, grid), metric=MOVING_MAXIMUM)


def _size(
    point: ActivationPoint, statistics: Statistics, observed: TensorStatistics, config: QuantizationConfig
) -> float:
    if point.holds is not None:
        raise ConfigError(
            "the value was shifted so that a search finds a level for its zero, and a moving maximum is not searched",
            where=point.value,
            remedy="use another metric for it",
        )
    if point.constant:
        return max(-observed.minimum, observed.maximum)
    moving = statistics.moving
    missing = point.members if moving is None else [name for name in point.members if name not in moving.maxima]
    if moving is None or missing:
        raise CalibrationError(
            "the statistics hold no moving maximum of this value",
            where=missing[0],
            remedy="calibrate with moving_maximum=0.9, or use another `activation_metric`",
        )
    if config.moving_maximum not in (None, moving.momentum):
        raise ConfigError(
            f"the statistics were collected with moving_maximum={moving.momentum:g}, asked for is "
            f"{config.moving_maximum:g}",
            remedy="calibrate again, or leave the option out",
        )
    return max(moving.maxima[name] for name in point.members)


def _squared_error(observed: TensorStatistics, grid: Grid) -> float:
    """Mean squared error of a grid per element, in units of the tensor squared."""
    histogram = split_histogram(
        observed.counts,
        observed.first_bin,
        observed.width,
        minimum=observed.minimum,
        maximum=observed.maximum,
        zeros=observed.zeros,
        z_threshold=float("inf"),
        mean=None,
        std=None,
    )
    errors, factor = evaluate(kernel_errors, histogram, "mse", 2.0)
    zero = int(grid.zero_point[0])
    steps = grid.scale.astype(np.float64) / observed.width
    return float(errors.fixed_levels(steps, grid.qmax - zero, zero - grid.qmin)[0] * factor)
