"""Writing quantized models in the formats that runtimes read."""

from __future__ import annotations

from detent.exporters.formats import FORMATS, SUFFIXES, Format, export
from detent.exporters.onnx_dialects import DIALECTS, Dialect
from detent.exporters.onnx_io import check_io_type
from detent.exporters.onnx_kernels import IntegerKernels, integer_kernels
from detent.exporters.onnx_qdq import export_onnx
from detent.exporters.onnx_qoperator import export_qoperator
from detent.exporters.onnx_values import ValueAgreement, verify_onnx_values
from detent.exporters.onnx_verify import OnnxAgreement, verify_onnx
from detent.exporters.report import ExportReport
from detent.exporters.subject import ExportableModel

__all__ = [
    "DIALECTS",
    "FORMATS",
    "SUFFIXES",
    "Dialect",
    "ExportReport",
    "ExportableModel",
    "Format",
    "IntegerKernels",
    "OnnxAgreement",
    "ValueAgreement",
    "check_io_type",
    "export",
    "export_onnx",
    "export_qoperator",
    "integer_kernels",
    "verify_onnx",
    "verify_onnx_values",
]
