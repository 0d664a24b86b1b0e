"""Writing quantized models in the formats that runtimes read."""

from __future__ import annotations

from detent.exporters.formats import FORMATS, SUFFIXES, Format, export
from detent.exporters.onnx_io import check_io_type
from detent.exporters.onnx_qdq import export_onnx
from detent.exporters.onnx_values import ValueAgreement, verify_onnx_values
from detent.exporters.onnx_verify import OnnxAgreement, verify_onnx
from detent.exporters.qualcomm import export_qualcomm
from detent.exporters.report import ExportReport
from detent.exporters.subject import ExportableModel, fix_batch

__all__ = [
    "FORMATS",
    "SUFFIXES",
    "ExportReport",
    "ExportableModel",
    "Format",
    "OnnxAgreement",
    "ValueAgreement",
    "check_io_type",
    "export",
    "export_onnx",
    "export_qualcomm",
    "fix_batch",
    "verify_onnx",
    "verify_onnx_values",
]
