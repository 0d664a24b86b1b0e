"""Quantized models made by hand for the export tests: any grid on any value, without calibration or targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx, nn

import detent.graph.operators  # noqa: F401  (registers torch.ops.detent)
from detent.config import Preprocessing
from detent.graph import Graph, InputSpec, capture
from detent.graph.names import NAME
from detent.kernels.quantize import lut_quantize, quantize
from detent.records.grid import Grid
from detent.records.plan import QuantPlan, TensorPlan

FAKE_QUANTIZE = torch.ops.detent.fake_quantize.default
DEQUANTIZE = torch.ops.detent.dequantize.default
LUT_DEQUANTIZE = torch.ops.detent.lut_dequantize.default

GridRule = Callable[[torch.Tensor], Grid | None]


@dataclass
class HandQuantized:
    """Has the attributes exporters read of a `QuantizedModel`."""

    graph_module: fx.GraphModule
    plan: QuantPlan
    inputs: tuple[InputSpec, ...]
    output_names: tuple[str, ...]
    dynamic_batch: bool
    example: tuple[torch.Tensor, ...]
    preprocessing: dict[str, Preprocessing] = field(default_factory=dict)
    input_dtype: str = "float32"
    output_dtype: str = "float32"
    notes: list[str] = field(default_factory=list)

    def __call__(self, *inputs: torch.Tensor) -> Any:
        return self.graph_module(*inputs)


def power_of_two(bits: int = 8, *, signed: bool | None = None, axis: int | None = None) -> GridRule:
    """Power-of-two grid over the value's absolute maximum; unsigned where the value allows, unless given."""

    def rule(value: torch.Tensor) -> Grid:
        limit = np.exp2(np.ceil(np.log2(np.maximum(_absmax(value, axis), 2.0**-10))))
        sign = bool(value.min() < 0) if signed is None else signed
        return Grid(kind="power_of_two", bits=bits, signed=sign, threshold=limit, axis=axis)

    return rule


def symmetric(
    bits: int = 8, *, axis: int | None = None, narrow_range: bool = True, group_size: int | None = None
) -> GridRule:
    """Signed symmetric grid per tensor, channel or group."""

    def rule(value: torch.Tensor) -> Grid:
        limit = np.maximum(_absmax(value, axis, group_size), 1e-4) * 2 ** (bits - 1) / (2 ** (bits - 1) - 1)
        return Grid(
            kind="symmetric",
            bits=bits,
            signed=True,
            threshold=limit,
            axis=axis,
            group_size=group_size,
            narrow_range=narrow_range,
        )

    return rule


def uniform(bits: int = 8, *, signed: bool = False, axis: int | None = None) -> GridRule:
    """Grid over the value's range, with a zero point."""

    def rule(value: torch.Tensor) -> Grid:
        rows = value.flatten()[None] if axis is None else value.movedim(axis, 0).flatten(1)
        lower, upper = rows.min(1).values.numpy(), rows.max(1).values.numpy()
        return Grid(kind="uniform", bits=bits, signed=signed, lower=lower, upper=upper, axis=axis)

    return rule


def codebook(bits: int, *, axis: int | None = None) -> GridRule:
    """Grid of `2^bits` values, closer to each other near zero."""

    def rule(value: torch.Tensor) -> Grid:
        table = np.round(128 * np.sinh(np.linspace(-2, 2, 1 << bits)) / np.sinh(2))
        return Grid(kind="lut", bits=bits, signed=True, threshold=_absmax(value, axis), axis=axis, table=table)

    return rule


def keep_float(value: torch.Tensor) -> None:
    """No grid."""


def mixed(default: GridRule, rules: Mapping[str, GridRule]) -> Mapping[str, GridRule]:
    """Another rule for some names than for all others."""
    return {"": default, **rules}


def _absmax(value: torch.Tensor, axis: int | None, group_size: int | None = None) -> np.ndarray:
    if axis is None:
        return np.atleast_1d(value.abs().max().numpy())
    rows = value.abs().movedim(axis, 0)
    if group_size is not None:
        rows = rows.unflatten(1, (-1, group_size)).flatten(0, 1)
    return rows.flatten(1).amax(1).numpy()


def quantize_by_hand(
    model: nn.Module,
    example: Any,
    *,
    activations: GridRule | Mapping[str, GridRule] | None = None,
    weights: GridRule | Mapping[str, GridRule] | None = None,
    biases: bool = True,
    trainable: bool = False,
    dynamic_batch: bool = True,
) -> HandQuantized:
    """Quantize every float value and kernel by the rules; ranges come from the example."""
    graph = capture(model, example, dynamic_batch=dynamic_batch)
    values = _Recorder(graph).run_all(graph.flatten(example))
    work = graph.copy()
    plan: dict[str, dict[str, TensorPlan]] = {"activations": {}, "weights": {}}
    grids: dict[str, Grid] = {}
    for node in work.nodes():
        rule = _rule(activations, node.name, uniform())
        grid = rule(values[node.name]) if node.is_float and not node.preserving else None
        if grid is not None:
            grids[node.name] = grid
    for node in work.nodes():
        if node.weight is not None:
            rule = _rule(weights, node.name, symmetric(axis=node.weight_axes[0]))
            grid = rule(work.tensor(node.weight).detach())
            if grid is not None:
                source = grids.get(work.name_of(_root(work, node.data[0])))
                _quantize_kernel(work, node, grid, source if biases else None, trainable)
                plan["weights"][node.name] = TensorPlan(grid=grid)
    for node in work.nodes():
        if node.name in grids:
            _quantize_value(work, node.node, node.name, grids[node.name])
            plan["activations"][node.name] = TensorPlan(grid=grids[node.name])
    work.module.graph.lint()
    module = fx.GraphModule(work.module, work.module.graph)
    return HandQuantized(
        graph_module=module,
        plan=QuantPlan(target="by hand", graph=graph.fingerprint(), samples=2, **plan),
        inputs=graph.inputs,
        output_names=tuple(graph.name_of(node) for node in graph.outputs()),
        dynamic_batch=graph.batch.dynamic,
        example=tuple(torch.zeros(spec.shape, dtype=spec.dtype) for spec in graph.inputs),
    )


def _rule(rules: GridRule | Mapping[str, GridRule] | None, name: str, usual: GridRule) -> GridRule:
    if isinstance(rules, Mapping):
        return rules.get(name, rules[""])
    return rules or usual


class _Recorder(fx.Interpreter):
    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.module)
        self.values: dict[str, torch.Tensor] = {}

    def run_all(self, inputs: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            self.run(*inputs, enable_io_processing=False)
        return self.values

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if NAME in node.meta:
            self.values[node.meta[NAME]] = value
        return value


def _root(graph: Graph, node: fx.Node) -> fx.Node:
    found = {n.node: n for n in graph.nodes()}
    while node in found and found[node].preserving:
        node = found[node].data[0]
    return node


def _store(graph: Graph, before: fx.Node, name: str, array: np.ndarray) -> fx.Node:
    owner, _, leaf = name.rpartition(".")
    module: nn.Module = graph.module
    for part in owner.split(".") if owner else ():
        if not isinstance(getattr(module, part, None), nn.Module):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    number = 0
    while hasattr(module, leaf if not number else f"{leaf}{number}"):
        number += 1
    leaf = leaf if not number else f"{leaf}{number}"
    module.register_buffer(leaf, torch.from_numpy(np.array(array)))
    with graph.module.graph.inserting_before(before):
        return graph.module.graph.get_attr(f"{owner}.{leaf}" if owner else leaf)


def _insert(graph: Graph, user: fx.Node, read: fx.Node, operator: Any, *arguments: Any) -> None:
    """Replace a read of a stored tensor by `operator`; arrays among the arguments become buffers named after it."""
    names = iter(("codes", "scale", "zero_point") if operator is not FAKE_QUANTIZE else ("scale", "zero_point"))
    resolved = [
        _store(graph, user, f"{read.target}_{next(names)}", argument) if isinstance(argument, np.ndarray) else argument
        for argument in arguments
    ]
    with graph.module.graph.inserting_before(user):
        quantized = graph.module.graph.call_function(operator, tuple(resolved))
    user.replace_input_with(read, quantized)


def _quantize_kernel(graph: Graph, node: Any, grid: Grid, source: Grid | None, trainable: bool) -> None:
    value = graph.tensor(node.weight).detach().numpy()
    affine, layout = (grid.scale, grid.zero_point), (grid.axis, grid.group_size)
    bias = node.bias
    if grid.table is not None:
        codes = lut_quantize(value, grid.scale, grid.table, axis=grid.axis)
        _insert(graph, node.node, node.weight, LUT_DEQUANTIZE, codes, grid.scale, np.array(grid.table), grid.axis)
    elif trainable:
        _insert(graph, node.node, node.weight, FAKE_QUANTIZE, node.weight, *affine, grid.qmin, grid.qmax, *layout)
    else:
        storage = grid.dtype.replace("int4", "int8")
        codes = quantize(
            value, *affine, grid.qmin, grid.qmax, dtype=storage, axis=grid.axis, group_size=grid.group_size
        )
        _insert(graph, node.node, node.weight, DEQUANTIZE, codes, *affine, *layout)
    if bias is not None and source is not None and grid.group_size is None and not trainable:
        step = (source.scale * grid.scale).astype(np.float32)
        whole = np.rint(graph.tensor(bias).detach().double().numpy() / step).astype(np.int32)
        axis = None if grid.axis is None else 0
        _insert(graph, node.node, bias, DEQUANTIZE, whole, step, np.zeros(len(step), np.int32), axis, None)


def _quantize_value(graph: Graph, node: fx.Node, name: str, grid: Grid) -> None:
    users = list(node.users)
    anchor = node.next
    while anchor.op == "placeholder":
        anchor = anchor.next
    scale = _store(graph, anchor, f"activations.{node.name}_scale", grid.scale)
    zero_point = _store(graph, anchor, f"activations.{node.name}_zero_point", grid.zero_point)
    arguments = (node, scale, zero_point, grid.qmin, grid.qmax, grid.axis, grid.group_size)
    with graph.module.graph.inserting_before(anchor):
        quantized = graph.module.graph.call_function(FAKE_QUANTIZE, arguments)
    quantized.meta = dict(node.meta)
    for user in users:
        user.replace_input_with(node, quantized)
