"""Limits of an activation's channels: those of the tensor, narrowed to what each channel uses of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from detent.errors import CalibrationError
from detent.graph.placement import ActivationPoint
from detent.kernels.histogram_candidates import power_of_two_above
from detent.records.grid import Grid
from detent.records.plan import PER_CHANNEL, TensorPlan
from detent.records.statistics import TensorStatistics

__all__ = ["narrow_to_channels"]

_LEAST_SHARE: Final = 2.0**-4
"""A channel keeps this share of the tensor's limits at least: calibration may not have seen all it can do, and with a
dead channel's own range nothing would be left of it."""

Vector = npt.NDArray[np.float64]


def narrow_to_channels(
    entry: TensorPlan, point: ActivationPoint, observed: TensorStatistics, min_threshold: float
) -> TensorPlan:
    """The entry with a step for each channel: the tensor's limits where a channel reaches them, else its own.

    Histograms are kept for tensors only, so what the search clips is decided for all channels together. The error of
    the result is not known.

    Args:
        entry: what was chosen for the whole tensor.
        point: the value, with the axis of its channels.
        observed: its statistics with minimum and maximum per channel.
        min_threshold: least limit, in units of the tensor.

    Raises:
        CalibrationError: the statistics hold nothing per channel.
    """
    grid = entry.grid
    assert grid is not None
    if observed.channel_minimum is None or observed.channel_maximum is None:
        raise CalibrationError(
            "the statistics do not tell the channels of this value apart",
            where=point.value,
            remedy="calibrate with channels=True",
        )
    low, high = observed.channel_minimum.astype(np.float64), observed.channel_maximum.astype(np.float64)
    if grid.threshold is None:
        assert grid.lower is not None
        assert grid.upper is not None
        lower, upper = min(float(grid.lower[0]), 0.0), max(float(grid.upper[0]), 0.0)
        limits = {
            "lower": 0.0 - _narrowed(-lower, -low, min_threshold),  # no -0
            "upper": _narrowed(upper, high, min_threshold),
        }
    else:
        least = power_of_two_above(min_threshold) if grid.kind == "power_of_two" else min_threshold
        limits = {"threshold": _narrowed(float(grid.threshold[0]), _thresholds(grid, low, high), least)}
    form = {"kind": grid.kind, "bits": grid.bits, "signed": grid.signed, "axis": point.axis}
    metric = None if entry.metric is None else entry.metric + PER_CHANNEL
    return replace(entry, grid=Grid.from_dict({**form, **limits}), error=None, metric=metric)


def _narrowed(limit: float, reached: Vector, least: float) -> Vector:
    """For each channel, what it reaches of a limit that is not negative, within what it keeps of it at least."""
    return np.clip(reached, min(limit, max(limit * _LEAST_SHARE, least)), limit)


def _thresholds(grid: Grid, low: Vector, high: Vector) -> Vector:
    """For each channel the smallest threshold that clips nothing, as a search without clipping has it."""
    least = np.finfo(np.float32).tiny
    if grid.kind == "power_of_two":
        size = np.maximum(np.maximum(high, -low if grid.signed else 0.0), least)
        return np.asarray(2.0 ** np.ceil(np.log2(size)))
    levels = 1 << (grid.bits - grid.signed)
    return np.maximum(high * levels / (levels - 1), -low if grid.signed else 0.0)
