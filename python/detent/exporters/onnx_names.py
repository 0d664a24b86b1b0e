"""Names and leftovers of an exported ONNX graph: what a person sees when opening the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from detent.errors import ExportError
from detent.exporters.onnx_graph import OnnxGraph
from detent.exporters.onnx_lowering import tag_of
from detent.exporters.onnx_tagging import Quantizer
from detent.exporters.onnx_torch import DOMAIN

__all__ = ["name_batch_axis", "name_values", "strip_leftovers"]


def name_values(
    graph: OnnxGraph, quantizers: Sequence[Quantizer], input_names: Sequence[str], output_names: Sequence[str]
) -> None:
    """Give inputs, outputs and quantized values detent's names; call before the quantizers are lowered.

    A float value `v` that is quantized becomes `v`, its codes `v_quantized` and their value `v_dequantized`.

    Raises:
        ExportError: the file has another number of inputs or outputs than the model.
    """
    for kind, found, wanted in (("inputs", graph.inputs, input_names), ("outputs", graph.outputs, output_names)):
        if len(found) != len(wanted) or len(set(found)) != len(found):
            raise ExportError(
                f"torch exported {len(set(found))} distinct {kind}, the model has {len(wanted)}",
                remedy=f"make the model's {kind} distinct tensors",
            )
    names = _Renaming()
    for found, wanted in ((graph.inputs, input_names), (graph.outputs, output_names)):
        for old, new in zip(found, wanted, strict=True):
            names.add(old, new)
    opaque = [node for node in graph.nodes if node.domain == DOMAIN]
    for node in opaque:
        quantizer = quantizers[tag_of(node)]
        if node.op_type == "FakeQuantize":
            taken = quantizer.name in output_names
            names.add(node.input[0], f"{quantizer.name}_float" if taken else quantizer.name)
        names.add(node.output[0], f"{quantizer.name}_dequantized")
    for node in opaque:
        for name in node.input:
            if name in graph.initializers:
                names.add(name, f"{DOMAIN}::{name}")  # replaced by typed constants, which get the good name
    for node in graph.all_nodes():
        for name in (*node.output, *node.input):
            if name:
                names.add(name, name)
    graph.rename(names.chosen)


class _Renaming:
    """New names, each given once: the first wish for a value counts, and a name that is taken gets a number."""

    def __init__(self) -> None:
        self.chosen: dict[str, str] = {}
        self._taken: set[str] = set()

    def add(self, old: str, wish: str) -> None:
        if old in self.chosen:
            return
        name, number = wish, 0
        while name in self._taken:
            number += 1
            name = f"{wish}_{number}"
        self._taken.add(name)
        self.chosen[old] = name


def name_batch_axis(proto: Any) -> None:
    """Call the one symbol of a dynamic batch `batch` wherever it occurs, whatever torch called it."""
    symbols: list[str] = []
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        if len(dims) and dims[0].dim_param:
            symbols.append(dims[0].dim_param)
    if not symbols:
        return
    for values in (proto.graph.input, proto.graph.output, proto.graph.value_info):
        for value in values:
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param in symbols:
                    dim.dim_param = "batch"
                elif dim.dim_param:
                    dim.dim_param = dim.dim_param.replace(symbols[0], "batch")


def strip_leftovers(proto: Any, domains: Mapping[str, int] = MappingProxyType({})) -> None:
    """Drop what the exporters leave for debugging: source paths, scopes and unused operator sets.

    Args:
        proto: an `onnx.ModelProto`; changed in place.
        domains: other domains than ONNX's own that operators may have, with the version of each.

    Raises:
        ExportError: an operator of another domain is left.
    """
    for node in proto.graph.node:
        if node.domain not in ("", "ai.onnx", *domains):
            raise ExportError(
                f"the operator {node.domain}::{node.op_type} has no standard ONNX form", where=", ".join(node.output)
            )
        node.name = f"{node.output[0]}/{node.op_type}"
        node.ClearField("doc_string")
        del node.metadata_props[:]
    for values in (proto.graph.input, proto.graph.output, proto.graph.value_info, proto.graph.initializer):
        for value in values:
            value.ClearField("doc_string")
            del value.metadata_props[:]
    proto.graph.ClearField("doc_string")
    del proto.graph.metadata_props[:]
    del proto.metadata_props[:]
    del proto.functions[:]
    default = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    del proto.opset_import[:]
    for domain, version in {"": default, **domains}.items():
        proto.opset_import.add(domain=domain, version=version)
