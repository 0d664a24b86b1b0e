"""Dialects: what each runtime does not take is refused before anything is written, by layer and source line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from tests.exporters.hand_quantized import (
    HandQuantized,
    codebook,
    keep_float,
    mixed,
    power_of_two,
    quantize_by_hand,
    symmetric,
    uniform,
)
from tests.exporters.networks import Residual, TiedWeights
from tests.models import MODELS, build
from torch import nn

import detent
from detent import Preprocessing
from detent.errors import ConfigError, ExportError
from detent.exporters import DIALECTS, export, export_onnx, verify_onnx
from detent.exporters.onnx_dialects import check_onnxruntime
from detent.exporters.onnx_openvino import check_openvino
from detent.exporters.onnx_quantized import QuantizedValue

INT8 = symmetric(narrow_range=False)
FUSED = {"stem": keep_float, "depthwise": keep_float}
"""No grids between convolution and ReLU."""


def images(count: int = 8) -> torch.Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def by_hand(**options: Any) -> HandQuantized:
    torch.manual_seed(0)
    return quantize_by_hand(
        Residual().eval(), images(), **{"activations": mixed(INT8, FUSED), "biases": False, **options}
    )


@pytest.mark.parametrize("name", ["conv_chain", "residual", "mobile", "grouped", "decoder", "perceptron", "attention"])
def test_models_for_tensorrt_pass(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = list(MODELS[name].inputs(8))
    qmodel = detent.quantize(build(name), inputs, target="tensorrt", progress=False)
    report = export(qmodel, tmp_path / "model.onnx")
    assert report.rounding is None
    assert report.notes == ()
    assert verify_onnx(report.path, qmodel, inputs).largest_steps <= 1


def test_hand_made_int8_passes_every_dialect_but_that_of_htp(tmp_path: Path) -> None:
    qmodel = by_hand()
    for dialect in set(DIALECTS) - {"qnn"}:
        report = export(qmodel, tmp_path / f"{dialect}.onnx", dialect=dialect)
        assert verify_onnx(report.path, qmodel, images()).largest_steps <= 1


REFUSED_BY_TENSORRT: dict[str, tuple[dict[str, Any], str, str]] = {
    "uint8": ({"activations": uniform()}, "uint8 codes", "signed, symmetric grids"),
    "zero points": ({"activations": uniform(signed=True)}, "zero points other than 0", "symmetric grids"),
    "one zero point": (
        {"activations": mixed(INT8, {**FUSED, "pointwise": uniform(signed=True)})},
        "zero points other than 0",
        "symmetric grids",
    ),
    "16 bits": ({"activations": symmetric(16)}, "int16 activations", "use 8 bits"),
    "channels": ({"activations": symmetric(axis=1)}, "step for each channel", "activation_per_channel=False"),
    "biases": ({"biases": True}, "quantized biases", "target='tensorrt'"),
    "unsigned weights": ({"weights": uniform(axis=0)}, "uint8 codes", "symmetric grids"),
    "weights with zero points": ({"weights": uniform(axis=0, signed=True)}, "zero points", "symmetric grids"),
    "16-bit weights": ({"weights": symmetric(16, axis=0)}, "int16 weights", "use 8 bits"),
    "4-bit kernels": ({"weights": symmetric(4, axis=0)}, "4-bit weights of Conv", "use 8 bits"),
    "4 bits without blocks": (
        {"weights": mixed(symmetric(axis=0), {"head": symmetric(4, axis=0)})},
        "4-bit weights without blocks along the inputs",
        "group_size",
    ),
    "4 bits with quantized inputs": (
        {"weights": mixed(symmetric(axis=0), {"head": symmetric(4, axis=0, group_size=16)})},
        "4-bit weights with quantized inputs",
        "keep the inputs of this layer in float",
    ),
    "8 bits in blocks": (
        {"weights": mixed(symmetric(axis=0), {"head": symmetric(axis=0, group_size=16)})},
        "blocks of int8 weights",
        "a step for each channel",
    ),
    "codebook": ({"weights": mixed(symmetric(axis=0), {"head": codebook(4, axis=0)})}, "a codebook", "symmetric grid"),
    "other axis": (
        {"weights": mixed(symmetric(axis=0), {"pointwise": symmetric(axis=1)})},
        "each entry of axis 1",
        "output channels of Conv, axis 0",
    ),
    "before relu": (
        {"activations": mixed(INT8, {"depthwise": keep_float})},
        "between a convolution and what is fused behind it",
        "leave stem in float, so that Relu is fused",
    ),
    "one operand": (
        {"activations": mixed(INT8, {**FUSED, "pointwise": keep_float})},
        "a quantized value and one in float",
        "both inputs",
    ),
}


@pytest.mark.parametrize("case", REFUSED_BY_TENSORRT)
def test_tensorrt_refuses(case: str, tmp_path: Path) -> None:
    options, what, remedy = REFUSED_BY_TENSORRT[case]
    with pytest.raises(ExportError, match=what) as found:
        export(by_hand(**options), tmp_path / "model.onnx", dialect="tensorrt")
    assert remedy in str(found.value.remedy)
    assert "tests/exporters/networks.py:" in str(found.value.where)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("make", "shape", "axis"),
    [
        (lambda: nn.ConvTranspose2d(3, 6, 2), (3, 4, 4), 1),
        (lambda: nn.Linear(8, 6), (8,), 0),
        (lambda: nn.Linear(8, 6, bias=False), (5, 8), 0),
        (lambda: nn.Conv1d(3, 6, 2), (3, 9), 0),
    ],
)
def test_tensorrt_takes_the_output_axis_only(
    make: Callable[[], nn.Module], shape: tuple[int, ...], axis: int, tmp_path: Path
) -> None:
    x = torch.randn(4, *shape)

    def exported(on: int) -> None:
        qmodel = quantize_by_hand(make().eval(), x, activations=INT8, weights=symmetric(axis=on), biases=False)
        export(qmodel, tmp_path / f"{on}.onnx", dialect="tensorrt")

    exported(axis)
    with pytest.raises(ExportError, match=r"a step for each entry of axis \d"):
        exported(1 - axis)
    assert [path.name for path in tmp_path.iterdir()] == [f"{axis}.onnx"]


def test_tensorrt_takes_blocks_of_four_bits_along_the_inputs(tmp_path: Path) -> None:
    for shape in ((64,), (3, 64)):
        qmodel = quantize_by_hand(
            nn.Linear(64, 8),
            torch.randn(4, *shape),
            activations=keep_float,
            weights=symmetric(4, axis=0, group_size=32),
            biases=False,
        )
        export(qmodel, tmp_path / "model.onnx", dialect="tensorrt")


def test_openvino_refuses_sixteen_bits(tmp_path: Path) -> None:
    # It would remove these quantizers with their clipping, up to 1952 codes off.
    for activations in (symmetric(16), uniform(16), mixed(INT8, {"relu": uniform(16)})):
        with pytest.raises(ExportError, match="OpenVINO removes quantizers of 16-bit activations") as found:
            export(by_hand(activations=activations), tmp_path / "model.onnx", dialect="openvino")
        assert "tests/exporters/networks.py:" in str(found.value.where)
        assert "use 8 bits here" in str(found.value.remedy)
    assert not list(tmp_path.iterdir())


def test_openvino_says_where_pixels_lie_on_ties(tmp_path: Path) -> None:
    record = Preprocessing(scale=1 / 255, mean=0.5, std=0.5, dtype="uint8")
    pixels = torch.randint(0, 256, (16, 3, 12, 12), dtype=torch.uint8)
    for step, ties in ((1 / 127.5, True), (1 / 128, False)):
        qmodel = detent.quantize(Residual().eval(), pixels, target="onnxruntime", preprocessing=record, progress=False)
        scale = str(_input_quantizer(qmodel).args[1].target)
        qmodel.graph_module.get_buffer(scale).fill_(step)
        notes = export(qmodel, tmp_path / "model.onnx", dialect="openvino").notes
        assert any("INFERENCE_PRECISION_HINT to f32" in note for note in notes)
        assert any("lie on one" in note for note in notes) == ties


def _input_quantizer(qmodel: detent.QuantizedModel) -> Any:
    return next(
        node for node in qmodel.graph_module.graph.nodes if node.target is torch.ops.detent.fake_quantize.default
    )


def test_two_bits_are_refused_by_name(tmp_path: Path) -> None:
    class TwoBits:
        def values(self) -> list[QuantizedValue]:
            step = np.float32(1)
            return [
                QuantizedValue(
                    name="head.weight",
                    where="head.weight (net.py:3)",
                    dtype="int2",
                    scale=np.array(step),
                    axis=None,
                    zero_point=np.array(0),
                    block=None,
                    stored=True,
                    listed=True,
                    value="v",
                    maker=None,
                    readers=(),
                )
            ]

    for check in (check_onnxruntime, check_openvino):
        with pytest.raises(ExportError, match="2-bit codes") as found:
            check(TwoBits())  # type: ignore[arg-type]
        assert found.value.where == "head.weight (net.py:3)"
    # What detent writes of 2 bits lies in 4, and runs.
    qmodel = by_hand(activations=uniform(), weights=symmetric(2, axis=0))
    assert verify_onnx(export(qmodel, tmp_path / "model.onnx"), qmodel, images(), optimize=True).largest_steps <= 1


def test_onnxruntime_quantizes_activations_before_blocks_of_four_bits_unless_it_is_told(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 64)
    qmodel = quantize_by_hand(
        nn.Linear(64, 32, bias=False), x[:, None], activations=keep_float, weights=symmetric(4, axis=0, group_size=32)
    )
    report = export(qmodel, tmp_path / "model.onnx")
    assert any("session.qdq_matmulnbits_accuracy_level is 1" in note for note in report.notes)
    wanted = qmodel(x[:, None]).numpy()
    errors = {}
    for level in ("0", "1", "4"):
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
        session = onnxruntime.InferenceSession(report.path, options, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: x[:, None].numpy()})
        errors[level] = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    assert errors["1"] < 1e-5
    assert errors["0"] < 1e-5
    assert errors["4"] > 1e-3


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"activations": INT8}, "session.qdqisint8allowed=1"),
        ({"activations": uniform()}, "saturate at 16 bits"),
        ({"activations": uniform(axis=1)}, "session.disable_quant_qdq=1"),
        ({"activations": uniform(16)}, "16-bit activations"),
        ({"weights": keep_float}, "(stem, depthwise, pointwise, head)"),
    ],
)
def test_onnxruntime_is_told_what_a_file_needs(options: dict[str, Any], note: str, tmp_path: Path) -> None:
    notes = export(by_hand(**options), tmp_path / "model.onnx", dialect="onnxruntime").notes
    assert any(note in one for one in notes)
    plain = export(by_hand(activations=uniform(), weights=symmetric(4, axis=0)), tmp_path / "plain.onnx").notes
    assert plain == ()


def test_int8_files_of_opset_21_load_with_their_session_option(tmp_path: Path) -> None:
    report = export(by_hand(weights=symmetric(4, axis=0)), tmp_path / "model.onnx", dialect="onnxruntime")
    assert any("files of opset 21 may not load" in note for note in report.notes)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    session = onnxruntime.InferenceSession(report.path, options, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": images().numpy()})[0].shape == (8, 10)


def test_the_dialect_is_that_of_the_target_or_onnxruntimes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for target, rounding in (("tensorrt", None), ("onnxruntime", "float"), ("imx500", "float"), ("tflite", "float")):
        qmodel = detent.quantize(Residual().eval(), images(), target=target, progress=False)
        assert export(qmodel, tmp_path / "model.onnx").rounding == rounding
    qmodel = detent.quantize(Residual().eval(), images(), target="onnxruntime", progress=False)
    with pytest.raises(ExportError, match="TensorRT does not take"):
        export(qmodel, tmp_path / "other.onnx", dialect="tensorrt")
    assert not (tmp_path / "other.onnx").exists()


def test_unknown_dialects(tmp_path: Path) -> None:
    for name in ("tensort", "TensorRT", "", "ort"):
        with pytest.raises(ConfigError, match="unknown ONNX dialect"):
            export_onnx(by_hand(), tmp_path / "model.onnx", dialect=name)
    with pytest.raises(ConfigError, match="did you mean 'tensorrt'"):
        export(by_hand(), tmp_path / "model.onnx", dialect="tensort")
    assert not list(tmp_path.iterdir())


def test_tied_and_power_of_two_weights_for_tensorrt(tmp_path: Path) -> None:
    x = torch.randn(8, 8)
    tied = quantize_by_hand(
        TiedWeights(), x, activations=power_of_two(signed=True), weights=power_of_two(signed=True), biases=False
    )
    report = export(tied, tmp_path / "model.onnx", dialect="tensorrt")
    assert verify_onnx(report.path, tied, x).largest_steps == 0
