"""Dialects of QDQ ONNX files: what each runtime takes, checked before anything is written.

The form is one; runtimes differ in the types, zero points and axes they take, and some compute something else without
a word. A dialect refuses those files, and its notes say what a session must be told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from detent._registry import Registry
from detent.errors import ExportError
from detent.exporters.onnx_graph import OnnxGraph
from detent.exporters.onnx_openvino import check_openvino
from detent.exporters.onnx_qnn import prepare_qnn
from detent.exporters.onnx_quantized import QdqGraph, QuantizedValue
from detent.exporters.onnx_tensorrt import check_tensorrt

__all__ = ["DIALECTS", "Dialect", "check_onnxruntime", "choose_dialect", "note_float_kernels"]


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """The rules of one runtime.

    Args:
        title: the runtime.
        check: refuses what it does not take, with an `ExportError`; returns notes.
        rounding: how its kernels turn accumulators into codes, as in `ExportReport`.
        static: it wants every shape known, so that a file takes one sample at a time unless told how many.
    """

    title: str
    check: Callable[[QdqGraph], list[str]]
    rounding: str | None
    static: bool = False


def choose_dialect(asked: str | None, target: str) -> Dialect:
    """The dialect asked for; else the one with the target's name, else that of onnxruntime.

    Raises:
        ConfigError: there is none of this name.
    """
    if asked is None:
        asked = target if target in DIALECTS else "onnxruntime"
    return DIALECTS[asked]


def check_onnxruntime(qdq: QdqGraph) -> list[str]:
    """ONNX Runtime on CPUs: what its optimizer makes of the file, and which session options it needs.

    Raises:
        ExportError: 2-bit codes: the file would not load with its optimizations.
    """
    values = qdq.values()
    for value in values:
        if value.dtype in ("int2", "uint2"):
            raise ExportError(
                "onnxruntime does not load 2-bit codes unless its optimizations are off",
                where=value.where,
                remedy="store them in 4 bits",
            )
    notes = [note for found, note in _ONNXRUNTIME_NOTES if any(map(found, values))]
    return [*notes, *note_float_kernels(qdq.graph)]


def note_float_kernels(graph: OnnxGraph) -> list[str]:
    """What onnxruntime does with kernels in float whose inputs are on grids."""
    # Where onnxruntime carries quantizers past moves.
    expanded: set[str] = set()
    for node in graph.nodes:
        if node.op_type == "DequantizeLinear" or (node.op_type in _CARRIED and node.input[0] in expanded):
            expanded.update(node.output)
    layers = [
        node.input[1].removesuffix(".weight")
        for node in graph.nodes
        if node.op_type in ("Conv", "ConvTranspose", "Gemm")
        and node.input[0] in expanded
        and node.input[1] in graph.initializers
    ]
    if not layers:
        return []
    return [
        f"kernels in float behind quantizers ({', '.join(layers)}): onnxruntime quantizes them to 8 bits on its own "
        "unless the session option session.disable_quant_qdq is 1"
    ]


def _is_activation(value: QuantizedValue, *dtypes: str) -> bool:
    return not value.stored and value.dtype in dtypes


def _is_block_of_four_bits(value: QuantizedValue) -> bool:
    return value.stored and value.dtype in ("int4", "uint4") and value.block is not None


_ONNXRUNTIME_NOTES: Final[tuple[tuple[Callable[[QuantizedValue], bool], str], ...]] = (
    (
        lambda value: _is_activation(value, "int8"),
        "int8 activations: onnxruntime's integer kernels take all of them only with the session option "
        "session.qdqisint8allowed=1; without it some layers run in float, and files of opset 21 may not load",
    ),
    (
        lambda value: value.stored and value.dtype == "int8" and bool(value.read_by("Conv", "Gemm", "MatMul")),
        "8-bit kernels: on x86 CPUs without VNNI, sums of two products of uint8 and int8 saturate at 16 bits; use "
        "kernels of 7 bits there",
    ),
    (
        _is_block_of_four_bits,
        "blocks of 4-bit weights: onnxruntime quantizes activations of these layers to 8 bits on its own unless the "
        "session option session.qdq_matmulnbits_accuracy_level is 1",
    ),
    (
        lambda value: not value.stored and value.axis is not None,
        "activations with a step for each channel: onnxruntime needs the session option session.disable_quant_qdq=1, "
        "since its integer kernels take one step",
    ),
    (
        lambda value: _is_activation(value, "int16", "uint16"),
        "16-bit activations: onnxruntime computes their layers in float, whose sums are rounded in an order of its own",
    ),
)

_CARRIED: Final = ("Flatten", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze")

DIALECTS: Final[Registry[Dialect]] = Registry("ONNX dialect")
"""By name; a target of the same name takes it unless another is asked for."""

DIALECTS.add("onnxruntime", Dialect(title="ONNX Runtime on CPUs", check=check_onnxruntime, rounding="float"))
DIALECTS.add("openvino", Dialect(title="OpenVINO on CPUs", check=check_openvino, rounding="float"))
DIALECTS.add("tensorrt", Dialect(title="NVIDIA TensorRT, explicit", check=check_tensorrt, rounding=None))
DIALECTS.add(
    "qnn",
    Dialect(
        title="Qualcomm HTP through QNN",
        check=lambda qdq: prepare_qnn(qdq.graph, qdq.qmodel),
        rounding=None,
        static=True,
    ),
)
