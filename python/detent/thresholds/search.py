"""From statistics and weights to grids: asks the kernels, and writes the answers as entries of a plan.

No forward pass happens here. An activation's histogram, or a kernel's raw values, decide its grid.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final, cast

import numpy as np
import numpy.typing as npt

from detent.config import ActivationMetric, QuantizationConfig
from detent.errors import CalibrationError
from detent.graph import Graph
from detent.graph.placement import ActivationPoint, Placement, WeightPoint
from detent.graph.tensors import read_tensor
from detent.kernels.histogram_search import HistogramSearch, search_histogram
from detent.kernels.statistics import StatisticsAccumulator
from detent.kernels.threads import map_in_threads, num_threads
from detent.records.choice import TensorChoice
from detent.records.choices import Choices
from detent.records.grid import Grid
from detent.records.hessians import HessianScores
from detent.records.moving import MOVING_MAXIMUM
from detent.records.plan import TensorPlan
from detent.records.statistics import Statistics, TensorStatistics
from detent.targets import FixedGrid, GridKindName, Target
from detent.thresholds.channel_limits import narrow_to_channels
from detent.thresholds.forms import for_kernel, form_of_kernel
from detent.thresholds.kernel_grids import group_size_of, search_codebook_grid, search_kernel_grid
from detent.thresholds.moving import clip_at_moving_maximum

__all__ = ["search_activations", "search_grids", "search_weights"]

_OPEN: Final = Choices()
"""Nothing is asked for any tensor."""


def search_grids(
    graph: Graph,
    placement: Placement,
    statistics: Statistics,
    target: Target,
    config: QuantizationConfig,
    choices: Choices = _OPEN,
) -> tuple[dict[str, TensorPlan], dict[str, TensorPlan]]:
    """The entries of all activations and of all kernels; raises as the two searches do."""
    if num_threads() == 1:
        activations = search_activations(graph, placement, statistics, target, config, choices)
        return activations, search_weights(graph, placement, target, config, choices)
    # Kernels take kernel time, histograms mostly interpreter time: together they fill the cores.
    with ThreadPoolExecutor(1, "detent") as background:
        weights = background.submit(search_weights, graph, placement, target, config, choices)
        return search_activations(graph, placement, statistics, target, config, choices), weights.result()


def search_activations(
    graph: Graph,
    placement: Placement,
    statistics: Statistics,
    target: Target,
    config: QuantizationConfig,
    choices: Choices = _OPEN,
) -> dict[str, TensorPlan]:
    """The entry of every activation that `placement` quantizes, in its order; `choices` come before `config`.

    Raises:
        CalibrationError: the statistics lack a value.
        ConfigError: the target does not offer the requested width.
    """

    def entry(value: str, point: ActivationPoint) -> TensorPlan:
        if point.same_as is not None:
            return TensorPlan(grid=None, same_as=point.same_as)
        if value in choices.kept_activations:
            return choices.kept_activations[value]
        choice = choices.of_activation(value)
        found = _plan_activation(graph, point, statistics, target, config, choice, choices.hessians)
        by_hand = choice.keep_float or choice.limits_by_hand
        if config.activation_per_channel and point.axis is not None and not by_hand:
            found = narrow_to_channels(found, point, _observed(graph, point, statistics), config.min_threshold)
        return replace(found, frozen=bool(choice.freeze))

    return {value: entry(value, point) for value, point in placement.activations.items()}


def _plan_activation(
    graph: Graph,
    point: ActivationPoint,
    statistics: Statistics,
    target: Target,
    config: QuantizationConfig,
    choice: TensorChoice,
    hessians: HessianScores,
) -> TensorPlan:
    if choice.keep_float or choice.grid is not None:
        return TensorPlan(grid=choice.grid)
    bits = choice.bits or point.rule.choose_bits(config.activation_bits, what="activations", target=target.name)
    fixed, rule = point.op_rule.fixed_output(bits), point.rule.at(bits)
    kind = rule.kind if choice.kind is None else cast(GridKindName, choice.kind)  # no target offers codebooks here
    if fixed is not None:
        return TensorPlan(grid=_prescribed(fixed, kind))
    if choice.limits_by_hand:
        signed = bool(_observed(graph, point, statistics).minimum < 0) if rule.signed is None else rule.signed
        return TensorPlan(grid=Grid.from_dict({"kind": kind, "bits": bits, "signed": signed, **choice.limits}))
    if point.bounds is not None and not choice.searched:
        return TensorPlan(grid=_analytic(point.bounds, rule.signed, kind, bits), metric="analytic range")
    if point.declared is not None and not choice.searched:
        declared = _declared(point.declared, rule.signed, kind, bits)
        if declared is not None:
            return TensorPlan(grid=declared, metric="declared range")
    observed = _observed(graph, point, statistics)
    metric = cast(ActivationMetric, choice.metric or config.activation_metric)  # "output" is for kernels
    if metric == MOVING_MAXIMUM:
        return clip_at_moving_maximum(point, statistics, observed, (kind, bits, rule.signed), config)
    counts, zeros = (
        _weighted(observed, hessians, point.value) if metric == "hmse" else (observed.counts, observed.zeros)
    )
    (found,) = search_histogram(
        counts,
        observed.first_bin,
        observed.width,
        minimum=observed.minimum,
        maximum=observed.maximum,
        zeros=zeros,
        bits=[bits],
        grid=kind,
        metric=metric,
        p=choice.p or config.p,
        signed=rule.signed,
        z_threshold=choice.z_threshold or config.z_threshold,
        mean=observed.mean,
        std=observed.std,
        min_threshold=config.min_threshold,
        holding=None if kind == "uniform" else point.holds,
    )
    return TensorPlan(grid=_found_grid(kind, found), error=found.error, metric=metric)


def _weighted(observed: TensorStatistics, hessians: HessianScores, value: str) -> tuple[npt.NDArray[np.float64], float]:
    """The histogram with each element counted by its Hessian score, and the exact zeros likewise."""
    scores = hessians.of_activation(value, len(observed.counts))
    at_zero = -observed.first_bin
    zeros = float(scores[at_zero]) * observed.zeros if 0 <= at_zero < len(scores) else 0.0
    return observed.counts * scores, zeros


def _observed(graph: Graph, point: ActivationPoint, statistics: Statistics) -> TensorStatistics:
    """Statistics of the value, or of all values that share its grid taken together."""
    if point.constant:
        accumulator = StatisticsAccumulator()
        accumulator.update(read_tensor(graph.module, point.value).detach().reshape(1, -1).contiguous().numpy())
        return TensorStatistics(accumulator.state())
    missing = [member for member in point.members if member not in statistics]
    if missing:
        raise CalibrationError(
            "the statistics hold nothing about a value that this target quantizes",
            where=missing[0],
            remedy="calibrate again without restricting `values`",
        )
    if len(point.members) == 1:
        return statistics[point.members[0]]
    return TensorStatistics.pool(statistics[member] for member in point.members)


def _found_grid(kind: str, found: HistogramSearch) -> Grid:
    if kind == "uniform":
        return Grid(
            kind="uniform",
            bits=found.bits,
            signed=found.signed,
            lower=np.float32(found.lower),
            upper=np.float32(found.upper),
        )
    return Grid.from_dict({"kind": kind, "bits": found.bits, "signed": found.signed, "threshold": found.threshold})


def _prescribed(fixed: FixedGrid, kind: str) -> Grid:
    data = {"kind": kind, "bits": fixed.bits, "signed": fixed.signed}
    if kind == "uniform":
        lower, upper = fixed.limits
        return Grid.from_dict({**data, "lower": lower, "upper": upper})
    return Grid.from_dict({**data, "threshold": fixed.scale * (1 << (fixed.bits - fixed.signed))})


def _analytic(bounds: tuple[float, float], signed: bool | None, kind: str, bits: int) -> Grid:
    """The grid that just covers limits known beforehand, such as a sigmoid's [0, 1]."""
    lower, upper = bounds
    signed = lower < 0 if signed is None else signed
    if kind == "uniform":
        return Grid.from_dict({"kind": "uniform", "bits": bits, "signed": signed, "lower": lower, "upper": upper})
    threshold = max(abs(lower), abs(upper))
    if kind == "power_of_two":
        threshold = float(2.0 ** np.ceil(np.log2(threshold)))
    return Grid.from_dict({"kind": kind, "bits": bits, "signed": signed, "threshold": threshold})


def _declared(limits: tuple[float, float], signed: bool | None, kind: str, bits: int) -> Grid | None:
    """The grid whose codes cover declared limits and nothing else, so that raw whole numbers keep their value.

    None if the target has none, or limits that are whole numbers hold more of them than there are codes: a search may
    then do better, since clipping what is rare can pay.
    """
    lower, upper = min(limits[0], 0.0), max(limits[1], 0.0)
    codes = 2**bits - 1
    if lower.is_integer() and upper.is_integer() and upper - lower > codes:
        return None
    signed = lower < 0 if signed is None else signed
    shared: dict[str, object] = {"kind": kind, "bits": bits, "signed": signed}
    if kind == "uniform":
        return Grid.from_dict({**shared, "lower": lower, "upper": upper})
    if lower < 0 and not signed:
        return None
    half = 2 ** (bits - 1)
    threshold = max(-lower, upper * half / (half - 1)) if signed else upper * 2**bits / codes
    if kind == "power_of_two":
        threshold = float(2.0 ** np.ceil(np.log2(threshold)))
    grid = Grid.from_dict({**shared, "threshold": threshold})
    return grid if float(grid.scale[0]) <= (upper - lower) / codes * (1 + 1e-6) else None


def search_weights(
    graph: Graph, placement: Placement, target: Target, config: QuantizationConfig, choices: Choices = _OPEN
) -> dict[str, TensorPlan]:
    """The entry of every kernel that `placement` quantizes, in its order; `choices` come before `config`.

    Raises:
        CalibrationError: a kernel holds NaN or infinity.
        ConfigError: the target does not offer the requested grid, width or group size.
    """

    def entry(point: WeightPoint) -> TensorPlan:
        if point.layer in choices.kept_weights:
            return choices.kept_weights[point.layer]
        choice = choices.of_weights(point.layer)
        found = _plan_weight(graph, point, target, config, choice, choices.hessians)
        return replace(found, frozen=bool(choice.freeze))

    points = placement.weights
    return dict(zip(points, map_in_threads(entry, points.values()), strict=True))


def _plan_weight(
    graph: Graph,
    point: WeightPoint,
    target: Target,
    config: QuantizationConfig,
    choice: TensorChoice,
    hessians: HessianScores,
) -> TensorPlan:
    if choice.keep_float:
        return TensorPlan(grid=None)
    if choice.grid is not None:
        return TensorPlan(grid=choice.grid, bias_bits=point.bias_bits if choice.grid.has_bias_step else None)
    weight = read_tensor(graph.module, point.parameter).detach()
    if not bool(weight.isfinite().all()):
        raise CalibrationError(
            "the weights hold NaN or infinity",
            where=_location(graph, point.layer),
            remedy="check the checkpoint; a network with such weights cannot be quantized",
        )
    config = for_kernel(config, choice)
    kind, bits = form_of_kernel(point, config, target)
    if choice.limits_by_hand:
        channels = 1 if point.axis is None else weight.shape[point.axis]
        limits = {name: np.broadcast_to(values, channels) for name, values in choice.limits.items()}
        narrow = point.rule.narrow_range and kind != "uniform"
        form = {"kind": kind, "bits": bits, "signed": True, "axis": point.axis, "narrow_range": narrow}
        return TensorPlan(grid=Grid.from_dict({**form, **limits}), bias_bits=point.bias_bits)
    shape = tuple(weight.shape)
    scores = hessians.of_kernel(point.layer, shape) if config.weights_metric == "hmse" else None
    if kind == "lut":
        grid, error = search_codebook_grid(weight.numpy(), bits, point, config, target.name, scores)
    else:
        group_size = group_size_of(point, shape, config.weights_group_size, target.name)
        grid, error = search_kernel_grid(weight.numpy(), kind, bits, point, group_size, config, scores)
    bias_bits = point.bias_bits if grid.has_bias_step else None
    return TensorPlan(grid=grid, error=error, metric=config.metric_of_kernel(bits), bias_bits=bias_bits)


def _location(graph: Graph, name: str) -> str:
    source = graph.find(name).source
    return name if source is None else f"{name} ({source})"
