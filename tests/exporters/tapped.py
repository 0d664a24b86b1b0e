"""Codes of all tensors of an exported ONNX file, as onnxruntime computes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from torch import Tensor

import detent

__all__ = ["assert_codes_of_the_program", "tapped_codes"]


def tapped_codes(
    path: Path, inputs: Sequence[Tensor], *, optimize: bool, session_options: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """Codes by the names that an integer program has for them."""
    proto = onnx.load(path)
    names = [name for node in proto.graph.node for name in node.output if name.endswith("_quantized")]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    for key, value in (session_options or {}).items():
        options.add_session_config_entry(key, value)
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = [entry.name for entry in session.get_inputs()]
    found = session.run(names, {name: tensor.numpy() for name, tensor in zip(given, inputs, strict=True)})
    stems = [name.removesuffix("_quantized") for name in names]
    return {f"{stem}_codes" if stem in given else stem: codes for stem, codes in zip(stems, found, strict=True)}


def assert_codes_of_the_program(
    qmodel: detent.QuantizedModel, inputs: Sequence[Tensor], found: Mapping[str, np.ndarray]
) -> None:
    """No code differs from the integer executor's, in any tensor."""
    assert len(found) >= 2
    run = detent.lower(qmodel, runtime="onnxruntime").run(*inputs, all_tensors=True)
    for name, codes in found.items():
        np.testing.assert_array_equal(run.codes[name], codes, err_msg=name)
