"""All codes that onnxruntime computes in an exported file, by the names that integer programs have for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from detent.errors import ExportError
from detent.exporters.onnx_io import encode_inputs
from detent.exporters.onnx_qdq import require_extra
from detent.exporters.onnx_verify import open_session, run_session
from detent.integer import IntegerProgram, QuantizeInput

__all__ = ["onnx_codes"]

Codes = Mapping[str, npt.NDArray[Any]]
_SUFFIX = "_quantized"


def onnx_codes(path: Path, program: IntegerProgram) -> Callable[[list[npt.NDArray[Any]]], Codes]:
    """A function from inputs to codes of all tensors that the file shows, computed with onnxruntime's integer kernels.

    Raises:
        ExportError: a package is missing, or the file cannot be read.
    """
    onnx = require_extra("onnx")
    try:
        model = onnx.load(path)
    except Exception as error:
        raise ExportError(f"cannot read the file: {error}", where=str(path)) from error
    inputs = {
        operation.inputs[0]: operation.output
        for operation in program.operations
        if isinstance(operation, QuantizeInput)
    }
    known = {operation.output for operation in program.operations}
    taps: dict[str, str] = {}
    for node in model.graph.node:
        for value in node.output:
            stem = value.removesuffix(_SUFFIX)
            name = inputs.get(stem, stem)
            if value != stem and name in known:
                taps[name] = value
    ends = {value.name for value in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(value) for value in taps.values() if value not in ends
    )
    session = open_session(model.SerializeToString(), True, path)

    def run(arrays: list[npt.NDArray[Any]]) -> Codes:
        feeds = encode_inputs(session, dict(zip(program.inputs, arrays, strict=True)))
        found = run_session(session, feeds, path, list(taps.values()))
        return dict(zip(taps, found, strict=True))

    return run
