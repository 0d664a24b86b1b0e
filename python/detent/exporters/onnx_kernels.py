"""Proof of integer kernels: what onnxruntime's optimizer makes of a file, counted."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from detent.errors import ExportError
from detent.exporters.onnx_qdq import require_extra

__all__ = ["IntegerKernels", "integer_kernels"]

_INTEGER_WORDS: Final = ("QLinear", "QGemm", "Integer", "DynamicQuantize", "QAttention")
_FLOAT_WORDS: Final = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, kw_only=True)
class IntegerKernels:
    """What runs in integers after onnxruntime's optimizations.

    Args:
        integer: how many of each integer operator there are.
        floats: layers that still multiply in float, by detent's name, each with its operator.
    """

    integer: Mapping[str, int]
    floats: Mapping[str, str]

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(self.integer.items())) or "none"
        floats = ", ".join(f"{layer} ({operator})" for layer, operator in self.floats.items()) or "none"
        return f"integer kernels: {counts}; in float: {floats}"


def integer_kernels(
    path: str | os.PathLike[str], *, session_options: Mapping[str, str] | None = None
) -> IntegerKernels:
    """Let onnxruntime optimize a file for the CPU, and count.

    Args:
        path: an ONNX file that detent wrote.
        session_options: entries of onnxruntime's session configuration, e.g. `{"session.qdqisint8allowed": "1"}`.

    Raises:
        ExportError: the packages of the `onnx` extra are missing, or onnxruntime cannot load the file.
    """
    onnx, runtime = require_extra("onnx"), require_extra("onnxruntime")
    path = Path(path)
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # failures come back as exceptions
    for key, value in (session_options or {}).items():
        options.add_session_config_entry(key, value)
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        try:
            runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            optimized = onnx.load(options.optimized_model_filepath)
        except Exception as error:
            raise ExportError(f"onnxruntime cannot load the file: {error}", where=str(path)) from error
    counts = Counter(node.op_type for node in optimized.graph.node)
    layers = _layers(onnx.load(path).graph)
    integer = {name: count for name, count in counts.items() if any(word in name for word in _INTEGER_WORDS)}
    floats: dict[str, str] = {}
    for node in optimized.graph.node:
        if node.op_type not in integer and any(node.op_type.endswith(word) for word in _FLOAT_WORDS):
            floats[_layer_of(node, layers)] = node.op_type
    return IntegerKernels(integer=integer, floats=floats)


def _layers(graph: Any) -> dict[str, str]:
    """Names of nodes and results to layer: that of the stored kernel, else the name of the result."""
    stored = {tensor.name for tensor in graph.initializer}
    expanded = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in stored}
    layers = {}
    for node in graph.node:
        kernels = [name for name in node.input[1:2] if name in expanded or name in stored]
        if any(node.op_type.endswith(word) for word in _FLOAT_WORDS):
            # Optimized nodes bear one of these names, with an ending or not.
            for name in (node.name, node.output[0]):
                layers[name] = _owner(kernels[0]) if kernels else node.output[0]
    return layers


def _owner(kernel: str) -> str:
    return kernel.removesuffix("_dequantized").removesuffix(".weight")


def _layer_of(node: Any, layers: Mapping[str, str]) -> str:
    """The layer of an optimized node, whose name begins with one of the file."""
    known = [name for name in layers if node.name.startswith(name)]
    return layers[max(known, key=len)] if known else node.name or node.output[0]
