"""Integer kernels are counted in what onnxruntime's optimizer leaves, and float ones are found by layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.exporters.tapped import assert_codes_of_the_program, tapped_codes
from tests.integer.networks import NETWORKS
from tests.models import MODELS, build
from torch import Tensor

import detent
from detent import edit
from detent.errors import ExportError
from detent.exporters import integer_kernels, verify_onnx

KERNELS = {
    "convolutions": {"QLinearConv": 4},
    "signals": {"QLinearConv": 1, "MatMulIntegerToFloat": 2, "QLinearAveragePool": 1},
    "arithmetic": {"QLinearConv": 3, "QLinearAdd": 1, "QLinearMul": 1, "QLinearSigmoid": 1},
    "pools": {"QLinearConv": 1, "QLinearAveragePool": 4},
    "functions": {"QLinearConv": 1, "QLinearLeakyRelu": 1},
}


def quantized(name: str, **options: object) -> tuple[detent.QuantizedModel, list[Tensor]]:
    torch.manual_seed(1)
    x = torch.randn(24, *NETWORKS[name].shape, generator=torch.Generator().manual_seed(3))
    options = {"target": "onnxruntime", **options}
    return detent.quantize(NETWORKS[name].make().eval(), [x], progress=False, **options), [x]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", KERNELS)
def test_no_layer_is_left_in_float(name: str, tmp_path: Path) -> None:
    qmodel, inputs = quantized(name)
    path = detent.export(qmodel, tmp_path / "model.onnx").path
    found = integer_kernels(path)
    assert found.floats == {}
    assert {kernel: found.integer.get(kernel) for kernel in KERNELS[name]} == KERNELS[name]
    assert_codes_of_the_program(qmodel, inputs, tapped_codes(path, inputs, optimize=True))


@pytest.mark.parametrize("name", ["conv_chain", "residual", "mobile", "functional_norm", "reused"])
def test_models_of_all_kinds(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = list(MODELS[name].inputs(16))
    qmodel = detent.quantize(build(name), inputs, target="onnxruntime", progress=False)
    path = detent.export(qmodel, tmp_path / "model.onnx").path
    found = integer_kernels(path)
    assert found.floats == {}
    assert found.integer["QLinearConv"] >= 1
    assert_codes_of_the_program(qmodel, inputs, tapped_codes(path, inputs, optimize=True))


def test_float_kernels_are_found_by_layer(tmp_path: Path) -> None:
    # onnxruntime does not carry quantizers past a pixel shuffle: the QDQ file's head runs in float.
    qmodel, _ = quantized("moves")
    path = detent.export(qmodel, tmp_path / "model.onnx").path
    found = integer_kernels(path)
    assert found.floats == {"head": "Gemm"}
    assert "in float: head (Gemm)" in str(found)
    exact = integer_kernels(detent.export(qmodel, tmp_path / "codes.onnx", format="qoperator").path)
    assert exact.floats == {}
    assert exact.integer["QGemm"] == 1


def test_layers_kept_in_float_are_quantized_by_onnxruntime_unless_it_is_told(tmp_path: Path) -> None:
    rules = [edit.rule(edit.name("depthwise"), edit.weights(keep_float=True))]
    qmodel, inputs = quantized("convolutions", rules=rules)
    report = detent.export(qmodel, tmp_path / "model.onnx")
    assert any("(depthwise)" in note and "session.disable_quant_qdq is 1" in note for note in report.notes)
    assert integer_kernels(report.path).floats == {}
    assert verify_onnx(report.path, qmodel, inputs, optimize=True).off_fraction > 0
    assert verify_onnx(report.path, qmodel, inputs).off_fraction == 0
    found = integer_kernels(report.path, session_options={"session.disable_quant_qdq": "1"})
    assert sorted(found.floats) == ["depthwise", "first", "grouped", "last"]
    assert found.integer == {}


def test_sixteen_bits_run_in_float(tmp_path: Path) -> None:
    qmodel, _ = quantized("convolutions", activation_bits=16)
    found = integer_kernels(detent.export(qmodel, tmp_path / "model.onnx").path)
    assert sorted(found.floats) == ["depthwise", "first", "grouped", "last"]
    assert found.integer == {}


def test_int8_activations_need_their_session_option(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = list(MODELS["residual"].inputs(16))
    qmodel = detent.quantize(build("residual"), inputs, target="tflite", progress=False)
    report = detent.export(qmodel, tmp_path / "model.onnx")
    assert any("session.qdqisint8allowed=1" in note for note in report.notes)
    option = {"session.qdqisint8allowed": "1"}
    assert integer_kernels(report.path).floats == {"conv1": "Conv"}
    assert integer_kernels(report.path, session_options=option).floats == {}
    found = tapped_codes(report.path, inputs, optimize=True, session_options=option)
    assert_codes_of_the_program(qmodel, inputs, found)


def test_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(ExportError, match="onnxruntime cannot load the file"):
        integer_kernels(path)
    with pytest.raises(ExportError, match="onnxruntime cannot load the file"):
        integer_kernels(tmp_path / "nothing.onnx")
