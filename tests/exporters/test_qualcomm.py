"""Encodings files: every version holds the plan's grids, the float file beside it holds the values of the codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
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
from tests.exporters.networks import Attention, Residual, TiedWeights
from torch import nn

from detent.errors import ConfigError, DetentError, ExportError
from detent.exporters import ExportReport, export, export_onnx, export_qualcomm, fix_batch, verify_onnx
from detent.exporters.qualcomm_encodings import check_entries
from detent.records.grid import Grid

VERSIONS = ("0.6.1", "1.0.0", "2.0.0")


def images(count: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def rows(count: int = 16, width: int = 8) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def residual() -> HandQuantized:
    torch.manual_seed(0)
    return quantize_by_hand(Residual(), images())


def tiny() -> HandQuantized:
    """One layer whose every number is known: `y = relu(W x + b)` with two inputs and two outputs."""
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, -0.25], [1.0, 2.0]]))
        layer.bias.copy_(torch.tensor([0.125, -0.5]))
    grids = {
        "input": Grid(kind="uniform", bits=8, signed=False, lower=[-1.0], upper=[254.0]),
        "0": Grid(kind="uniform", bits=8, signed=True, lower=[-64.0], upper=[63.5]),
        "1": Grid(kind="power_of_two", bits=8, signed=False, threshold=[64.0]),
    }
    weights = Grid(kind="symmetric", bits=8, signed=True, threshold=[0.5, 2.0], axis=0)
    return quantize_by_hand(
        nn.Sequential(layer, nn.ReLU()),
        rows(4, 2),
        activations={"": keep_float, **{name: (lambda _, grid=grid: grid) for name, grid in grids.items()}},
        weights=lambda _: weights,
    )


def written(qmodel: HandQuantized, path: Path, version: str) -> tuple[dict[str, Any], onnx.ModelProto]:
    report = export_qualcomm(qmodel, path / f"{version}.encodings", version=version)
    return json.loads(report.path.read_text()), onnx.load(report.companions[0])


def affine(document: dict[str, Any]) -> dict[str, tuple[np.ndarray, np.ndarray, int, bool]]:
    """Steps, zero points, width and signedness by tensor, read from any version by the published rules."""
    found: dict[str, tuple[np.ndarray, np.ndarray, int, bool]] = {}
    if document["version"] == "2.0.0":
        for entry in document["encodings"]:
            scale = np.asarray(entry["y_scale"], np.float64)
            zero = np.asarray(entry.get("y_zero_point", np.zeros_like(scale)))
            dtype = entry["output_dtype"]
            found[entry["name"]] = (scale.ravel(), zero.ravel(), int(dtype.split("int")[1]), dtype[0] != "u")
        return found
    for section in ("activation_encodings", "param_encodings"):
        entries = document[section]
        if document["version"] == "0.6.1":
            entries = [
                {
                    "name": name,
                    "bw": channels[0]["bitwidth"],
                    "is_sym": channels[0]["is_symmetric"] == "True",
                    "scale": [one["scale"] for one in channels],
                    "offset": [one["offset"] for one in channels],
                }
                for name, channels in entries.items()
            ]
        for entry in entries:
            lowest = 1 << (entry["bw"] - 1) if entry["is_sym"] else 0
            zero = -np.asarray(entry["offset"]) - lowest
            found[entry["name"]] = (np.asarray(entry["scale"]), zero, entry["bw"], entry["is_sym"])
    return found


def test_0_6_1_number_by_number(tmp_path: Path) -> None:
    document, _ = written(tiny(), tmp_path, "0.6.1")
    head = {"bitwidth": 8, "dtype": "int"}
    assert document == {
        "version": "0.6.1",
        "activation_encodings": {
            "input": [head | {"is_symmetric": "False", "max": 254.0, "min": -1.0, "offset": -1, "scale": 1.0}],
            "0": [head | {"is_symmetric": "True", "max": 63.5, "min": -64.0, "offset": -128, "scale": 0.5}],
            "1": [head | {"is_symmetric": "False", "max": 63.75, "min": 0.0, "offset": 0, "scale": 0.25}],
        },
        "param_encodings": {
            "0.weight": [
                head | {"is_symmetric": "True", "max": 127 / 256, "min": -0.5, "offset": -128, "scale": 2**-8},
                head | {"is_symmetric": "True", "max": 127 / 64, "min": -2.0, "offset": -128, "scale": 2**-6},
            ]
        },
        "quantizer_args": {
            "activation_bitwidth": 8,
            "param_bitwidth": 8,
            "dtype": "int",
            "is_symmetric": "True",
            "per_channel_quantization": "True",
            "quant_scheme": "post_training_tf",
        },
    }


def test_1_0_0_number_by_number(tmp_path: Path) -> None:
    document, model = written(tiny(), tmp_path, "1.0.0")
    one = {"enc_type": "PER_TENSOR", "dtype": "INT", "bw": 8}
    assert document["activation_encodings"] == [
        {"name": "input", **one, "is_sym": False, "scale": [1.0], "offset": [-1]},
        {"name": "0", **one, "is_sym": True, "scale": [0.5], "offset": [-128]},
        {"name": "1", **one, "is_sym": False, "scale": [0.25], "offset": [0]},
    ]
    kernel = {"name": "0.weight", "enc_type": "PER_CHANNEL", "dtype": "INT", "bw": 8, "is_sym": True}
    assert document["param_encodings"] == [{**kernel, "scale": [2**-8, 2**-6], "offset": [-128, -128]}]
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    # 0.5 and 2.0 are the thresholds: the highest code stands for one step less.
    assert np.array_equal(stored["0.weight"], np.float32([[127 / 256, -0.25], [1.0, 127 / 64]]))
    assert np.array_equal(stored["0.bias"], np.float32([0.125, -0.5]))


def test_2_0_0_number_by_number(tmp_path: Path) -> None:
    document, _ = written(tiny(), tmp_path, "2.0.0")
    assert document == {
        "version": "2.0.0",
        "encodings": [
            {"name": "input", "output_dtype": "uint8", "y_scale": 1.0, "y_zero_point": 1},
            {"name": "0", "output_dtype": "int8", "y_scale": 0.5},
            {"name": "1", "output_dtype": "uint8", "y_scale": 0.25},
            {"name": "0.weight", "output_dtype": "int8", "y_scale": [2**-8, 2**-6], "axis": 0},
            {"name": "0.bias", "output_dtype": "int32", "y_scale": [2**-8, 2**-6], "axis": 0},
        ],
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_every_grid_of_the_plan_is_read_back(version: str, tmp_path: Path) -> None:
    """4-bit, asymmetric and per-tensor kernels; signed and 16-bit activations."""
    torch.manual_seed(0)
    activations = {"x": uniform(16), "stem": uniform(signed=True), "depthwise": symmetric(16, narrow_range=False)}
    weights = {
        "stem": symmetric(4, axis=0),
        "depthwise": uniform(axis=0),
        "pointwise": power_of_two(signed=True),
        "head": symmetric(16, axis=0),
    }
    qmodel = quantize_by_hand(
        Residual(), images(), activations=mixed(uniform(), activations), weights=mixed(keep_float, weights)
    )
    document, _ = written(qmodel, tmp_path, version)
    found = affine(document)
    kernels = {f"{name}.weight": entry.grid for name, entry in qmodel.plan.weights.items()}
    grids = {name: qmodel.plan.activation_grid(name) for name in qmodel.plan.activations} | kernels
    (moved,) = {name for name in found if not name.endswith(".bias")} - set(grids)
    assert np.array_equal(found[moved][0], found["avg_pool"][0])  # flattened, not computed
    for name, grid in grids.items():
        assert grid is not None
        scale, zero, bits, signed = found[name]
        assert bits == grid.bits
        assert np.array_equal(scale.astype(np.float32), grid.scale)
        assert np.array_equal(
            zero - (1 << (bits - 1)) * (not signed), grid.zero_point - (1 << (bits - 1)) * (not grid.signed)
        )


@pytest.mark.parametrize("version", VERSIONS)
def test_kernels_are_the_values_of_their_codes(residual: HandQuantized, version: str, tmp_path: Path) -> None:
    document, model = written(residual, tmp_path, version)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name in ("stem", "depthwise", "pointwise", "head"):
        codes = residual.graph_module.get_buffer(f"{name}.weight_codes").numpy()
        scale, zero, *_ = affine(document)[f"{name}.weight"]
        steps = scale.reshape(-1, *[1] * (codes.ndim - 1))
        assert not zero.any()
        assert np.array_equal(np.rint(stored[f"{name}.weight"] / steps), codes)
        bias = residual.graph_module.get_buffer(f"{name}.bias_codes").numpy()
        step = residual.graph_module.get_buffer(f"{name}.bias_scale").numpy()
        assert np.array_equal(np.rint(stored[f"{name}.bias"].astype(np.float64) / step), bias)


def quantized_by_the_file(document: dict[str, Any], model: onnx.ModelProto) -> onnx.ModelProto:
    """The float file with a rounding to its grid behind every value that has an encoding."""
    graph = model.graph
    found = {name: entry for name, entry in affine(document).items() if entry[2] < 32}
    stored = {tensor.name for tensor in graph.initializer}
    ends = {value.name for value in graph.output}
    nodes: list[Any] = []

    def rounded(name: str, result: str) -> list[Any]:
        scale, zero, bits, signed = found[name]
        kind = getattr(onnx.TensorProto, f"{'' if signed else 'U'}INT{bits}")
        graph.initializer.append(numpy_helper.from_array(np.float32(scale[0]), f"{name}_scale"))
        graph.initializer.append(onnx.helper.make_tensor(f"{name}_zero", kind, [], [int(zero[0])]))
        pair = (f"{name}_scale", f"{name}_zero")
        return [
            onnx.helper.make_node("QuantizeLinear", [name, *pair], [f"{name}_codes"]),
            onnx.helper.make_node("DequantizeLinear", [f"{name}_codes", *pair], [result]),
        ]

    values = {name: f"{name}_rounded" for name in found if name not in stored}
    for value in graph.input:
        nodes += rounded(value.name, values[value.name])
    for node in graph.node:
        node.input[:] = [values.get(name, name) for name in node.input]
        nodes.append(node)
        for name in node.output:
            if name in values:
                nodes += rounded(name, values[name])
    for value in graph.output:
        value.name = values.get(value.name, value.name)
    assert ends
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    return model


@pytest.mark.parametrize("version", VERSIONS)
def test_rounded_as_it_says_the_float_file_gives_what_the_qdq_file_gives(
    residual: HandQuantized, version: str, tmp_path: Path
) -> None:
    model = quantized_by_the_file(*written(residual, tmp_path, version))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    theirs = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    qdq = export_onnx(residual, tmp_path / "qdq.onnx", batch=1)
    ours = onnxruntime.InferenceSession(str(qdq.path), options, providers=["CPUExecutionProvider"])
    for image in images(4).numpy():
        feeds = {"x": image[None]}
        assert np.array_equal(theirs.run(None, feeds)[0], ours.run(None, feeds)[0])


def test_the_float_file_is_plain_and_of_known_shapes(residual: HandQuantized, tmp_path: Path) -> None:
    report = export(residual, tmp_path / "model.encodings")
    assert isinstance(report, ExportReport)
    assert report.format == "qualcomm"
    assert report.companions == (tmp_path / "model.onnx",)
    assert report.bytes == report.path.stat().st_size
    assert json.loads(report.path.read_text())["version"] == "1.0.0"
    model = onnx.load(report.companions[0])
    assert dict(report.operators) == {
        name: sum(node.op_type == name for node in model.graph.node) for name in report.operators
    }
    assert not {"QuantizeLinear", "DequantizeLinear", "Shape"} & set(report.operators)
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        assert all(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    assert report.notes == ()
    everything = {name for node in model.graph.node for name in node.output}
    everything |= {tensor.name for tensor in model.graph.initializer} | {value.name for value in model.graph.input}
    assert set(affine(json.loads(report.path.read_text()))) <= everything


def test_another_batch_on_request(residual: HandQuantized, tmp_path: Path) -> None:
    report = export(residual, tmp_path / "model.encodings", batch=4)
    assert onnx.load(report.companions[0]).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4
    path = export(residual, tmp_path / "qdq.onnx", batch=4).path
    assert onnx.load(path).graph.output[0].type.tensor_type.shape.dim[0].dim_value == 4
    assert verify_onnx(path, fix_batch(residual, 4), images(8)).largest_steps <= 1.0
    fixed = quantize_by_hand(Residual(), images(4), dynamic_batch=False)
    report = export(fixed, tmp_path / "fixed.encodings")
    assert onnx.load(report.companions[0]).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4
    with pytest.raises(ConfigError, match=r"(?s)fixed batch of 4, not 2.*leave `batch` out"):
        export(fixed, tmp_path / "fixed.encodings", batch=2)
    for wrong in (0, -1, True, 1.5, "1"):
        with pytest.raises(ConfigError, match="at least 1"):
            export(residual, tmp_path / "no.encodings", batch=wrong)


def test_same_model_gives_the_same_bytes(residual: HandQuantized, tmp_path: Path) -> None:
    for version in VERSIONS:
        first = export_qualcomm(residual, tmp_path / "a.encodings", version=version)
        again = export_qualcomm(residual, tmp_path / "b.encodings", version=version)
        assert first.path.read_bytes() == again.path.read_bytes()
        assert first.companions[0].read_bytes() == again.companions[0].read_bytes()


def test_groups_are_blocks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sequences = torch.randn(8, 5, 32), torch.randn(8, 7, 32)
    grouped = symmetric(4, axis=0, group_size=16, narrow_range=False)
    qmodel = quantize_by_hand(Attention(), sequences, weights=mixed(symmetric(axis=0), {"up": grouped}))
    grid = qmodel.plan.weights["up"].grid
    assert grid is not None
    document, model = written(qmodel, tmp_path, "1.0.0")
    (entry,) = [one for one in document["param_encodings"] if one["name"] == "up.weight"]
    assert (entry["enc_type"], entry["bw"], entry["block_size"], len(entry["offset"])) == ("PER_BLOCK", 4, 16, 128)
    assert np.array_equal(np.float32(entry["scale"]), grid.scale)  # channel first, though stored as MatMul reads it
    document, model = written(qmodel, tmp_path, "2.0.0")
    (entry,) = [one for one in document["encodings"] if one["name"] == "up.weight"]
    assert (entry["output_dtype"], entry["axis"], entry["block_size"]) == ("int4", 0, 16)
    steps = np.asarray(entry["y_scale"])
    assert steps.shape == (2, 64)
    assert np.array_equal(np.float32(steps.T.ravel()), grid.scale)
    stored = next(numpy_helper.to_array(one) for one in model.graph.initializer if one.name == "up.weight")
    codes = qmodel.graph_module.get_buffer("up.weight_codes").numpy()
    assert np.array_equal(np.rint(stored / np.repeat(steps, 16, axis=0)), codes.T)
    with pytest.raises(ExportError, match=r"(?s)no form for steps of groups.*up\.weight.*version='1\.0\.0'"):
        export_qualcomm(qmodel, tmp_path / "old.encodings", version="0.6.1")
    assert not (tmp_path / "old.onnx").exists()


def test_blocks_of_transposed_convolutions_have_the_order_of_the_tensor(tmp_path: Path) -> None:
    torch.manual_seed(0)
    grouped = symmetric(8, axis=1, group_size=2)
    qmodel = quantize_by_hand(nn.ConvTranspose2d(4, 3, 2), torch.randn(2, 4, 5, 5), weights=grouped)
    (entry,) = written(qmodel, tmp_path, "1.0.0")[0]["param_encodings"]
    grid = next(iter(qmodel.plan.weights.values())).grid
    assert grid is not None
    assert np.array_equal(np.float32(entry["scale"]), grid.scale.reshape(3, 2).T.ravel())
    entry = next(one for one in written(qmodel, tmp_path, "2.0.0")[0]["encodings"] if one["name"] == "weight")
    assert np.asarray(entry["y_scale"]).shape == (2, 3, 1, 1)
    assert entry["axis"] == 0


def test_shared_kernel_has_one_tensor_and_one_encoding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    qmodel = quantize_by_hand(TiedWeights(), rows())
    document, model = written(qmodel, tmp_path, "2.0.0")
    assert [one["name"] for one in document["encodings"]].count("kernel") == 1
    assert [tensor.name for tensor in model.graph.initializer].count("kernel") == 1


def test_equal_biases_of_unequal_steps_stay_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    for layer in (model[0], model[2]):
        nn.init.zeros_(layer.bias)
    document, stored = written(quantize_by_hand(model, rows()), tmp_path, "2.0.0")
    steps = {one["name"]: one["y_scale"] for one in document["encodings"] if one["output_dtype"] == "int32"}
    assert set(steps) == {"0.bias", "2.bias"}
    assert steps["0.bias"] != steps["2.bias"]
    assert {"0.bias", "2.bias"} <= {tensor.name for tensor in stored.graph.initializer}


def test_what_has_no_encoding_is_noted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = mixed(symmetric(axis=0), {"head": keep_float})
    qmodel = quantize_by_hand(
        Residual(),
        images(),
        activations=mixed(uniform(), {"add": keep_float, "pointwise": keep_float}),
        weights=weights,
    )
    report = export(qmodel, tmp_path / "model.encodings")
    (note,) = report.notes
    assert note.startswith("the converter decides about what has no encoding:")
    assert "head.weight" in note
    assert "add" not in note  # between a sum and its ReLU, which are one operator


def test_large_biases_are_noted(tmp_path: Path) -> None:
    layer = nn.Linear(2, 1)
    nn.init.constant_(layer.bias, 1.0)
    nn.init.constant_(layer.weight, 1e-3)
    qmodel = quantize_by_hand(layer, torch.rand(4, 2))
    (note,) = export(qmodel, tmp_path / "model.encodings", version="2.0.0").notes
    assert "biases whose 32-bit codes float32 holds only nearly: bias" in note


class Twice(nn.Module):
    """Reads one value through two layers and gives it as an output too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.relu(self.first(x))
        return hidden, self.second(hidden)


def test_an_output_that_is_read_on_has_its_encoding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    qmodel = quantize_by_hand(Twice(), rows())
    document, model = written(qmodel, tmp_path, "1.0.0")
    assert [value.name for value in model.graph.output] == list(qmodel.output_names)
    assert set(qmodel.output_names) <= {one["name"] for one in document["activation_encodings"]}


def test_an_input_given_back_has_its_encoding(tmp_path: Path) -> None:
    class Back(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x.reshape(-1, 8), self.layer(x)

    torch.manual_seed(0)
    qmodel = quantize_by_hand(Back(), rows())
    document, model = written(qmodel, tmp_path, "2.0.0")
    found = affine(document)
    assert len(model.graph.output) == 2
    assert found[model.graph.output[0].name][0] == found["x"][0]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "codebook": (
        {"weights": codebook(4, axis=0), "biases": False},
        r"(?s)no form for codebooks.*stem\.weight.*networks\.py:\d+",
    ),
    "channel activation": (
        {"activations": mixed(uniform(), {"relu": uniform(axis=1)}), "biases": False},
        r"(?s)one step for a value.*relu .*networks\.py:\d+",
    ),
    "7-bit activation": ({"activations": mixed(uniform(), {"stem": uniform(7)})}, r"(?s)not of 0\.\.127.*stem"),
    "4-bit activation": ({"activations": mixed(uniform(), {"add": uniform(4)})}, r"(?s)not of 0\.\.15.*add"),
    "narrow activation": ({"activations": mixed(uniform(), {"add": symmetric()})}, r"(?s)not of -127\.\.127.*add"),
    "12-bit activation": ({"activations": uniform(12)}, r"(?s)not of 0\.\.4095.*x"),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_expressed_is_refused_by_layer(case: str, version: str, tmp_path: Path) -> None:
    options, message = REFUSED[case]
    torch.manual_seed(0)
    qmodel = quantize_by_hand(Residual(), images(), **options)
    with pytest.raises(ExportError, match=message):
        export_qualcomm(qmodel, tmp_path / "model.encodings", version=version)
    assert not list(tmp_path.iterdir())


def test_a_kernel_whose_axis_readers_cannot_know(tmp_path: Path) -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(8, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.kernel)

    torch.manual_seed(0)
    qmodel = quantize_by_hand(Lookup(), rows(), weights=symmetric(axis=1), biases=False)
    for version in ("0.6.1", "1.0.0"):
        with pytest.raises(ExportError, match=r"(?s)do not say along which axis.*kernel.*version='2\.0\.0'"):
            export_qualcomm(qmodel, tmp_path / "model.encodings", version=version)
    document, _ = written(qmodel, tmp_path, "2.0.0")
    assert next(one["axis"] for one in document["encodings"] if one["name"] == "kernel") == 1


def test_wrong_arguments(residual: HandQuantized, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"(?s)unknown version of encodings '1\.0'.*known: 0\.6\.1"):
        export(residual, tmp_path / "model.encodings", version="1.0")
    with pytest.raises(ConfigError, match=r"(?s)'verson'.*did you mean 'version'"):
        export(residual, tmp_path / "model.encodings", verson="1.0.0")
    with pytest.raises(ConfigError, match=r"(?s)would be one file.*\.encodings"):
        export(residual, tmp_path / "model.onnx", format="qualcomm")
    with pytest.raises(ExportError, match="folder does not exist"):
        export(residual, tmp_path / "nowhere" / "model.encodings")
    monkeypatch.chdir(tmp_path)
    for wrong in ("", ".", "\0.encodings"):
        with pytest.raises(DetentError):
            export_qualcomm(residual, wrong)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
@pytest.mark.parametrize("before", [True, False])
def test_both_files_or_none(
    residual: HandQuantized, before: bool, fails_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {"model.encodings": b"old encodings", "model.onnx": b"old model"} if before else {}
    for name, content in old.items():
        (tmp_path / name).write_bytes(content)
    moves, moved = 0, Path.replace

    def replace(self: Path, target: Path) -> Path:
        nonlocal moves
        moves += 1
        if moves == fails_at:
            raise OSError(28, "No space left on device")
        return moved(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    if not before and fails_at > 2:
        export(residual, tmp_path / "model.encodings")
        assert sorted(file.name for file in tmp_path.iterdir()) == ["model.encodings", "model.onnx"]
        return
    with pytest.raises(ExportError, match="No space left"):
        export(residual, tmp_path / "model.encodings")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == old


def test_an_interruption_leaves_both_files_as_they_were(
    residual: HandQuantized, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(residual, tmp_path / "model.encodings")
    old = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    moves, moved = 0, Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        nonlocal moves
        moves += 1
        if moves == 3:
            raise KeyboardInterrupt
        return moved(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(residual, tmp_path / "model.encodings", version="2.0.0", batch=2)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == old


@pytest.mark.parametrize("version", VERSIONS)
def test_entries_of_another_version_are_found(residual: HandQuantized, version: str, tmp_path: Path) -> None:
    document, _ = written(residual, tmp_path, version)
    check_entries(document)
    foreign = {"0.6.1": ("bw", 8), "1.0.0": ("y_scale", 1.0), "2.0.0": ("bw", 8)}[version]
    section = "encodings" if version == "2.0.0" else "param_encodings"
    entry = document[section]["stem.weight"][3] if version == "0.6.1" else document[section][-1]
    entry[foreign[0]] = foreign[1]
    with pytest.raises(ExportError, match=rf"(?s)other keys than those of encodings {version}: {foreign[0]}"):
        check_entries(document)
    del entry[foreign[0]]
    del entry["scale" if version != "2.0.0" else "y_scale"]
    with pytest.raises(ExportError, match="scale"):
        check_entries(document)
    with pytest.raises(ConfigError, match="unknown version"):
        check_entries({**document, "version": "3"})


def test_a_tensor_with_two_encodings_is_found(residual: HandQuantized, tmp_path: Path) -> None:
    document, _ = written(residual, tmp_path, "1.0.0")
    document["param_encodings"].append(document["activation_encodings"][0])
    with pytest.raises(ExportError, match=r"(?s)two encodings.*x"):
        check_entries(document)
