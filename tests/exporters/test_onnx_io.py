"""Integer inputs and outputs: the same codes as the float32 file computes, and metadata that say what they mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import detent
from detent import Preprocessing
from detent.errors import ConfigError, ExportError
from detent.exporters import verify_onnx, verify_onnx_values
from detent.quantized import QuantizedModel

RECORDS = {
    "equal": Preprocessing(scale=1 / 255, mean=0.5, std=0.25, dtype="uint8"),
    "channels": Preprocessing(
        scale=1 / 255, mean=(0.48, 0.45, 0.4), std=(0.2, 0.25, 0.3), dtype="uint8", layout="NCHW"
    ),
    "sample": Preprocessing(scale=1 / 255, samplewise="mean_and_std", dtype="uint8"),
}


def images(samples: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (samples, 3, 8, 8), dtype=torch.uint8, generator=generator)


class Two(nn.Module):
    """Two outputs: one is moved after its grid, one is also read inside the network; and two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(256, 5)

    def forward(self, image: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = torch.relu(self.conv(image))
        scores = self.head(y.flatten(1)) + offset[:, None]
        return y.flatten(1), scores, scores.argmax(1)


def make(name: str = "equal", target: str = "default", **options: Any) -> QuantizedModel:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(384, 5))
    return detent.quantize(model, images(), target=target, preprocessing=RECORDS[name], progress=False, **options)


def metadata(path: Path) -> dict[str, Any]:
    entries = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return {key: json.loads(entries[f"detent.{key}"]) for key in ("io", "preprocessing")}


def run(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, feeds)
    return outputs


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize(
    ("target", "taken", "given"),
    [("default", "uint8", "uint8"), ("tflite", "int8", "int8"), ("imx500", "uint8", "int8")],
)
def test_codes_in_and_out_are_those_of_the_float_file(
    name: str, target: str, taken: str, given: str, tmp_path: Path
) -> None:
    qmodel = make(name, target)
    floats = detent.export(qmodel, tmp_path / "float.onnx").path
    codes = detent.export(qmodel, tmp_path / "codes.onnx", inputs=taken, outputs=given).path
    known = metadata(codes)
    (inputs,), (outputs,) = known["io"]["inputs"].values(), known["io"]["outputs"].values()
    assert (inputs["dtype"], inputs["scale"], outputs["dtype"]) == (taken, 1.0, given)
    assert known["preprocessing"] == {"input": RECORDS[name].to_dict()}
    wanted = run(floats, {"input": images().float().numpy()})[0]
    feed = (images().numpy().astype(np.int64) + inputs["zero_point"]).astype(taken)
    (got,) = run(codes, {"input": feed})
    assert got.dtype == given
    real = (got.astype(np.int32) - outputs["zero_point"]).astype(np.float32) * np.float32(outputs["scale"])
    np.testing.assert_array_equal(real, wanted)
    kinds = [node.op_type for node in onnx.load(codes).graph.node]
    before = [node.op_type for node in onnx.load(floats).graph.node]
    assert before.count("QuantizeLinear") - kinds.count("QuantizeLinear") == 1
    assert before.count("DequantizeLinear") - kinds.count("DequantizeLinear") == 1
    assert verify_onnx(codes, qmodel, images().float()).largest_steps == 0


def test_types_by_name_moved_outputs_and_outputs_that_are_read_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = {"image": images().numpy(), "offset": np.linspace(-1, 1, 12, dtype=np.float32)}
    qmodel = detent.quantize(Two().eval(), data, preprocessing={"image": RECORDS["equal"]}, progress=False)
    floats = detent.export(qmodel, tmp_path / "float.onnx").path
    scores = qmodel.output_names[1]
    codes = detent.export(
        qmodel,
        tmp_path / "codes.onnx",
        inputs={"image": "uint8"},
        outputs={qmodel.output_names[0]: "uint8", scores: "uint8"},
    ).path
    ends = metadata(codes)["io"]
    assert [end["dtype"] for end in ends["inputs"].values()] == ["uint8", "float32"]
    wanted = run(floats, {"image": data["image"].astype(np.float32), "offset": data["offset"]})
    got = run(codes, data)
    for name, real, code in zip(qmodel.output_names[:2], wanted[:2], got[:2], strict=True):
        end = ends["outputs"][name]
        back = (code.astype(np.int32) - end["zero_point"]).astype(np.float32) * np.float32(end["scale"])
        np.testing.assert_array_equal(back, real)
    np.testing.assert_array_equal(wanted[2], got[2])
    assert qmodel.output_names[2] not in ends["outputs"], "an index has no grid"
    onnx.checker.check_model(onnx.load(codes), full_check=True)


def test_narrow_codes_say_their_limits(tmp_path: Path) -> None:
    qmodel = make(activation_bits=4)
    path = detent.export(qmodel, tmp_path / "model.onnx", inputs="uint8", outputs="uint8").path
    ends = metadata(path)["io"]
    assert ends["inputs"]["input"]["codes"] == [0, 15]
    assert verify_onnx(path, qmodel, images().float()).largest_steps == 0
    assert "Clip" not in [node.op_type for node in onnx.load(path).graph.node][:1]


def test_a_target_may_say_the_type(tmp_path: Path) -> None:
    data = json.loads((Path(detent.__file__).parent / "targets" / "tflite.json").read_text())
    (tmp_path / "mcu.json").write_text(
        json.dumps({**data, "name": "mcu", "input_dtype": "int8", "output_dtype": "int8"})
    )
    qmodel = make(target=str(tmp_path / "mcu.json"))
    ends = metadata(detent.export(qmodel, tmp_path / "model.onnx").path)["io"]
    assert [end["dtype"] for side in ends.values() for end in side.values()] == ["int8", "int8"]
    ends = metadata(detent.export(qmodel, tmp_path / "model.onnx", inputs="float32").path)["io"]
    assert [end["dtype"] for side in ends.values() for end in side.values()] == ["float32", "int8"]


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"inputs": "int8"}, ExportError, ["'input' cannot be int8", "uint8 codes 0..255, step 1", "float32, uint8"]),
        ({"outputs": "int16"}, ExportError, ["cannot be int16", "uint8 codes", "allowed: float32, uint8"]),
        ({"inputs": "uint4"}, ConfigError, ["unknown input type 'uint4'", "uint8"]),
        ({"inputs": {"image": "uint8"}}, ConfigError, ["unknown float input 'image'", "known: input"]),
        ({"output": "int8"}, ConfigError, ["unknown export option 'output'", "outputs"]),
    ],
)
def test_a_type_the_grid_does_not_have(
    options: dict[str, Any], kind: type[Exception], words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(kind) as caught:
        detent.export(make(), tmp_path / "model.onnx", **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not (tmp_path / "model.onnx").exists()


def test_values_cannot_be_compared_from_codes(tmp_path: Path) -> None:
    qmodel = make()
    path = detent.export(qmodel, tmp_path / "model.onnx", inputs="uint8").path
    with pytest.raises(ExportError, match="input hold codes"):
        verify_onnx_values(path, qmodel, images().float())


def test_values_in_float_have_no_codes(tmp_path: Path) -> None:
    qmodel = make(target="tensorrt")
    with pytest.raises(ExportError, match="computed in float by Gemm"):
        detent.export(qmodel, tmp_path / "model.onnx", outputs="int8")
    with pytest.raises(ExportError, match="read in float by Pad"):
        detent.export(qmodel, tmp_path / "model.onnx", inputs="int8")
