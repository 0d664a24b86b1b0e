"""Writing quantized models in the formats that runtimes read."""

from __future__ import annotations

from detent.exporters.formats import FORMATS, SUFFIXES, Format, export, format_of
from detent.exporters.onnx_dialects import DIALECTS, Dialect
from detent.exporters.onnx_io import check_io_type
from detent.exporters.onnx_kernels import IntegerKernels, integer_kernels
from detent.exporters.onnx_qdq import export_onnx
from detent.exporters.onnx_qoperator import export_qoperator
from detent.exporters.onnx_values import ValueAgreement, verify_onnx_values
from detent.exporters.onnx_verify import OnnxAgreement, verify_onnx
from detent.exporters.pt2e import export_pt2e, to_exported_program
from detent.exporters.qualcomm import export_qualcomm
from detent.exporters.report import ExportReport
from detent.exporters.subject import ExportableModel, fix_batch
from detent.exporters.verification import TensorAgreement, Verification, open_runtime, verify
from detent.exporters.weights import export_weights, load

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
    "TensorAgreement",
    "ValueAgreement",
    "Verification",
    "check_io_type",
    "export",
    "export_onnx",
    "export_pt2e",
    "export_qoperator",
    "export_qualcomm",
    "export_weights",
    "fix_batch",
    "format_of",
    "integer_kernels",
    "load",
    "open_runtime",
    "to_exported_program",
    "verify",
    "verify_onnx",
    "verify_onnx_values",
]
