"""Which operators the converter for the IMX500 takes, by trying: version 3.19.2."""

from __future__ import annotations

from typing import Final

from torch import fx

from detent.errors import UnsupportedOpError
from detent.exporters.onnx_tagging import Tagged
from detent.graph.names import describe_place
from detent.graph.roles import argument, op_name, role_of
from detent.graph.shapes import value_of
from detent.targets import OP_NAMES, kind_of

__all__ = ["IMX500_OPERATORS", "TRIED_OPERATORS", "check_operators"]

TRIED_OPERATORS: Final = frozenset(
    (
        *("Abs", "Add", "Clip", "Concat", "Conv", "Gemm", "HardSigmoid", "HardSwish", "LayerNormalization"),
        *("LeakyRelu", "MaxPool", "Mul", "ReduceMean", "Relu", "Reshape", "Sigmoid", "Slice", "Sub", "Tanh"),
    )
)
"""ONNX operators that files had which it converted."""

_REFUSED: Final = ("celu", "elu", "erf", "floor", "gelu", "hardshrink", "log", "mish", "prelu", "softplus")
"""ATen operators whose ONNX forms it has named as unsupported."""

IMX500_OPERATORS: Final = OP_NAMES - frozenset(_REFUSED) - frozenset(filter(None, map(kind_of, _REFUSED)))
"""What the file expresses, by our names: single ones where their kind has some that are refused."""

_REMEDY: Final = "replace it in the model, by relu, silu or hardswish for instance, or by what the converter takes"


def check_operators(tagged: Tagged) -> None:
    """Make sure that no operator is one the converter is known to refuse.

    Raises:
        UnsupportedOpError: there is one; the error names it.
    """
    for node in tagged.module.graph.nodes:
        if node.op == "call_function" and role_of(node) is not None:
            reason = _reason(node)
            if reason is not None:
                raise UnsupportedOpError(
                    f"the converter does not take {op_name(node)} {reason}", where=describe_place(node), remedy=_REMEDY
                )


def _reason(node: fx.Node) -> str | None:
    role, name = role_of(node), op_name(node)
    if name in _REFUSED:
        return "at all"
    if role is None:
        return None
    rank = value_of(node).dim() if hasattr(value_of(node), "dim") else None
    if role.kind in ("conv", "conv_transposed") and rank != 4:
        return f"on values of {rank} axes, only on images of 4"
    if role.kind == "linear" and rank not in (2, 4):
        return f"on values of {rank} axes, only of 2 or 4"
    if role.kind == "conv_transposed":
        for option, usual in (("padding", 0), ("dilation", 1), ("groups", 1)):
            value = argument(node, option)
            if any(one != usual for one in (value if isinstance(value, list | tuple) else (value,))):
                return f"with {option} {value}"
    return None
