"""The rules of TensorRT's explicit quantization for QDQ files."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import fx

from detent.errors import ExportError
from detent.exporters.onnx_lowering import attributes_of
from detent.exporters.onnx_quantized import QdqGraph, QuantizedValue
from detent.graph.names import describe_place
from detent.graph.roles import first_argument, role_of

__all__ = ["check_tensorrt"]

_KERNELS: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_BEFORE_RELU: Final = ("Conv", "ConvTranspose", "BatchNormalization")
_MOVES: Final = ("Flatten", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
_STORED: Final = (torch.ops.detent.dequantize.default, torch.ops.detent.lut_dequantize.default)


def check_tensorrt(qdq: QdqGraph) -> list[str]:
    """Refuse what TensorRT does not take.

    Raises:
        ExportError: the first value that breaks a rule.
    """
    values = qdq.values()
    expanded = {value.value: value for value in values}
    for name, quantizer in qdq.quantizers.items():
        if name not in expanded:
            raise _refused("a codebook", quantizer.where, "give this layer a symmetric grid")
    quantized = set(expanded)
    for node in qdq.graph.nodes:
        if node.op_type in _MOVES and node.input[0] in quantized:
            quantized.update(node.output)
    for value in values:
        _check_numbers(value)
        if not value.stored:
            _check_activation(value)
        elif value.dtype == "int32" or _is_bias(value):
            remedy = "plan for target='tensorrt', or a target whose bias_bits are null"
            raise _refused("quantized biases, which stay float", value.where, remedy)
        else:
            _check_weight(value, quantized)
    _check_sums(qdq.qmodel.graph_module)
    return []


def _refused(what: str, where: str, remedy: str) -> ExportError:
    return ExportError(f"TensorRT does not take {what}", where=where, remedy=remedy)


def _is_bias(value: QuantizedValue) -> bool:
    return any(position == 2 for _, position in value.read_by("Conv", "ConvTranspose", "Gemm"))


def _check_numbers(value: QuantizedValue) -> None:
    steps, zeros = value.scale, value.zero_point
    if not value.listed:
        raise _refused("a codebook", value.where, "give this layer a symmetric grid")
    if not bool(np.all(np.isfinite(steps) & (steps > 0))):
        raise _refused("steps that are not positive numbers", value.where, "calibrate again: this value has no range")
    if value.dtype.startswith("uint"):
        raise _refused(f"{value.dtype} codes", value.where, "plan for target='tensorrt': signed, symmetric grids")
    if np.any(zeros != 0):
        raise _refused("zero points other than 0", value.where, "plan for target='tensorrt': symmetric grids")


def _check_activation(value: QuantizedValue) -> None:
    if value.dtype != "int8":
        raise _refused(f"{value.dtype} activations", value.where, "use 8 bits here, or keep this activation in float")
    if value.scale.ndim:
        remedy = "plan with activation_per_channel=False"
        raise _refused("activations with a step for each channel", value.where, remedy)
    if value.maker is not None and value.maker.op_type in _BEFORE_RELU:
        later = value.read_by("Relu", "Clip", "BatchNormalization")
        if later and len(later) == len(value.readers):
            remedy = f"leave {value.name} in float, so that {later[0][0].op_type} is fused"
            raise _refused("a quantizer between a convolution and what is fused behind it", value.where, remedy)


def _check_weight(value: QuantizedValue, quantized: set[str]) -> None:
    kernels = value.read_by(*_KERNELS)
    if value.dtype == "int4":
        _check_blocks(value, kernels, quantized)
        return
    if value.dtype != "int8":
        raise _refused(f"{value.dtype} weights", value.where, "use 8 bits for this layer, or 4 in blocks")
    if value.block is not None:
        raise _refused("blocks of int8 weights", value.where, "use a step for each channel, or 4 bits")
    for node, position in kernels:
        axis = _output_axis(node, position)
        if value.axis is not None and value.axis != axis:
            remedy = f"quantize along the output channels of {node.op_type}, axis {axis}"
            raise _refused(f"weights with a step for each entry of axis {value.axis}", value.where, remedy)


def _check_blocks(value: QuantizedValue, kernels: list[Any], quantized: set[str]) -> None:
    for node, position in kernels:
        if node.op_type not in ("Gemm", "MatMul") or position != 1:
            raise _refused(f"4-bit weights of {node.op_type}", value.where, "use 8 bits for this layer")
        inputs = 1 - _output_axis(node, position)
        if value.block is None or value.axis != inputs:
            remedy = "give this layer a group_size, or 8 bits"
            raise _refused("4-bit weights without blocks along the inputs", value.where, remedy)
        if node.input[0] in quantized:
            remedy = "keep the inputs of this layer in float, or use 8 bits for its weights"
            raise _refused("4-bit weights with quantized inputs", value.where, remedy)


def _output_axis(node: Any, position: int) -> int:
    """Along which the output channels of a kernel lie."""
    if node.op_type == "Gemm":
        return 0 if attributes_of(node).get("transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": position}[node.op_type]


def _check_sums(module: fx.GraphModule) -> None:
    """A sum of a quantized value and one in float is no integer kernel, and hinders the fusion before it."""
    for node in module.graph.nodes:
        role = role_of(node) if node.op == "call_function" else None
        if role is None or role.kind != "add":
            continue
        operands = [_before_moves(one) for one in node.all_input_nodes]
        on_grid = [one.target is torch.ops.detent.fake_quantize.default for one in operands]
        stored = [one.op == "get_attr" or one.target in _STORED for one in operands]
        if len(operands) == 2 and any(on_grid) and not all(on_grid) and not any(stored):
            other = operands[on_grid.index(False)]
            raise _refused(
                f"a sum of a quantized value and one in float, {describe_place(other)}",
                describe_place(node),
                "quantize both inputs of this sum, or neither",
            )


def _before_moves(node: fx.Node) -> fx.Node:
    while node.op == "call_function":
        role = role_of(node)
        if role is None or not role.preserving:
            break
        node = first_argument(node)
    return node
