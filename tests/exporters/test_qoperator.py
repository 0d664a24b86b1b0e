"""QOperator files: operators on codes that give the integer executor's codes, with optimizations off and on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from tests.exporters.tapped import assert_codes_of_the_program, tapped_codes
from tests.integer.networks import NETWORKS
from tests.models import MODELS, build
from torch import Tensor, nn

import detent
from detent.errors import ConfigError, ExportError
from detent.exporters import ExportReport, integer_kernels, verify_onnx


def data(name: str, samples: int = 24) -> Tensor:
    return torch.randn(samples, *NETWORKS[name].shape, generator=torch.Generator().manual_seed(3))


def quantized(name: str, **options: Any) -> detent.QuantizedModel:
    torch.manual_seed(1)
    options = {"target": "onnxruntime", **options}
    return detent.quantize(NETWORKS[name].make().eval(), [data(name)], progress=False, **options)


def export(qmodel: detent.QuantizedModel, folder: Path, **options: Any) -> ExportReport:
    return detent.export(qmodel, folder / "model.onnx", format="qoperator", **options)


FORMS = {
    "convolutions": {"QLinearConv": 4},
    "signals": {"QLinearConv": 1, "QLinearAveragePool": 1, "QGemm": 2},
    "arithmetic": {"QLinearConv": 3, "QLinearAdd": 1, "QLinearMul": 1, "QLinearSigmoid": 1, "Concat": 2},
    "pools": {"QLinearConv": 1, "MaxPool": 2, "QLinearAveragePool": 4, "QLinearGlobalAveragePool": 1},
    "moves": {"QLinearConv": 1, "QGemm": 1, "Slice": 7, "DepthToSpace": 1, "Resize": 1, "Transpose": 1, "Pad": 2},
    "functions": {"QLinearConv": 1, "QLinearLeakyRelu": 1},
}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", FORMS)
def test_the_codes_are_the_executors(name: str, bits: int, tmp_path: Path) -> None:
    qmodel = quantized(name, weights_bits=bits)
    report = export(qmodel, tmp_path)
    assert report.format == "qoperator"
    assert report.rounding == "float"
    assert {operator: report.operators.get(operator) for operator in FORMS[name]} == FORMS[name]
    for optimize in (False, True):
        assert_codes_of_the_program(qmodel, [data(name)], tapped_codes(report.path, [data(name)], optimize=optimize))
    assert any("4 bits are stored in 8" in note for note in report.notes) == (bits == 4)


@pytest.mark.parametrize("name", ["conv_chain", "residual", "functional_norm", "reused"])
@pytest.mark.parametrize("target", ["onnxruntime", "tflite"])
def test_nothing_is_left_in_float(name: str, target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = list(MODELS[name].inputs(16))
    qmodel = detent.quantize(build(name), inputs, target=target, progress=False)
    report = export(qmodel, tmp_path, strict=True)
    assert report.notes == ()
    assert (report.operators["QuantizeLinear"], report.operators["DequantizeLinear"]) == (1, 1)
    assert_codes_of_the_program(qmodel, inputs, tapped_codes(report.path, inputs, optimize=False))
    assert integer_kernels(report.path).floats == {}


def test_unequal_grids_are_joined(tmp_path: Path) -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.left(x), F.relu(self.right(x))], 1)

    torch.manual_seed(0)
    x = data("pools")
    qmodel = detent.quantize(Joined().eval(), [x], target="default", progress=False)
    report = export(qmodel, tmp_path, strict=True)
    assert report.operators["QLinearConcat"] == 1
    assert verify_onnx(report.path, qmodel, x).largest_steps == 0


@pytest.mark.parametrize("name", ["attention", "transformer", "grouped", "decoder", "volume", "stored_matrix"])
def test_what_has_no_form_stays_in_float_and_is_named(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = list(MODELS[name].inputs(8))
    qmodel = detent.quantize(build(name), inputs, target="onnxruntime", progress=False)
    report = export(qmodel, tmp_path)
    assert any(note.startswith("in float, between codes: ") for note in report.notes)
    assert verify_onnx(report.path, qmodel, inputs).largest_steps == 0


def test_softmax_is_exact_in_float(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = list(MODELS["attention"].inputs(8))
    report = export(detent.quantize(build("attention"), inputs, target="onnxruntime", progress=False), tmp_path)
    assert report.operators["Softmax"] == 2
    assert "in float, between codes: softmax (Softmax)" in report.notes
    assert report.operators["QLinearMatMul"] >= 2


def test_strict_refuses_by_layer_and_line(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"(?s)2 values.*mean:1 \(ReduceMean\)|1 values.*mean:1 \(ReduceMean\)"
    ) as found:
        export(quantized("pools"), tmp_path, strict=True)
    assert "tests/integer/networks.py:" in str(found.value.where)
    assert not list(tmp_path.iterdir())


def test_grids_without_forms_stay_in_float(tmp_path: Path) -> None:
    # 16 bits, and a step for each channel.
    for options in ({"activation_bits": 16}, {"activation_per_channel": True, "target": "default"}):
        qmodel = quantized("convolutions", **options)
        report = export(qmodel, tmp_path)
        assert "QLinearConv" not in report.operators or len(report.notes) > 0
        assert verify_onnx(report.path, qmodel, data("convolutions")).largest_steps <= 1
        with pytest.raises(ExportError, match="no operator on codes for their grids"):
            export(qmodel, tmp_path / "..", strict=True)


def test_integer_ends(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = list(MODELS["conv_chain"].inputs(16))
    qmodel = detent.quantize(build("conv_chain"), inputs, target="onnxruntime", progress=False)
    report = export(qmodel, tmp_path, inputs="uint8", outputs="uint8", strict=True)
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(report.operators)
    assert verify_onnx(report.path, qmodel, inputs).largest_steps == 0
    with pytest.raises(ExportError, match="cannot be int8"):
        export(qmodel, tmp_path, inputs="int8")


def test_float_biases_become_steps_of_the_accumulator(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = data("pools")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3)).eval()
    qmodel = detent.quantize(model, [x], target="imx500", progress=False)
    report = export(qmodel, tmp_path)
    if "QLinearConv" in report.operators:
        assert verify_onnx(report.path, qmodel, x).largest_steps <= 1
    stored = {tensor.name for tensor in onnx.load(report.path).graph.initializer}
    assert any(name.endswith("bias_rounded_codes") for name in stored) == ("QLinearConv" in report.operators)


def test_the_same_bytes_and_unknown_options(tmp_path: Path) -> None:
    qmodel = quantized("pools")
    first, second = (export(qmodel, tmp_path).path.read_bytes() for _ in range(2))
    assert first == second
    with pytest.raises(ConfigError, match="unknown export option 'dialect'"):
        export(qmodel, tmp_path, dialect="onnxruntime")
    with pytest.raises(ConfigError, match="unknown export option 'strickt'"):
        export(qmodel, tmp_path, strickt=True)
