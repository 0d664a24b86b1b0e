"""Tagging: giving each quantizer of a torch graph an identity that survives the export to ONNX.

Exporters merge tensors of equal content and rename nodes, so neither tells quantizers apart afterwards. Each is
replaced by a private operator with the same arguments and a number, which becomes an attribute of the ONNX node.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import fx

import detent.graph.operators  # noqa: F401  (registers torch.ops.detent)
from detent.errors import ExportError
from detent.exporters.subject import ExportableModel
from detent.graph.names import NAME, describe_place
from detent.graph.roles import argument, argument_names, op_name
from detent.kernels.quantize import lut_quantize, quantize
from detent.records.plan import QuantPlan

__all__ = ["TAGGED", "Quantizer", "Tagged", "least_opset", "tag_quantizers"]

_QUANTIZERS: Final = ("fake_quantize", "dequantize", "lut_fake_quantize", "lut_dequantize")

_library: Any = torch.library  # without annotations in torch
_LIBRARY: Final = _library.Library("detent_export", "DEF")


def _define_tagged(name: str) -> Any:
    """Register the tagged form of a `torch.ops.detent` operator; it is traced and never run."""
    schema = str(getattr(torch.ops.detent, name).default._schema)
    arguments = schema[schema.index("(") + 1 : schema.rindex(") ->")]
    _LIBRARY.define(f"{name}({arguments}, *, int tag) -> Tensor")
    _LIBRARY.impl(name, lambda x, *_, **__: torch.empty_like(x, dtype=torch.float32), "Meta")
    return getattr(torch.ops.detent_export, name).default


TAGGED: Final = {name: _define_tagged(name) for name in ("fake_quantize", "dequantize", "lut_dequantize")}
"""Operator name to its tagged form."""


@dataclass(frozen=True, kw_only=True)
class Quantizer:
    """What the ONNX graph must know of one quantizer besides its tensors.

    Args:
        name: detent's name of the value that is quantized.
        bits: width of the codes where the grid is known; None leaves it to the storage type (biases).
        where: name of the value and the user's source line, for errors.
    """

    name: str
    bits: int | None
    where: str


@dataclass(frozen=True, kw_only=True)
class Tagged:
    """A module of tagged quantizers, and what each of them is, by its tag."""

    module: fx.GraphModule
    quantizers: Sequence[Quantizer]


def tag_quantizers(qmodel: ExportableModel) -> Tagged:
    """Copy the model's graph with a tag on every quantizer; the model is left as it is and shares its tensors.

    Raises:
        ExportError: a quantizer that ONNX cannot express, or a model that is not on the CPU.
    """
    module = _flat_copy(qmodel.graph_module)
    graph = module.graph
    quantizers: list[Quantizer] = []
    for found in list(graph.nodes):
        if found.op == "call_function" and op_name(found).startswith("avg_pool") and _divisor(found) is not None:
            raise ExportError(
                "ONNX has no average pool with a divisor of its own",
                where=describe_place(found),
                remedy="multiply behind a pool without `divisor_override`",
            )
        if _quantizer_name(found) is None:
            continue
        node = _with_stored_codes(module, found)
        operator = _quantizer_name(node)
        if operator not in TAGGED:
            raise ExportError(
                "ONNX has no operator for activations on a codebook grid",
                where=describe_place(node),
                remedy="give this activation a uniform, symmetric or power_of_two grid",
            )
        quantizers.append(_describe(node, module, qmodel.plan))
        node.target = TAGGED[operator]
        node.kwargs = {**node.kwargs, "tag": len(quantizers) - 1}
    graph.eliminate_dead_code()
    graph.lint()
    module.recompile()
    return Tagged(module=module, quantizers=quantizers)


def _flat_copy(source: fx.GraphModule) -> fx.GraphModule:
    """A copy with nodes of its own, shared tensors, and flat inputs and outputs whatever the user's model has."""
    graph = fx.Graph()
    result = graph.graph_copy(source.graph, {})
    graph.output(result)
    module = fx.GraphModule(source, graph)
    for node in list(graph.nodes):
        if node.op == "call_module" and str(node.target).endswith("_guards_fn"):
            graph.erase_node(node)  # torch.export's input checks; the exported file has its own shapes
    for name, tensor in module.state_dict().items():
        if tensor.device.type != "cpu":
            raise ExportError(f"a tensor lies on {tensor.device}", where=name, remedy="export qmodel.cpu()")
    return module


def _with_stored_codes(module: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The quantizer itself, or, for a float kernel that training moves, its `dequantize` of present codes."""
    kernel = _argument(node, 0, "x")
    operator = _quantizer_name(node)
    if operator not in ("fake_quantize", "lut_fake_quantize") or kernel.op != "get_attr":
        return node
    values = np.ascontiguousarray(_attribute(module, kernel).numpy())
    arguments: list[Any] = list(node.args)
    _, scale, levels, *rest = arguments
    tensors = _attribute(module, scale).numpy(), _attribute(module, levels).numpy()
    if operator == "fake_quantize":
        qmin, qmax, axis, group_size = (*rest, None, None)[:4]
        dtype = ("int" if qmin < 0 else "uint") + ("8" if qmax - qmin < 256 else "16")
        codes = quantize(values, *tensors, qmin, qmax, dtype=dtype, axis=axis, group_size=group_size)
        expand, settings = torch.ops.detent.dequantize.default, [axis, group_size]
    else:
        axis, group_size = (*rest, None, None)[:2]
        codes = lut_quantize(values, *tensors, axis=axis, group_size=group_size)
        expand, settings = torch.ops.detent.lut_dequantize.default, [axis, group_size]
    owner, _, leaf = str(kernel.target).rpartition(".")
    module.get_submodule(owner).register_buffer(f"{leaf}_codes", torch.from_numpy(codes))
    with module.graph.inserting_before(node):
        stored = module.graph.get_attr(f"{kernel.target}_codes")
        expanded = module.graph.call_function(expand, (stored, scale, levels, *settings))
    expanded.meta = dict(node.meta)
    node.replace_all_uses_with(expanded)
    module.graph.erase_node(node)
    return expanded


def _quantizer_name(node: fx.Node) -> str | None:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    namespace, _, name = node.target._schema.name.partition("::")
    return name if namespace in ("detent", "detent_export") and name in _QUANTIZERS else None


def _argument(node: fx.Node, position: int, name: str) -> Any:
    return node.args[position] if position < len(node.args) else node.kwargs.get(name)


def _attribute(module: torch.nn.Module, read: fx.Node) -> torch.Tensor:
    owner, _, name = str(read.target).rpartition(".")
    tensor = getattr(module.get_submodule(owner), name)
    assert isinstance(tensor, torch.Tensor)
    return tensor.detach()


def _describe(node: fx.Node, module: fx.GraphModule, plan: QuantPlan) -> Quantizer:
    subject = _argument(node, 0, "x")
    if subject.op != "get_attr":
        name = str(subject.meta.get(NAME, subject.name))
        place = describe_place(subject)
        # An input has no line of its own; the one that reads it has.
        return Quantizer(name=name, bits=None, where=describe_place(node, name) if place == name else place)
    name = re.sub(r"[._]codes$", "", str(subject.target))
    whole = _attribute(module, subject).dtype == torch.int32
    return Quantizer(
        name=name, bits=None if whole else _weight_bits(node, name, plan), where=describe_place(node, name)
    )


def _weight_bits(node: fx.Node, name: str, plan: QuantPlan) -> int | None:
    """Width of a kernel's codes: its layer's entry in the plan, or that of a stored activation."""
    for user in node.users:
        entry = plan.weights.get(str(user.meta.get(NAME)))
        if entry is not None and entry.grid is not None:
            return entry.grid.bits
    grid = plan.activation_grid(name) if name in plan.activations else None
    return None if grid is None else grid.bits


def _divisor(pool: fx.Node) -> Any:
    return argument(pool, "divisor_override") if "divisor_override" in argument_names(pool) else None


def least_opset(tagged: Tagged) -> tuple[int, str]:
    """The lowest opset that holds every quantizer of the module, and why."""
    for node in tagged.module.graph.nodes:
        operator = _quantizer_name(node)
        if operator is None:
            continue
        quantizer = tagged.quantizers[int(node.kwargs["tag"])]
        if operator == "fake_quantize":
            qmin, qmax = _argument(node, 3, "qmin"), _argument(node, 4, "qmax")
            if qmin < -128 or qmax > (127 if qmin < 0 else 255):
                return 21, f"16-bit codes of {quantizer.name!r} came with opset 21"
            continue
        codes = _attribute(tagged.module, _argument(node, 0, "codes"))
        if codes.dtype in (torch.int16, torch.uint16):
            return 21, f"16-bit codes of {quantizer.name!r} came with opset 21"
        if quantizer.bits is not None and quantizer.bits <= 4 and codes.dtype != torch.int32:
            return 21, f"4-bit codes of {quantizer.name!r} came with opset 21"
        if operator == "dequantize" and _argument(node, 4, "group_size") is not None:
            return 21, f"scales per group of {quantizer.name!r} came with opset 21"
    return 18, "torch's exporter writes opset 18 and newer"
