"""Tagging: giving each quantizer of a torch graph an identity that survives the export to ONNX.

Exporters merge tensors of equal content and rename nodes, so neither tells quantizers apart afterwards. Each is
replaced by a private operator with the same arguments and a number, which becomes an attribute of the ONNX node.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import fx

from detent.errors import ExportError
from detent.exporters.quantizers import (
    code_bits,
    quantizer_argument,
    quantizer_name,
    require_cpu,
    stored_tensor,
    with_stored_codes,
)
from detent.exporters.subject import ExportableModel
from detent.graph.names import NAME, describe_place
from detent.graph.roles import argument, argument_names, op_name
from detent.records.plan import QuantPlan

__all__ = ["TAGGED", "Quantizer", "Tagged", "least_opset", "tag_quantizers"]

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
        if quantizer_name(found) is None:
            continue
        node = with_stored_codes(module, found)
        operator = quantizer_name(node)
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
    require_cpu(module)
    return module


def _describe(node: fx.Node, module: fx.GraphModule, plan: QuantPlan) -> Quantizer:
    subject = quantizer_argument(node, 0, "x")
    if subject.op != "get_attr":
        name = str(subject.meta.get(NAME, subject.name))
        place = describe_place(subject)
        # An input has no line of its own; the one that reads it has.
        return Quantizer(name=name, bits=None, where=describe_place(node, name) if place == name else place)
    name = re.sub(r"[._]codes$", "", str(subject.target))
    whole = stored_tensor(module, subject).dtype == torch.int32
    return Quantizer(name=name, bits=None if whole else code_bits(node, name, plan), where=describe_place(node, name))


def _divisor(pool: fx.Node) -> Any:
    return argument(pool, "divisor_override") if "divisor_override" in argument_names(pool) else None


def least_opset(tagged: Tagged) -> tuple[int, str]:
    """The lowest opset that holds every quantizer of the module, and why."""
    for node in tagged.module.graph.nodes:
        operator = quantizer_name(node)
        if operator is None:
            continue
        quantizer = tagged.quantizers[int(node.kwargs["tag"])]
        if operator == "fake_quantize":
            qmin, qmax = quantizer_argument(node, 3, "qmin"), quantizer_argument(node, 4, "qmax")
            if qmin < -128 or qmax > (127 if qmin < 0 else 255):
                return 21, f"16-bit codes of {quantizer.name!r} came with opset 21"
            continue
        codes = stored_tensor(tagged.module, quantizer_argument(node, 0, "codes"))
        if codes.dtype in (torch.int16, torch.uint16):
            return 21, f"16-bit codes of {quantizer.name!r} came with opset 21"
        if quantizer.bits is not None and quantizer.bits <= 4 and codes.dtype != torch.int32:
            return 21, f"4-bit codes of {quantizer.name!r} came with opset 21"
        if operator == "dequantize" and quantizer_argument(node, 4, "group_size") is not None:
            return 21, f"scales per group of {quantizer.name!r} came with opset 21"
    return 18, "torch's exporter writes opset 18 and newer"
