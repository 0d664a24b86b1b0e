"""Akida's quantized operators as functions of standard ONNX operators.

An operator's name says what it is made of, and the converter reads it: `QuantizedConv2DBiasedReLUScaled` is a
convolution with bias and ReLU whose accumulators become codes. Each has a function of the same name in the file, so
that other runtimes compute it too. Accumulators are float32, which is exact below 2^24; they become codes in double.
"""

from __future__ import annotations

from typing import Any, Final

__all__ = ["AKIDA_DOMAIN", "AKIDA_VERSION", "function_of"]

AKIDA_DOMAIN: Final = "com.brainchip"
AKIDA_VERSION: Final = 1
_OPSET: Final = 21


def function_of(name: str) -> Any:
    """The `onnx.FunctionProto` of an operator."""
    from onnx import helper

    body = _Body()
    if name == "InputQuantizer":
        inputs, attributes = ["X", "scale", "zp"], ["perm"]
        body.add("Transpose", ["X"], "turned", perm=body.given("perm", ints=True))
        body.add("QuantizeLinear", ["turned", "scale", "zp"], "Y")
    elif name == "Dequantizer":
        inputs, attributes = ["X", "scale"], []
        body.add("DequantizeLinear", ["X", "scale"], "Y")
    elif name.startswith("QuantizedAdd"):
        inputs, attributes = ["X", "Y", "Xs", "Ys", "Shift"], []
        body.add("Mul", [body.float("X"), body.float("Xs")], "left")
        body.add("Mul", [body.float("Y"), body.float("Ys")], "right")
        body.add("Add", ["left", "right"], "sum")
        body.codes("sum", None, "Z")
    else:
        inputs, attributes = _layer(name, body)
    result = "Z" if name.startswith("QuantizedAdd") else "Y"
    opsets = [helper.make_opsetid("", _OPSET)]
    return helper.make_function(AKIDA_DOMAIN, name, inputs, [result], body.nodes, opsets, attributes)


def _layer(name: str, body: _Body) -> tuple[list[str], list[str]]:
    """Inputs and attributes of a convolution or a dense layer; its nodes go into the body."""
    dense, first = "Dense" in name, "InputConv" in name
    biased, pooled, relu, clipped = (word in name for word in ("Biased", "GlobalAvgPool", "ReLU", "Clipped"))
    inputs = ["X", *(["x_pad_value"] if first else []), "W", *(["bias"] if biased else [])]
    inputs += [*([] if dense else ["pads"]), *(["max_value"] if clipped else []), "Scale", "Shift"]
    attributes = [] if dense else ["strides", *(["groups"] if "Depthwise" in name else [])]
    operands = [body.float("W"), *([body.float("bias")] if biased else [])]
    if dense:
        body.add("Flatten", [body.float("X")], "flat")
        body.add("Gemm", ["flat", *operands], "acc", transB=1)
    else:
        filling = [body.float("x_pad_value")] if first else []
        body.add("Pad", [body.float("X"), "pads", *filling], "padded")
        groups = {"group": body.given("groups")} if "Depthwise" in name else {}
        body.add("Conv", ["padded", *operands], "acc", strides=body.given("strides", ints=True), **groups)
    last = "acc"
    if relu:
        body.add("Relu", [last], "positive")
        last = "positive"
    if clipped:
        body.add("Min", [last, body.float("max_value")], "bounded")
        last = "bounded"
    if pooled:
        body.constant("axes", value_ints=[-2, -1])
        body.add("ReduceSum", [last, "axes"], "total")
        last = "total"
    body.codes(last, "Scale", "Y")
    return inputs, attributes


class _Given:
    """An attribute of the operator, handed on to a node."""

    def __init__(self, name: str, ints: bool) -> None:
        self.name = name
        self.ints = ints


class _Body:
    """The nodes of a function."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []

    def given(self, name: str, *, ints: bool = False) -> _Given:
        return _Given(name, ints)

    def add(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        from onnx import AttributeProto, helper

        own = {name: value for name, value in attributes.items() if not isinstance(value, _Given)}
        node = helper.make_node(op_type, inputs, [output], **own)
        for name, value in attributes.items():
            if isinstance(value, _Given):
                kind = AttributeProto.INTS if value.ints else AttributeProto.INT
                node.attribute.append(AttributeProto(name=name, type=kind, ref_attr_name=value.name))
        self.nodes.append(node)
        return output

    def constant(self, name: str, **value: Any) -> str:
        return self.add("Constant", [], name, **value)

    def float(self, name: str) -> str:
        return self.add("Cast", [name], f"{name}/float", to=1)

    def codes(self, name: str, scale: str | None, output: str) -> None:
        """Accumulators to int8: floor(acc / Shift * Scale + 1/2), within -128..127."""
        self.add("Cast", [name], "wide", to=11)
        last = self.add("Div", ["wide", self.add("Cast", ["Shift"], "Shift/wide", to=11)], "down")
        if scale is not None:
            last = self.add("Mul", [last, self.add("Cast", [scale], f"{scale}/wide", to=11)], "scaled")
        half = self.add("CastLike", [self.constant("one_half", value_float=0.5), "wide"], "half")
        self.add("Floor", [self.add("Add", [last, half], "raised")], "whole")
        self.add("Cast", ["whole"], "whole/float", to=1)
        ends = [self.constant("lowest", value_float=-128.0), self.constant("highest", value_float=127.0)]
        self.add("Cast", [self.add("Clip", ["whole/float", *ends], "clipped")], output, to=3)
