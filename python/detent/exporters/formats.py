"""The formats that quantized models are written in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from detent._registry import Registry, unknown_name
from detent.errors import ConfigError
from detent.exporters.onnx_qdq import export_onnx
from detent.exporters.qualcomm import export_qualcomm
from detent.exporters.report import ExportReport
from detent.exporters.subject import ExportableModel

__all__ = ["FORMATS", "SUFFIXES", "Format", "export"]


@dataclass(frozen=True, kw_only=True)
class Format:
    """A file format.

    Args:
        title: what it is, in a few words.
        write: takes the model, the path and keyword options of its own; returns the report.
        operators: kinds of operations and names of single ones (`detent.targets.OP_NAMES`) that it expresses on codes;
            None for all.
    """

    title: str
    write: Callable[..., ExportReport]
    operators: frozenset[str] | None = None


FORMATS: Final[Registry[Format]] = Registry("export format")
"""By name."""

SUFFIXES: Final[Registry[str]] = Registry("file suffix")
"""File suffix to the name of the format that it stands for."""

FORMATS.add("onnx", Format(title="ONNX with QuantizeLinear and DequantizeLinear", write=export_onnx))
SUFFIXES.add(".onnx", "onnx")
FORMATS.add("qualcomm", Format(title="Qualcomm encodings JSON beside float ONNX", write=export_qualcomm))
SUFFIXES.add(".encodings", "qualcomm")


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
    suffix = Path(path).suffix
    if format is None and suffix not in SUFFIXES:
        error = unknown_name("file suffix", suffix, SUFFIXES)
        raise ConfigError(error.what, where=str(path), remedy=f"{error.remedy}; or give `format`")
    write = FORMATS[SUFFIXES[suffix] if format is None else format].write
    known = set(getattr(write, "__kwdefaults__", None) or {})
    for option in options:
        if option not in known:
            raise unknown_name("export option", option, known)
    return write(qmodel, path, **options)
