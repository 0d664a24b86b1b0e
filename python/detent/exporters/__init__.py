"""Writing quantized models in the formats that runtimes read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from detent._registry import Registry, unknown_name
from detent.errors import ConfigError
from detent.exporters.onnx_io import check_io_type
from detent.exporters.onnx_qdq import export_onnx
from detent.exporters.onnx_values import ValueAgreement, verify_onnx_values
from detent.exporters.onnx_verify import OnnxAgreement, verify_onnx
from detent.exporters.subject import ExportableModel

__all__ = [
    "EXPORTERS",
    "SUFFIXES",
    "ExportableModel",
    "OnnxAgreement",
    "ValueAgreement",
    "check_io_type",
    "export",
    "export_onnx",
    "verify_onnx",
    "verify_onnx_values",
]

Exporter = Callable[..., Path]
"""Takes the model, the path and the format's own keyword options; returns the path."""

EXPORTERS: Final[Registry[Exporter]] = Registry("export format")
"""Format name to the function that writes it."""

SUFFIXES: Final[Registry[str]] = Registry("file suffix")
"""File suffix to format name."""

EXPORTERS.add("onnx", export_onnx)
SUFFIXES.add(".onnx", "onnx")


def export(qmodel: ExportableModel, path: str | Path, *, format: str | None = None, **options: Any) -> Path:
    """Write a quantized model to `path` and return the path.

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
    exporter = EXPORTERS[SUFFIXES[suffix] if format is None else format]
    known = set(getattr(exporter, "__kwdefaults__", None) or {})
    for option in options:
        if option not in known:
            raise unknown_name("export option", option, known)
    return exporter(qmodel, path, **options)
