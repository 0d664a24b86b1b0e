"""The grid of one kernel from its values: affine per channel or group, or a codebook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from detent.config import QuantizationConfig
from detent.errors import ConfigError
from detent.graph import Graph
from detent.graph.placement import Placement, WeightPoint
from detent.kernels.codebook_search import Scope, search_codebook
from detent.kernels.weight_search import WeightMetric, search_weights
from detent.records.grid import Grid
from detent.records.plan import TensorPlan

__all__ = ["group_size_of", "notes_on_groups", "search_codebook_grid", "search_kernel_grid"]

FloatArray = npt.NDArray[np.float32]


def group_size_of(point: WeightPoint, shape: tuple[int, ...], wanted: int | None, target: str) -> int | None:
    """Input channels that share a step; None for one step a channel, also where `wanted` does not divide them.

    Raises:
        ConfigError: the target does not offer such groups.
    """
    if wanted is None:
        return None
    point.rule.require_group_size(wanted, where=point.layer, target=target)
    inputs = _inputs(point, shape)
    return None if inputs is None or inputs % wanted else wanted


def notes_on_groups(
    graph: Graph, placement: Placement, weights: Mapping[str, TensorPlan], wanted: int | None
) -> list[str]:
    """A note for each kernel that has no groups because `wanted` does not divide its input channels."""
    notes = []
    for layer, point in placement.weights.items() if wanted is not None else ():
        read, grid = graph.find(layer).weight, weights[layer].grid
        assert read is not None
        inputs = _inputs(point, tuple(graph.tensor(read).shape))
        if wanted and grid is not None and grid.group_size is None and (inputs is None or inputs % wanted):
            notes.append(f"{layer}: one step a channel, since {wanted} does not divide its {inputs} input channels")
    return notes


def _inputs(point: WeightPoint, shape: tuple[int, ...]) -> int | None:
    """Elements along the input axis, which is the other one of the first two; None if channels are elsewhere."""
    return shape[1 - point.axis] if len(shape) > 1 and point.axis in (0, 1) else None


def search_kernel_grid(
    kernel: FloatArray,
    kind: str,
    bits: int,
    point: WeightPoint,
    group_size: int | None,
    config: QuantizationConfig,
    scores: FloatArray | None,
) -> tuple[Grid, float]:
    """The affine grid that loses least, and its mean error per element, which `scores` weight if given."""
    narrow = point.rule.narrow_range and kind != "uniform"
    (found,) = search_weights(
        kernel,
        bits=[bits],
        grid=kind,  # type: ignore[arg-type]
        metric=_error_of_weights(config.weights_metric),
        p=config.p,
        axis=point.axis,
        group_size=group_size,
        weights=None if scores is None else np.ascontiguousarray(scores),
        narrow_range=narrow,
        min_threshold=config.min_threshold,
        method=config.weight_search,
    )
    form: dict[str, Any] = {"kind": kind, "bits": bits, "signed": True, "axis": point.axis, "group_size": group_size}
    limits = {"lower": found.lowers, "upper": found.uppers} if kind == "uniform" else {"threshold": found.thresholds}
    return Grid.from_dict({**form, **limits, "narrow_range": narrow}), float(np.mean(found.errors))


def _error_of_weights(metric: str) -> WeightMetric:
    """The metric to search a kernel alone by: what suits the output is sought around what suits the weights."""
    return "mse" if metric in ("auto", "output") else cast(WeightMetric, metric)


def search_codebook_grid(
    kernel: FloatArray,
    bits: int,
    point: WeightPoint,
    config: QuantizationConfig,
    target: str,
    scores: FloatArray | None,
) -> tuple[Grid, float]:
    """The codebook and the thresholds that lose little together, and their mean error per element.

    Errors are weighted by `scores` if given.

    Raises:
        ConfigError: a codebook for each channel is asked for and not offered, or groups are asked for too.
    """
    if config.weights_group_size is not None:
        raise ConfigError(
            "a codebook has one threshold a channel, none for each group",
            where=point.layer,
            remedy="leave out `weights_group_size` and give groups to single kernels, by rules",
        )
    scope: Scope = config.codebook_scope if point.axis is not None else "tensor"
    if scope == "channel":
        point.rule.require_codebook_per_channel(where=point.layer, target=target)
    found = search_codebook(
        kernel,
        bits=bits,
        scale="power_of_two" if config.weights_grid == "lut_power_of_two" else "symmetric",
        metric=_error_of_weights(config.weights_metric),  # type: ignore[arg-type]  # others are refused there
        weights=None if scores is None else np.ascontiguousarray(scores),
        axis=point.axis,
        scope=scope,
        min_threshold=config.min_threshold,
    )
    table = found.tables if scope == "channel" else found.tables[0]
    grid = Grid(kind="lut", bits=bits, signed=True, threshold=found.thresholds, axis=point.axis, table=table)
    return grid, float(np.mean(found.errors))
