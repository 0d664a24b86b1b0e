"""Carries out a plan on a graph: kernels and biases become codes, activations pass through their grids."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

import detent.graph.operators  # noqa: F401  (registers torch.ops.detent)
from detent.errors import ConfigError
from detent.graph import Graph, GraphNode
from detent.graph.biases import per_bias_entry
from detent.graph.channelwise import steps_of_outputs
from detent.graph.placement import WeightPoint, place
from detent.graph.roles import argument, argument_names
from detent.graph.shifts import COMPENSATED, FILL, missing_from_bias
from detent.quantized.check import check_plan
from detent.quantized.editor import GraphEditor
from detent.quantized.model import QuantizedModel
from detent.records.grid import Grid
from detent.records.grid_values import multiplied
from detent.records.plan import QuantPlan, TensorPlan
from detent.targets import load_target

__all__ = ["assemble"]

_INT32_MAX = 2**31 - 1


def assemble(graph: Graph, plan: QuantPlan, *, trainable: bool = False) -> QuantizedModel:
    """Build the quantized model of `graph` and `plan`.

    Args:
        graph: the captured network; it is not changed.
        plan: the decisions, made for this graph, perhaps edited by hand.
        trainable: keep float kernels and biases as parameters and quantize kernels in each forward pass, so that
            training moves them; otherwise the model holds integer codes.

    Raises:
        ConfigError: the plan asks for something the graph or the target cannot do; the error names the tensor.
    """
    target = load_target(plan.target)
    placement = place(graph, target)
    check_plan(graph, plan, placement, target)
    nodes = {node.name: node for node in graph.nodes()}
    assembly = _Assembly(graph, plan, trainable)
    for point in placement.weights.values():
        assembly.quantize_kernel(point, [nodes[user] for user in point.users])
        for user, source in zip(point.users, point.inputs, strict=True):
            assembly.settle_bias(point, nodes[user], source)
    for value, point_of_value in placement.activations.items():
        grid = plan.activation_grid(value)
        if grid is not None and point_of_value.constant:
            assembly.quantize_constant(value, grid)
        elif grid is not None:
            assembly.quantize_activation(nodes[value].node, value, grid)
    for node in graph.nodes():
        if FILL in node.node.meta:
            assembly.quantize_fill(node)
    return QuantizedModel(
        assembly.editor.finish(),
        plan,
        inputs=graph.inputs,
        outputs=tuple(graph.name_of(node) for node in graph.outputs()),
        dynamic_batch=graph.batch.dynamic,
        notes=list(dict.fromkeys([*graph.notes, *plan.notes])),
        input_dtype=target.input_dtype,
        output_dtype=target.output_dtype,
    )


class _Assembly:
    def __init__(self, graph: Graph, plan: QuantPlan, trainable: bool) -> None:
        self.graph = graph
        self.plan = plan
        self.trainable = trainable
        self.editor = GraphEditor(graph.module)

    def quantize_kernel(self, point: WeightPoint, users: Iterable[GraphNode]) -> None:
        """Replace a kernel by its codes, for all operations that share it."""
        entry = self.plan.weights[point.layer]
        if entry.grid is not None:
            reads = [(user.weight, user.node) for user in users if user.weight is not None]
            self._quantize_reads(dict.fromkeys(reads), entry, point.parameter)

    def quantize_constant(self, path: str, grid: Grid) -> None:
        """Replace a stored tensor that takes part in the arithmetic by its codes, wherever it is read."""
        nodes = self.graph.module.graph.nodes
        reads = [node for node in nodes if node.op == "get_attr" and str(node.target) == path]
        self._quantize_reads([(read, user) for read in reads for user in read.users], TensorPlan(grid=grid), path)

    def _quantize_reads(self, reads: Iterable[tuple[fx.Node, fx.Node]], entry: TensorPlan, path: str) -> None:
        """Replace reads of a stored tensor, given as (read, user) of the captured graph, by its quantized form."""
        grid = entry.grid
        assert grid is not None
        quantized: dict[fx.Node, fx.Node] = {}
        stored: tuple[object, ...] | None = None
        for original, user in reads:
            read = self.editor.copies[original]
            if read not in quantized:
                values = np.ascontiguousarray(self.graph.tensor(original).detach().cpu().numpy())
                if self.trainable:
                    source = self._trainable(read, values, entry, path)
                    quantized[read] = self._fake_quantize(source, source, path, grid)
                else:
                    stored = stored or self._store_codes(path, entry.codes_of(values), grid)
                    quantized[read] = self._expand(read, grid, stored)
                quantized[read].meta = dict(read.meta)
            self.editor.copies[user].replace_input_with(read, quantized[read])

    def _trainable(self, read: fx.Node, kernel: npt.NDArray[np.float32], entry: TensorPlan, path: str) -> fx.Node:
        """A read of the trainable kernel that is rounded to nearest: itself, with its gains, or already on the grid."""
        if entry.codes is not None:
            stored = self.editor.store(f"{path}_rounded", entry.rounded(kernel), trainable=True)
        elif entry.gain is not None and entry.grid is not None:
            values = multiplied(kernel, entry.gain, entry.grid.axis)
            stored = self.editor.store(f"{path}_multiplied", values, trainable=True)
        else:
            return read
        return self.editor.read_after(read, stored)

    def _store_codes(self, path: str, codes: npt.NDArray[Any], grid: Grid) -> tuple[object, ...]:
        stored = self.editor.store(f"{path}_codes", codes), self.editor.store(f"{path}_scale", grid.scale)
        if grid.table is not None:
            return *stored, self.editor.store(f"{path}_table", grid.table)
        return *stored, self.editor.store(f"{path}_zero_point", grid.zero_point)

    def _expand(self, anchor: fx.Node, grid: Grid, stored: tuple[object, ...]) -> fx.Node:
        if grid.table is not None:
            return self.editor.call_after(anchor, torch.ops.detent.lut_dequantize.default, *stored, grid.axis)
        operator = torch.ops.detent.dequantize.default
        return self.editor.call_after(anchor, operator, *stored, grid.axis, grid.group_size)

    def settle_bias(self, point: WeightPoint, node: GraphNode, source: str | None) -> None:
        """Correct a bias, and replace it by whole multiples of (input step) x (kernel step) where both steps exist.

        They are 32-bit codes, or float numbers where the target keeps biases in float: those are moved by half such a
        step at most, a fraction of a code of the output, so that accumulator plus bias is a whole number of steps
        (`thresholds.ties` relies on it).
        """
        added = self._added_to_bias(point, node)
        if node.bias is None and added is None:
            return
        stored = None if node.bias is None else self.graph.tensor(node.bias).detach().cpu().numpy()
        bias = stored if added is None else (0.0 if stored is None else stored) + added
        assert bias is not None
        steps = self._bias_steps(point, node, source, len(bias))
        if steps is None:
            if added is not None:
                self._read_bias(point, node, "corrected", bias)
            return
        multiples = np.rint(bias.astype(np.float64) / steps.astype(np.float64))
        if self.plan.weights[point.layer].bias_bits is None:
            self._read_bias(point, node, "rounded", (multiples * steps.astype(np.float64)).astype(np.float32))
            return
        codes = _bias_codes(multiples, bias, steps, node.name)
        self._read_bias(point, node, "codes", codes, steps, np.zeros(len(steps), np.int32))

    def _added_to_bias(self, point: WeightPoint, node: GraphNode) -> npt.NDArray[np.float32] | None:
        """The plan's correction, and for a shifted input what the rounding of the kernel makes of the shift."""
        correction, entry = self.plan.bias_corrections.get(node.name), self.plan.weights[point.layer]
        added = None if correction is None else correction.shift
        if COMPENSATED not in node.node.meta or entry.grid is None or node.weight is None:
            return added
        kernel = np.ascontiguousarray(self.graph.tensor(node.weight).detach().cpu().numpy())
        missing = missing_from_bias(node, kernel.astype(np.float64) - entry.rounded(kernel))
        return missing if added is None or missing is None else added + missing

    def _bias_steps(
        self, point: WeightPoint, node: GraphNode, source: str | None, channels: int
    ) -> npt.NDArray[np.float32] | None:
        """The accumulator's step for each entry of a bias `[1]` or `[channels]`; None if it has none."""
        kernel = self.plan.weights[point.layer].grid
        input_grid = None if source is None else self.plan.activation_grid(source)
        if self.trainable or kernel is None or input_grid is None:
            return None
        if not kernel.has_bias_step:
            return None
        return _accumulator_steps(input_grid, kernel, channels, node.name)

    def _read_bias(self, point: WeightPoint, node: GraphNode, leaf: str, *arrays: npt.NDArray[Any]) -> None:
        """Make a layer read another bias: one array as it is, or codes with their scale and zero point."""
        assert node.weight is not None
        call, original = self.editor.copies[node.node], node.bias or node.weight
        path = str(node.bias.target) if node.bias is not None else f"{node.weight.target}_bias"
        path = path if len(point.users) == 1 else f"{path}_{node.name}"
        names = (leaf,) if len(arrays) == 1 else (leaf, "scale", "zero_point")
        stored = [
            self.editor.store(f"{path}_{name}", array, trainable=self.trainable)
            for name, array in zip(names, arrays, strict=True)
        ]
        anchor = self.editor.copies[original]
        if len(stored) == 1:
            read = self.editor.read_after(anchor, stored[0])
        else:
            operator = torch.ops.detent.dequantize.default
            read = self.editor.call_after(anchor, operator, *stored, 0 if len(arrays[1]) > 1 else None, None)
        if node.bias is not None:
            read.meta = dict(anchor.meta)
            call.replace_input_with(anchor, read)
        else:
            data, weight = argument(call, "input"), argument(call, "weight")
            call.kwargs = {name: v for name, v in call.kwargs.items() if name not in ("input", "weight", "bias")}
            call.args = (data, weight, read, *call.args[3:])

    def quantize_activation(self, node: fx.Node, value: str, grid: Grid) -> None:
        """Pass a computed value through its grid on the way to all its users."""
        value_node = self.editor.copies[node]
        users = list(value_node.users)
        inputs = [other for other in self.editor.graph.nodes if other.op == "placeholder"]
        anchor = inputs[-1] if node.op == "placeholder" else value_node
        quantized = self._fake_quantize(anchor, value_node, f"activations.{value}", grid)
        quantized.meta = dict(value_node.meta)
        for user in users:
            user.replace_input_with(value_node, quantized)

    def quantize_fill(self, node: GraphNode) -> None:
        """Put the number that a padding stands beside shifted values with on their grid."""
        source = node
        while source.preserving and source.name not in self.plan.activations:
            source = self.graph.find(self.graph.name_of(source.data[0]))
        grid = self.plan.activation_grid(source.name) if source.name in self.plan.activations else None
        if grid is None:
            return
        number = np.array([argument(node.node, "value")], np.float32)
        call = self.editor.copies[node.node]
        given = {name: argument(call, name) for name in argument_names(call)}
        call.args, call.kwargs = tuple({**given, "value": float(grid.round(number)[0])}.values()), {}

    def _fake_quantize(self, anchor: fx.Node, node: fx.Node, path: str, grid: Grid) -> fx.Node:
        scale = self.editor.store(f"{path}_scale", grid.scale)
        if grid.table is not None:
            table = self.editor.store(f"{path}_table", grid.table)
            operator = torch.ops.detent.lut_fake_quantize.default
            return self.editor.call_after(anchor, operator, node, scale, table, grid.axis)
        zero_point = self.editor.store(f"{path}_zero_point", grid.zero_point)
        operator = torch.ops.detent.fake_quantize.default
        return self.editor.call_after(
            anchor, operator, node, scale, zero_point, grid.qmin, grid.qmax, grid.axis, grid.group_size
        )


def _accumulator_steps(input_grid: Grid, kernel: Grid, channels: int, where: str) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore", under="ignore"):
        products = steps_of_outputs(input_grid.scale, channels) * per_bias_entry(kernel.scale, channels)
        steps = products.astype(np.float32)
    if not bool(np.all((steps > 0) & np.isfinite(steps))):
        raise ConfigError(
            "the bias step, (input step) x (kernel step), is not a float32 number",
            where=where,
            remedy="give this layer's kernel or input limits of ordinary size in the plan",
        )
    return steps


def _bias_codes(
    multiples: npt.NDArray[np.float64], bias: npt.NDArray[np.float32], scale: npt.NDArray[np.float32], where: str
) -> npt.NDArray[np.int32]:
    worst = int(np.argmax(np.abs(multiples)))
    if abs(multiples[worst]) > _INT32_MAX:
        raise ConfigError(
            f"the bias of channel {worst} ({float(bias[worst]):.4g}) does not fit 32 bits at step "
            f"{float(scale[worst % len(scale)]):.4g}",
            where=where,
            remedy="raise the weight threshold of that channel in the plan (detent.plan does so by itself)",
        )
    return multiples.astype(np.int32)
