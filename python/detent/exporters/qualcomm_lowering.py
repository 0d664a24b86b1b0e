"""Opaque quantizers become float tensors and encodings: the graph computes in float, the grids lie beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detent.errors import ExportError
from detent.exporters.onnx_graph import OnnxGraph
from detent.exporters.onnx_lowering import attributes_of, lower_quantizers
from detent.exporters.onnx_moves import moved_values
from detent.exporters.onnx_tagging import Quantizer
from detent.exporters.qualcomm_encodings import Encoding
from detent.kernels.quantize import dequantize

__all__ = ["check_axes", "lower_to_encodings", "values_without"]

_FUSED: Final = ("Relu", "Clip")
"""Operators that converters merge with the one before; the value between has no codes."""


def lower_to_encodings(graph: OnnxGraph, quantizers: Sequence[Quantizer]) -> list[Encoding]:
    """Take every opaque quantizer out of the graph and return the grids, those of values in order of execution.

    Kernels and biases become float initializers with the values of their codes. Values that an operator only moves
    have the encoding of what they are moved from.

    Raises:
        ExportError: a quantizer that encodings cannot express; the error names the value.
    """
    lowering = _Lowering()
    rules = {"FakeQuantize": lowering.activation, "Dequantize": lowering.stored, "LutDequantize": lowering.codebook}
    lower_quantizers(graph, quantizers, rules)
    values, kernels = lowering.values, lowering.kernels
    for node in graph.nodes:
        if node.input and node.input[0] in values:
            for name in moved_values(graph, node):
                values.setdefault(name, replace(values[node.input[0]], name=name))
    return [*values.values(), *kernels.values()]


def check_axes(graph: OnnxGraph, encodings: Sequence[Encoding], version: str) -> None:
    """Make sure that readers that go by the operator take the channels of a kernel along the right axis.

    Raises:
        ExportError: they would not.
    """
    for encoding in encodings:
        if encoding.axis is None or encoding.bits == 32:
            continue
        for node in graph.all_nodes():
            for position, name in enumerate(node.input):
                if name == encoding.name and encoding.axis != _channel_axis(node, position, encoding):
                    raise ExportError(
                        f"encodings {version} do not say along which axis channels lie, nor does {node.op_type}",
                        where=encoding.where,
                        remedy="use version='2.0.0', or one step for the tensor",
                    )


def values_without(graph: OnnxGraph, encodings: Sequence[Encoding]) -> list[str]:
    """Float values and kernels that have no encoding, though no converter merges them with what follows."""
    known = {encoding.name for encoding in encodings}
    readers: dict[str, list[Any]] = {}
    for node in graph.all_nodes():
        for name in node.input:
            readers.setdefault(name, []).append(node)
    computed = [name for node in graph.nodes for name in node.output if name and graph.dtype(name) == "float"]
    merged = {
        name
        for name in computed
        if name not in graph.outputs and [node.op_type for node in readers.get(name, ())] in ([op] for op in _FUSED)
    }
    kernels = [name for name, tensor in graph.initializers.items() if len(tensor.dims) > 1 and name in readers]
    floats = [*graph.inputs, *computed, *kernels]
    return [name for name in floats if name not in known | merged and graph.dtype(name) == "float"]


class _Lowering:
    """The rules of `lower_quantizers`, and the encodings they find."""

    def __init__(self) -> None:
        self.values: dict[str, Encoding] = {}
        self.kernels: dict[str, Encoding] = {}

    def activation(self, graph: OnnxGraph, node: Any, quantizer: Quantizer) -> list[Any]:
        """Drop the quantizer; its operand, which its readers read from now on, gets the encoding."""
        source, result = node.input[0], node.output[0]
        encoding = _activation_encoding(graph, node, quantizer)
        readers = [one for one in graph.all_nodes() if source in one.input and one.op_type != "Shape"]
        if source in graph.outputs or len(readers) > 1:
            raise ExportError(
                "an encoding holds for all that read a value, and this one is read with and without its grid",
                where=quantizer.where,
                remedy="give every use of this value the same grid",
            )
        kept: list[Any] = []
        if result not in graph.outputs:
            graph.rename({result: source})
        elif source in graph.inputs or source in graph.initializers:
            kept = [graph.node("Identity", [source], result, kind=graph.kind_of("float"), like=source)]
            self._add(replace(encoding, name=result))
        else:
            graph.rename({source: result})
            if source in self.values:
                self.values[result] = replace(self.values.pop(source), name=result)
            source = result
        self._add(replace(encoding, name=source))
        return kept

    def _add(self, encoding: Encoding) -> None:
        earlier = self.values.setdefault(encoding.name, encoding)
        if not earlier.same_grid(encoding) or encoding.name in self.kernels:
            raise ExportError(
                "a tensor has one encoding, and this one is quantized twice",
                where=encoding.where,
                remedy="give this value one grid",
            )

    def stored(self, graph: OnnxGraph, node: Any, quantizer: Quantizer) -> list[Any]:
        """A float initializer in place of codes."""
        encoding, values = _stored_encoding(graph, node, quantizer)
        earlier = self.kernels.get(quantizer.name)
        # A kernel that two layers share is stored once.
        stored = None if earlier is None or not earlier.same_grid(encoding) else graph.array(earlier.name)
        if earlier is not None and stored is not None and np.array_equal(stored, values):
            name = earlier.name
        else:
            name = graph.constant(quantizer.name, values)
            self.kernels[name] = replace(encoding, name=name)
        if node.output[0] in graph.outputs:
            return [graph.node("Identity", [name], node.output[0], kind=graph.kind_of("float"))]
        graph.rename({node.output[0]: name})
        return []

    def codebook(self, graph: OnnxGraph, node: Any, quantizer: Quantizer) -> list[Any]:
        """Refuse a codebook."""
        raise ExportError(
            "encodings have no form for codebooks",
            where=quantizer.where,
            remedy="give this layer a symmetric or power_of_two grid",
        )


def _activation_encoding(graph: OnnxGraph, node: Any, quantizer: Quantizer) -> Encoding:
    attributes = attributes_of(node)
    scale, zero_point = graph.array(node.input[1]), graph.array(node.input[2])
    if scale is None or zero_point is None:
        raise ExportError("scale or zero point of a quantizer is computed", where=quantizer.where)
    if scale.size != 1:
        raise ExportError(
            "encodings have one step for a value, not one for each channel or group",
            where=quantizer.where,
            remedy="give this activation a per-tensor grid",
        )
    low, high = attributes["qmin"], attributes["qmax"]
    for bits in (8, 16):
        if (low, high) in ((0, (1 << bits) - 1), (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)):
            return Encoding(
                name=node.input[0],
                where=quantizer.where,
                bits=bits,
                signed=low < 0,
                scale=scale.reshape(1),
                zero_point=zero_point.reshape(1),
            )
    raise ExportError(
        f"encodings have activations of all 8-bit or all 16-bit codes, not of {low}..{high}",
        where=quantizer.where,
        remedy="use 8 or 16 bits here, without narrow_range",
    )


def _stored_encoding(graph: OnnxGraph, node: Any, quantizer: Quantizer) -> tuple[Encoding, npt.NDArray[np.float32]]:
    attributes = attributes_of(node)
    codes, scale, zero_point = (graph.array(name) for name in node.input)
    if codes is None or scale is None or zero_point is None:
        raise ExportError("codes, scale or zero point of a weight are computed, not stored", where=quantizer.where)
    axis, group_size = attributes.get("axis"), attributes.get("group_size")
    axis = None if axis is None else axis % codes.ndim
    values = dequantize(codes, scale, zero_point, axis=axis, group_size=group_size)
    one_step = scale.size == 1
    narrow = quantizer.bits is not None and quantizer.bits <= 4 and codes.dtype.itemsize == 1
    block_axis = None if group_size is None or axis is None else attributes.get("group_axis", 1 if axis == 0 else 0)
    encoding = Encoding(
        name=quantizer.name,
        where=quantizer.where,
        bits=4 if narrow else 8 * codes.dtype.itemsize,
        signed=codes.dtype.kind == "i",
        scale=scale,
        zero_point=np.broadcast_to(zero_point, scale.shape),
        shape=codes.shape,
        axis=None if one_step else axis,
        block_axis=None if one_step else block_axis,
        block_size=None if one_step else group_size,
    )
    return encoding, values


def _channel_axis(node: Any, position: int, encoding: Encoding) -> int | None:
    """Along which a reader takes the channels of an operand to lie; None if it has no rule."""
    rank = len(encoding.shape or ())
    if position != 1:
        return None
    if node.op_type == "Gemm":
        return 0 if attributes_of(node).get("transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": rank - 1}.get(node.op_type)
