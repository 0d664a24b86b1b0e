"""The formats that quantized models are written in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from detent._registry import Registry, unknown_name
from detent.errors import ConfigError
from detent.exporters.akida import export_akida
from detent.exporters.c_header import export_c_header
from detent.exporters.imx500 import export_imx500
from detent.exporters.imx500_operators import IMX500_OPERATORS
from detent.exporters.onnx_qdq import export_onnx
from detent.exporters.onnx_qoperator import export_qoperator
from detent.exporters.pt2e import export_pt2e
from detent.exporters.qualcomm import export_qualcomm
from detent.exporters.report import ExportReport
from detent.exporters.subject import ExportableModel
from detent.exporters.tflite import NARROW_FUNCTIONS, TFLITE_OPERATORS, export_tflite
from detent.exporters.weights import export_weights

__all__ = ["FORMATS", "SUFFIXES", "Format", "export", "format_of"]


@dataclass(frozen=True, kw_only=True)
class Format:
    """A file format.

    Args:
        title: what it is, in a few words.
        write: takes the model, the path and keyword options of its own; returns the report.
        operators: kinds of operations and names of single ones (`detent.targets.OP_NAMES`) that it expresses on codes;
            None for all.
        narrow: those of them that it expresses on codes of 8 bits only.
    """

    title: str
    write: Callable[..., ExportReport]
    operators: frozenset[str] | None = None
    narrow: frozenset[str] = frozenset()


FORMATS: Final[Registry[Format]] = Registry("export format")
"""By name."""

SUFFIXES: Final[Registry[str]] = Registry("file suffix")
"""File suffix to the name of the format that it stands for."""

FORMATS.add("onnx", Format(title="ONNX with QuantizeLinear and DequantizeLinear", write=export_onnx))
SUFFIXES.add(".onnx", "onnx")
FORMATS.add(
    "tflite", Format(title="TensorFlow Lite", write=export_tflite, operators=TFLITE_OPERATORS, narrow=NARROW_FUNCTIONS)
)
SUFFIXES.add(".tflite", "tflite")
FORMATS.add("c", replace(FORMATS["tflite"], title="C header with TensorFlow Lite", write=export_c_header))
SUFFIXES.add(".h", "c")
FORMATS.add("pt2e", Format(title="ExportedProgram with quantized_decomposed operators", write=export_pt2e))
SUFFIXES.add(".pt2", "pt2e")
FORMATS.add("safetensors", Format(title="packed codes for detent.load", write=export_weights))
SUFFIXES.add(".safetensors", "safetensors")
FORMATS.add("qoperator", Format(title="ONNX with operators on codes", write=export_qoperator))
FORMATS.add(
    "imx500",
    Format(title="ONNX for the converter of Sony's IMX500", write=export_imx500, operators=IMX500_OPERATORS),
)
FORMATS.add(
    "akida",
    Format(
        title="ONNX in the quantized dialect of BrainChip's Akida 2",
        write=export_akida,
        operators=frozenset(("add", "conv", "linear", "mean", "relu", "relu6")),
    ),
)
FORMATS.add("qualcomm", Format(title="Qualcomm encodings JSON beside float ONNX", write=export_qualcomm))
SUFFIXES.add(".encodings", "qualcomm")


def format_of(path: str | Path) -> str:
    """The format that a file's suffix stands for.

    Raises:
        ConfigError: an unknown suffix.
    """
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        error = unknown_name("file suffix", suffix, SUFFIXES)
        raise ConfigError(error.what, where=str(path), remedy=f"{error.remedy}; or give `format`")
    return SUFFIXES[suffix]


def export(qmodel: ExportableModel, path: str | Path, *, format: str | None = None, **options: Any) -> ExportReport:
    """Write a quantized model to `path` and tell what was written.

    Args:
        qmodel: a `QuantizedModel`.
        path: file to write; it is complete or not there.
        format: name of the format; None takes it from the suffix of `path`.
        options: options of the format's own exporter, e.g. `opset` for ONNX.

    Raises:
        ConfigError: unknown format, suffix or option.
        ExportError: the model cannot be written in this format, or the file cannot be written at all.
    """
    if not hasattr(qmodel, "graph_module"):
        raise ConfigError(
            f"`qmodel` must be a quantized model, got a {type(qmodel).__name__}",
            remedy="quantize the model first: detent.quantize(model, data, target=...)",
        )
    write = FORMATS[format_of(path) if format is None else format].write
    known = set(getattr(write, "__kwdefaults__", None) or {})
    for option in options:
        if option not in known:
            raise unknown_name("export option", option, known)
    return write(qmodel, path, **options)
