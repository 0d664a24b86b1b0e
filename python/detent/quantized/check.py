"""Whether a plan can be carried out on a graph: everything a person may have edited is checked, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from detent._registry import unknown_name
from detent.errors import ConfigError
from detent.graph import Graph
from detent.graph.biases import correctable_layers
from detent.graph.placement import ActivationPoint, Placement, WeightPoint, first_misfit
from detent.graph.shapes import concrete_shape
from detent.records.grid import LUT_STEPS, FloatVector, Grid
from detent.records.plan import QuantPlan, TensorPlan
from detent.targets import OpRule, Target

__all__ = ["check_plan"]


def check_plan(graph: Graph, plan: QuantPlan, placement: Placement, target: Target) -> None:
    """Refuse a plan that `graph` or `target` cannot honour.

    Raises:
        ConfigError: the plan is for another model, names an unknown tensor, lacks one, or asks for a grid that the
            target does not compute with or that does not fit the tensor; the error names the tensor.
    """
    fingerprint = graph.fingerprint()
    if plan.graph != fingerprint:
        raise ConfigError(
            f"the plan was made for another model (graph {plan.graph[:12]}, this one is {fingerprint[:12]})",
            remedy="plan again for this model; structure and weights must be those the plan was made for",
        )
    _check_preprocessing(graph, plan)
    _check_names("activation", plan.activations, placement.activations)
    _check_names("layer", plan.weights, placement.weights)
    for value, point in placement.activations.items():
        entry = plan.activations[value]
        if point.same_as is not None and entry.same_as != point.same_as:
            raise ConfigError(
                f"target {target.name!r} computes this tensor on the grid of {point.same_as!r}",
                where=value,
                remedy=f'restore {{"same_as": "{point.same_as}"}} and edit {point.same_as!r} instead',
            )
        for word in ("bias_bits", "gain", "codes"):
            if getattr(entry, word) is not None:
                raise ConfigError(f"`{word}` is for weights, an activation has none", where=value)
        grid = plan.activation_grid(value)
        if grid is not None:
            _check_channels(graph, grid, point)
            _check_width(grid.bits, point.rule.bits, value, target)
            rule = point.rule.at(grid.bits)
            _check_kind(grid.kind, rule.kinds, value, target)
            _check_sign(grid, rule.signed, value, target)
            if point.same_as is None:
                _check_prescribed(grid, point.op_rule, value, target)
    for layer, weight_point in placement.weights.items():
        weight = plan.weights[layer]
        if weight.grid is not None:
            weight_point.rule.require_kind(weight.grid.kind, where=layer, target=target.name)
            _check_width(weight.grid.bits, weight_point.rule.widths(weight.grid.kind), layer, target)
            if weight.grid.group_size is not None:
                weight_point.rule.require_group_size(weight.grid.group_size, where=layer, target=target.name)
            if weight.grid.table is not None:
                _check_codebook(weight.grid, weight.grid.table, weight_point, target)
            _check_shape(graph, weight.grid, weight_point)
            _check_bias(weight, weight_point, target)
            _check_gain(weight, layer)
            _check_codes(graph, weight, layer)
    _check_corrections(graph, plan, placement)
    _check_readers(plan, placement, target)


def _check_readers(plan: QuantPlan, placement: Placement, target: Target) -> None:
    def bits_of(value: str) -> int | None:
        grid = plan.activation_grid(value)
        return None if grid is None else grid.bits

    found = first_misfit(placement, bits_of)
    if found is not None:
        limit, widths = found
        raise ConfigError(
            f"the value has {bits_of(limit.value)} bits in the plan, but {limit.reader} reads {widths} on target "
            f"{target.name!r}",
            where=limit.value,
            remedy="edit `bits` of the values around that operation",
        )


def _check_corrections(graph: Graph, plan: QuantPlan, placement: Placement) -> None:
    correctable = correctable_layers(graph, placement)
    for name, correction in plan.bias_corrections.items():
        if name not in correctable:
            raise unknown_name("layer in `bias_corrections`", name, correctable)
        shape = graph.find(name).shape
        axis = graph.find(name).channel_axis
        assert shape is not None
        assert axis is not None
        if len(correction.shift) != shape[axis]:
            raise ConfigError(
                f"the layer has {shape[axis]} output channels, its bias correction {len(correction.shift)} numbers",
                where=name,
            )


def _check_preprocessing(graph: Graph, plan: QuantPlan) -> None:
    own = {spec.name: spec.preprocessing for spec in graph.inputs if spec.preprocessing is not None}
    for name in {**own, **plan.preprocessing}:
        if own.get(name) != plan.preprocessing.get(name):
            raise ConfigError(
                f"the plan preprocesses this input by {plan.preprocessing.get(name)}, the graph by {own.get(name)}",
                where=f"input {name!r}",
                remedy="capture with preprocessing=plan.preprocessing, or plan again",
            )


def _check_channels(graph: Graph, grid: Grid, point: ActivationPoint) -> None:
    if grid.group_size is not None:
        raise ConfigError("groups are for kernels, remove `group_size`", where=point.value)
    if grid.axis is None:
        return
    if point.axis is None:
        raise ConfigError(
            f"this activation has one step for all channels: {point.one_step}",
            where=point.value,
            remedy="remove `axis`, and give one number for each limit",
        )
    shape = graph.find(point.value).shape
    assert shape is not None
    if (grid.axis, grid.size) != (point.axis, shape[point.axis]):
        raise ConfigError(
            f"the value has {shape[point.axis]} channels along axis {point.axis}, the plan {grid.size} along axis "
            f"{grid.axis}",
            where=point.value,
        )


def _check_names(kind: str, planned: Iterable[str], placed: Iterable[str]) -> None:
    planned, placed = list(planned), list(placed)
    for name in planned:
        if name not in placed:
            raise unknown_name(f"{kind} in the plan", name, placed)
    for name in placed:
        if name not in planned:
            raise ConfigError(
                f"the plan has no entry for this {kind}", where=name, remedy='add one; "float" keeps it in float'
            )


def _check_width(bits: int, widths: tuple[int, ...], where: str, target: Target) -> None:
    if bits not in widths:
        offered = ", ".join(map(str, sorted(widths)))
        raise ConfigError(
            f"target {target.name!r} offers {offered} bits here, the plan asks for {bits}",
            where=where,
            remedy="edit `bits` in the plan, or use a target file that extends this one",
        )


def _check_kind(kind: str, kinds: tuple[str, ...], where: str, target: Target) -> None:
    if kind not in kinds:
        raise ConfigError(f"target {target.name!r} computes with {kinds[0]} grids, the plan has {kind}", where=where)


def _check_codebook(grid: Grid, table: FloatVector, point: WeightPoint, target: Target) -> None:
    where = point.layer
    if table.ndim == 2:
        point.rule.require_codebook_per_channel(where=where, target=target.name)
    if grid.group_size is not None:
        raise ConfigError(
            "a codebook has one threshold a channel, none for each group", where=where, remedy="remove `group_size`"
        )
    whole = np.rint(table) == table
    if not bool(np.all(whole & (table >= -LUT_STEPS) & (table < LUT_STEPS))):
        raise ConfigError(
            f"the codebook of a kernel holds whole numbers in {-LUT_STEPS}..{LUT_STEPS - 1}, in units of threshold / "
            f"{LUT_STEPS}",
            where=where,
            remedy="edit `table` in the plan, or plan again",
        )


def _check_sign(grid: Grid, signed: bool | None, where: str, target: Target) -> None:
    if signed is not None and grid.signed != signed:
        word = "signed" if signed else "unsigned"
        raise ConfigError(f"target {target.name!r} has {word} activation codes only", where=where)


def _check_prescribed(grid: Grid, rule: OpRule, where: str, target: Target) -> None:
    fixed = rule.fixed_output(grid.bits)
    if fixed is None:
        return
    planned = (float(grid.scale[0]), int(grid.zero_point[0]), grid.signed)
    if planned != (float(np.float32(fixed.scale)), fixed.zero_point, fixed.signed):
        raise ConfigError(
            f"target {target.name!r} prescribes step {fixed.scale:g} and zero point {fixed.zero_point} here, the plan "
            f"has {planned[0]:g} and {planned[1]}",
            where=where,
            remedy=f'restore "lower": {fixed.limits[0]!r}, "upper": {fixed.limits[1]!r}, or write "float"',
        )


def _check_bias(weight: TensorPlan, point: WeightPoint, target: Target) -> None:
    if weight.grid is not None and not weight.grid.has_bias_step:
        if weight.bias_bits is not None:
            raise ConfigError(
                "a kernel with a step for each group has none for its bias, which stays in float",
                where=point.layer,
                remedy="remove `bias_bits` from this entry",
            )
        return
    if weight.bias_bits != point.bias_bits:
        wanted = "a float bias, remove `bias_bits`" if point.bias_bits is None else f"`bias_bits` {point.bias_bits}"
        raise ConfigError(f"target {target.name!r} computes this layer with {wanted}", where=point.layer)


def _check_gain(weight: TensorPlan, where: str) -> None:
    if weight.gain is None or weight.grid is None:
        return
    groups = weight.grid.group_size is not None
    if weight.grid.size % len(weight.gain) if groups else weight.grid.size != len(weight.gain):
        raise ConfigError(
            f"the kernel has {weight.grid.size} thresholds, its gain {len(weight.gain)} numbers",
            where=where,
            remedy="give one number for each, or remove `gain`",
        )


def _check_codes(graph: Graph, weight: TensorPlan, where: str) -> None:
    read = graph.find(where).weight
    assert read is not None
    if weight.codes is not None and weight.codes.codes.shape != concrete_shape(read):
        raise ConfigError(
            f"the kernel is {list(concrete_shape(read))}, its codes are {list(weight.codes.codes.shape)}",
            where=where,
            remedy="remove `codes` to round the kernel to nearest, or round it again",
        )


def _check_shape(graph: Graph, grid: Grid, point: WeightPoint) -> None:
    if not grid.signed:
        raise ConfigError("weights have signed codes", where=point.layer)
    narrowable = grid.kind in ("symmetric", "power_of_two")
    if narrowable and grid.narrow_range != point.rule.narrow_range:
        raise ConfigError(
            f"`narrow_range` must be {str(point.rule.narrow_range).lower()} on this target", where=point.layer
        )
    if grid.axis not in (None, point.axis):
        raise ConfigError(
            f"the channel axis of this kernel is {point.axis}, the plan says {grid.axis}", where=point.layer
        )
    read = graph.find(point.layer).weight
    assert read is not None
    shape = concrete_shape(read)
    if grid.axis is None:
        return
    groups = 1
    if grid.group_size is not None:
        # Groups run along the kernel's input axis, as `detent.kernels.quantize` counts them.
        inputs = shape[1 if grid.axis == 0 else 0] if len(shape) > 1 else 0
        if not inputs or inputs % grid.group_size:
            raise ConfigError(
                f"`group_size` {grid.group_size} does not divide the {inputs} input channels of this kernel",
                where=point.layer,
            )
        groups = inputs // grid.group_size
    if grid.size != shape[grid.axis] * groups:
        per = f" of {groups} groups each" if grid.group_size is not None else ""
        raise ConfigError(
            f"the kernel has {shape[grid.axis]} channels{per}, the plan {grid.size} thresholds", where=point.layer
        )
