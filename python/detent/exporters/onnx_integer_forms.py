"""Operators on codes in the QOperator form: what stands in place of DQ - float operator - Q.

Each form takes the float node, the codes of its inputs and the codes wanted, and returns nodes, or None where the
operator has no form for these grids. Domains: ONNX's own, and `com.microsoft` for those that only onnxruntime has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detent.exporters.onnx_graph import OnnxGraph
from detent.exporters.onnx_lowering import attributes_of

__all__ = ["FORMS", "MICROSOFT", "Codes", "Wanted"]

MICROSOFT: Final = "com.microsoft"
_EIGHT_BITS: Final = ("int8", "uint8")


@dataclass(frozen=True, kw_only=True, eq=False)
class Codes:
    """Codes of a real value and the grid they are on, by names of the graph.

    Args:
        name: of the codes.
        scale: of the steps.
        zero_point: of the codes of zero; `""` for int32.
        dtype: of the codes.
        steps: the steps.
        zeros: the codes of zero.
        axis: of the steps, None for one.
        stored: not computed from inputs.
        rearranged: moved, not just reshaped.
    """

    name: str
    scale: str
    zero_point: str
    dtype: str
    steps: npt.NDArray[np.float32]
    zeros: npt.NDArray[Any]
    axis: int | None
    stored: bool
    rearranged: bool = False

    @property
    def is_activation(self) -> bool:
        """Whether integer operators take it as an activation: 8 bits and one step."""
        return not self.stored and self.dtype in _EIGHT_BITS and not self.steps.ndim

    @property
    def numbers(self) -> list[str]:
        """Codes, steps and zero points, as operators read them."""
        return [self.name, self.scale, self.zero_point]

    def same_grid(self, other: Codes) -> bool:
        """Whether the same codes mean the same."""
        return (
            self.dtype == other.dtype
            and np.array_equal(self.steps, other.steps)
            and np.array_equal(self.zeros, other.zeros)
        )


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a form is asked for.

    Args:
        graph: for constants and names.
        node: the float operator.
        inputs: codes of its inputs by position; None where an input has none.
        result: the codes to be made, with the name they shall have.
        makers: node by the value that it makes.
        codes: codes by the real value that they stand for.
    """

    graph: OnnxGraph
    node: Any
    inputs: tuple[Codes | None, ...]
    result: Codes
    makers: Mapping[str, Any]
    codes: Mapping[str, Codes]

    def make(self, operator: str, inputs: list[str], output: str | None = None, **attributes: Any) -> Any:
        """A node of the wanted type; `domain` is an attribute like the others."""
        kind = self.graph.kind_of(self.result.dtype)
        return self.graph.node(operator, inputs, output or self.result.name, kind=kind, **attributes)

    def is_wanted(self, codes: Codes | None) -> bool:
        """Whether these are activations of the wanted type."""
        return codes is not None and codes.is_activation and codes.dtype == self.result.dtype


Nodes = list[Any] | None


def _convolution(wanted: Wanted) -> Nodes:
    x, kernel = wanted.inputs[:2]
    if not wanted.is_wanted(x) or kernel is None or kernel.axis not in (None, 0):
        return None
    parameters = _layer(wanted, x, kernel, wanted.node.input[2] if len(wanted.node.input) > 2 else "")
    if x is None or parameters is None:
        return None
    weight, bias = parameters
    like = wanted.node.output[0]
    inputs = [*x.numbers, *weight, *wanted.result.numbers[1:], *bias]
    return [wanted.make("QLinearConv", inputs, like=like, **attributes_of(wanted.node))]


def _gemm(wanted: Wanted) -> Nodes:
    attributes = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0, **attributes_of(wanted.node)}
    x, kernel = wanted.inputs[:2]
    if (attributes["alpha"], attributes["beta"], attributes["transA"]) != (1.0, 1.0, 0) or kernel is None:
        return None
    if not wanted.is_wanted(x) or kernel.axis not in (None, 0 if attributes["transB"] else 1):
        return None
    parameters = _layer(wanted, x, kernel, wanted.node.input[2] if len(wanted.node.input) > 2 else "")
    if x is None or parameters is None:
        return None
    weight, bias = parameters
    inputs = [*x.numbers, *weight, *(bias or [""]), *wanted.result.numbers[1:]]
    return [
        wanted.make(
            "QGemm", inputs, like=wanted.node.output[0], domain=MICROSOFT, transB=attributes["transB"], alpha=1.0
        )
    ]


def _product_of_matrices(wanted: Wanted) -> Nodes:
    x, other = wanted.inputs[:2]
    if not wanted.is_wanted(x) or x is None or other is None:
        return None
    right: list[str] | None = other.numbers
    if other.stored:
        right = _kernel(wanted, other) if other.axis in (None, 1) and _fits(x, other) else None
    elif not other.is_activation or not _fits(x, other):
        return None
    if right is None:
        return None
    inputs = [*x.numbers, *right, *wanted.result.numbers[1:]]
    return [wanted.make("QLinearMatMul", inputs, like=wanted.node.output[0])]


def _product_with_bias(wanted: Wanted) -> Nodes:
    """A matrix product and a stored bias: rows of all samples one below the other, `QGemm`, and the shape again."""
    names = list(wanted.node.input)
    product = next(
        (wanted.makers[one] for one in names if getattr(wanted.makers.get(one), "op_type", "") == "MatMul"), None
    )
    if product is None:
        return None
    bias = names[1 - names.index(product.output[0])]
    x, kernel = (wanted.codes.get(one) for one in product.input)
    shape = wanted.graph.shape(wanted.node.output[0])
    if shape is None or shape.count(None) > 1 or x is None or kernel is None or kernel.axis not in (None, 1):
        return None
    if not wanted.is_wanted(x) or kernel.steps.ndim > 1:
        return None
    parameters = _layer(wanted, x, kernel, bias)
    if parameters is None or not parameters[1]:
        return None
    stem, graph = wanted.result.name, wanted.graph
    rows, sums = graph.fresh(f"{stem}_rows"), graph.fresh(f"{stem}_sums")
    where = graph.constant(
        f"{stem}_shape", np.array([-1 if one is None else one for one in shape], np.int64), share=True
    )
    inputs = [rows, *x.numbers[1:], *parameters[0], *parameters[1], *wanted.result.numbers[1:]]
    return [
        wanted.make("Flatten", [x.name], rows, axis=len(shape) - 1),
        wanted.make("QGemm", inputs, sums, domain=MICROSOFT, transB=0, alpha=1.0),
        wanted.make("Reshape", [sums, where], like=wanted.node.output[0]),
    ]


def _layer(wanted: Wanted, x: Codes | None, kernel: Codes, bias: str) -> tuple[list[str], list[str]] | None:
    """Names of kernel, its steps and zero points; and of the bias in steps of the accumulator, if there is one."""
    if x is None or not kernel.stored or not _fits(x, kernel):
        return None
    steps = (x.steps * kernel.steps).astype(np.float32)
    weight = _kernel(wanted, kernel)
    if weight is None or not bias:
        return None if weight is None else (weight, [])
    found = wanted.codes.get(bias)
    if found is not None and found.dtype == "int32":
        same = bool(np.allclose(found.steps, steps, rtol=1e-6, atol=0))
        return (weight, [found.name]) if same and found.stored else None
    values = wanted.graph.array(bias)
    if values is None or values.dtype != np.float32:
        return None
    whole = np.rint(values.astype(np.float64) / steps.astype(np.float64)).astype(np.int64)
    if whole.ndim != 1 or (whole.size and int(np.abs(whole).max()) >= 2**31):
        return None
    return weight, [wanted.graph.constant(f"{bias}_codes", whole.astype(np.int32), share=True)]


def _fits(x: Codes, kernel: Codes) -> bool:
    """Whether kernels take these types together: int8 activations need signed weights."""
    return kernel.steps.ndim <= 1 and (x.dtype == "uint8" or kernel.dtype.startswith("int"))


def _kernel(wanted: Wanted, kernel: Codes) -> list[str] | None:
    """Names of codes of 8 bits, steps, and zero points that are all alike."""
    if kernel.dtype in _EIGHT_BITS:
        alike = not kernel.zeros.size or bool(np.all(kernel.zeros == kernel.zeros.flat[0]))
        return kernel.numbers if alike else None
    codes = wanted.graph.array(kernel.name)
    if kernel.dtype not in ("int4", "uint4") or codes is None:
        return None
    wide = np.dtype(kernel.dtype.replace("4", "8"))
    zeros = kernel.zeros.astype(wide)
    if zeros.size and not bool(np.all(zeros == zeros.flat[0])):
        return None
    return [
        wanted.graph.constant(f"{kernel.name}_8bit", codes.astype(wide), share=True),
        kernel.scale,
        wanted.graph.constant(f"{kernel.zero_point}_8bit", zeros, share=True),
    ]


def _sum(wanted: Wanted) -> Nodes:
    a, b = wanted.inputs
    if a is None or b is None or not wanted.is_wanted(a) or not wanted.is_wanted(b):
        return _product_with_bias(wanted)
    if a.rearranged or b.rearranged:
        return None  # values are added there, as onnxruntime does in the QDQ form
    return _of_two(wanted, "QLinearAdd")


def _product(wanted: Wanted) -> Nodes:
    return _of_two(wanted, "QLinearMul") if all(map(wanted.is_wanted, wanted.inputs)) else None


def _of_two(wanted: Wanted, operator: str) -> Nodes:
    read = [name for one in wanted.inputs if one is not None for name in one.numbers]
    inputs = [*read, *wanted.result.numbers[1:]]
    return [wanted.make(operator, inputs, like=wanted.node.output[0], domain=MICROSOFT)]


def _joined(wanted: Wanted) -> Nodes:
    parts = [one for one in wanted.inputs if one is not None and wanted.is_wanted(one)]
    axis, like = attributes_of(wanted.node)["axis"], wanted.node.output[0]
    if len(parts) != len(wanted.inputs):
        return None
    if all(one.same_grid(wanted.result) for one in parts):
        return [wanted.make("Concat", [one.name for one in parts], like=like, axis=axis)]
    read = [name for one in parts for name in one.numbers]
    inputs = [*wanted.result.numbers[1:], *read]
    return [wanted.make("QLinearConcat", inputs, like=like, domain=MICROSOFT, axis=axis)]


def _average_pool(wanted: Wanted) -> Nodes:
    attributes = attributes_of(wanted.node)
    if any(step != 1 for step in attributes.pop("dilations", [])):
        return None
    return _of_one("QLinearAveragePool")(wanted, **attributes)


def _mean(wanted: Wanted) -> Nodes:
    """A mean over all axes behind the channels is a global average pool."""
    attributes, x = attributes_of(wanted.node), wanted.inputs[0]
    axes = wanted.graph.array(wanted.node.input[1]) if len(wanted.node.input) > 1 else None
    rank = wanted.graph.rank(wanted.node.input[0])
    if axes is None or rank is None or rank < 3 or not wanted.is_wanted(x) or x is None:
        return None
    if sorted(int(axis) % rank for axis in axes) != list(range(2, rank)):
        return None
    inputs = [*x.numbers, *wanted.result.numbers[1:]]
    if attributes.get("keepdims", 1):
        return [wanted.make("QLinearGlobalAveragePool", inputs, domain=MICROSOFT, like=wanted.node.output[0])]
    pooled = wanted.graph.fresh(f"{wanted.result.name}_pooled")
    return [
        wanted.make("QLinearGlobalAveragePool", inputs, pooled, domain=MICROSOFT, channels_last=0),
        wanted.make("Flatten", [pooled], axis=1, like=wanted.node.output[0]),
    ]


def _of_one(operator: str) -> Callable[..., Nodes]:
    def form(wanted: Wanted, **attributes: Any) -> Nodes:
        x = wanted.inputs[0]
        if x is None or not wanted.is_wanted(x):
            return None
        given = attributes or attributes_of(wanted.node)
        inputs = [*x.numbers, *wanted.result.numbers[1:]]
        return [wanted.make(operator, inputs, like=wanted.node.output[0], domain=MICROSOFT, **given)]

    return form


FORMS: Final[Mapping[str, Callable[[Wanted], Nodes]]] = {
    "Add": _sum,
    "AveragePool": _average_pool,
    "Concat": _joined,
    "Conv": _convolution,
    "Gemm": _gemm,
    "GlobalAveragePool": _of_one("QLinearGlobalAveragePool"),
    "LeakyRelu": _of_one("QLinearLeakyRelu"),
    "MatMul": _product_of_matrices,
    "Mul": _product,
    "ReduceMean": _mean,
    "Sigmoid": _of_one("QLinearSigmoid"),
}
"""By float operator."""
