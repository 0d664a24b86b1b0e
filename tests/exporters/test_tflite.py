"""TensorFlow Lite files: tflite-micro computes every code that the integer program computes."""

from __future__ import annotations

import functools
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.exporters.tflite_networks import TFLITE_NETWORKS
from torch import Tensor, nn

import detent
from detent.demo.data import calibration_images, load_test
from detent.demo.network import load_network
from detent.errors import ConfigError, ExportError, UnsupportedOpError
from detent.exporters import verify
from detent.exporters.tflite_layout import choose_layouts, from_stored, positions, to_stored
from detent.integer.operations import Move

pytest.importorskip("tflite_micro", reason="tflite-micro has wheels for Linux on x86-64 only")
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

SAMPLES = 6


@functools.cache
def data(name: str) -> Tensor:
    return torch.randn(SAMPLES, *TFLITE_NETWORKS[name].shape, generator=torch.Generator().manual_seed(3))


@functools.cache
def quantized(name: str, **options: Any) -> detent.QuantizedModel:
    torch.manual_seed(1)
    model = TFLITE_NETWORKS[name].make().eval()
    return detent.quantize(model, [data(name)], target="tflite", progress=False, **options)


@functools.cache
def demo() -> detent.QuantizedModel:
    return detent.quantize(load_network(), calibration_images()[:256], target="tflite", progress=False)


def read(path: Path) -> Any:
    return schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)


def metadata(model: Any) -> dict[str, bytes]:
    return {entry.name.decode(): bytes(model.buffers[entry.buffer].data) for entry in model.metadata}


CASES = [
    *((name, {}) for name in TFLITE_NETWORKS),
    *((name, {"activation_bits": 16}) for name in ("convolutions", "shortcut", "signals", "pools")),
    *((name, {"weights_bits": 4}) for name in ("convolutions", "arithmetic", "functions")),
    ("convolutions", {"rounding": "gptq"}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_tflite_micro_computes_every_code(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    qmodel = quantized(name, **options)
    report = detent.export(qmodel, tmp_path / "model.tflite")
    assert (report.format, report.rounding, report.bytes) == ("tflite", "tflite_micro", report.path.stat().st_size)
    found = verify(report.path, qmodel, data(name))
    assert found.equal, str(found)
    assert found.samples == SAMPLES
    # What is missing are moves that need no operator, because the layout makes them.
    moves = {one.output for one in detent.lower(qmodel).operations if isinstance(one, Move)}
    assert set(found.missing) <= moves


def test_shortcuts_are_slices_and_padding(tmp_path: Path) -> None:
    operators = detent.export(quantized("shortcut"), tmp_path / "model.tflite").operators
    assert "GATHER" not in operators
    assert (operators["STRIDED_SLICE"], operators["ADD"]) == (2, 1)


def test_the_whole_demo_network_with_its_accuracy(tmp_path: Path) -> None:
    images, labels = load_test()
    path = detent.export(demo(), tmp_path / "model.tflite").path
    found = verify(path, demo(), images[:48])
    assert found.equal, str(found)
    outputs = detent.lower(demo()).run(images).outputs[0]
    assert (outputs.argmax(1) == labels.numpy()).mean() > 0.95


def test_a_wrong_program_is_found_out(tmp_path: Path) -> None:
    path = detent.export(quantized("arithmetic"), tmp_path / "model.tflite").path
    other = detent.quantize(
        TFLITE_NETWORKS["arithmetic"].make().eval(), [data("arithmetic")], target="tflite", progress=False
    )
    found = verify(path, other, data("arithmetic"))
    assert not found.equal
    assert found.first is not None
    assert found.first.name in str(found)


@pytest.mark.parametrize("kind", ["int8", "uint8", "float32"])
def test_types_of_inputs_and_outputs(kind: str, tmp_path: Path) -> None:
    images = load_test()[0][:8]
    path = detent.export(demo(), tmp_path / "model.tflite", inputs=kind, outputs=kind).path
    model = read(path)
    graph = model.subgraphs[0]
    number = {"int8": schema.TensorType.INT8, "uint8": schema.TensorType.UINT8, "float32": schema.TensorType.FLOAT32}
    for end in (*graph.inputs, *graph.outputs):
        assert graph.tensors[end].type == number[kind]
    found = verify(path, demo(), images)
    assert found.equal, str(found)
    assert not found.missing or found.missing == ("flatten",)
    ends = json.loads(metadata(model)["detent.io"])
    (entry,) = ends["inputs"].values()
    assert entry["dtype"] == kind
    assert entry["shape"] == [1, 8, 8, 1]
    assert ("scale" in entry) == (kind != "float32")


def test_what_is_in_the_file(tmp_path: Path) -> None:
    path = detent.export(quantized("convolutions"), tmp_path / "model.tflite").path
    content, model = path.read_bytes(), read(path)
    assert (content[4:8], model.version) == (b"TFL3", 3)
    program = detent.lower(quantized("convolutions"))
    layers = {one.output: one for one in program.operations if hasattr(one, "kernel")}
    graph = model.subgraphs[0]
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        assert code.builtinCode == code.deprecatedBuiltinCode  # none of these lies beyond 127
        output = graph.tensors[operator.outputs[0]].name.decode()
        if output not in layers:
            continue
        layer = layers[output]
        kernel, bias = (graph.tensors[number] for number in operator.inputs[1:])
        depthwise = code.builtinCode == schema.BuiltinOperator.DEPTHWISE_CONV_2D
        assert kernel.quantization.quantizedDimension == (3 if depthwise else 0)
        assert kernel.type == schema.TensorType.INT8
        np.testing.assert_array_equal(kernel.quantization.zeroPoint, 0)
        np.testing.assert_array_equal(kernel.quantization.scale, layer.scales)
        codes = np.frombuffer(bytes(model.buffers[kernel.buffer].data), np.int8).reshape(kernel.shape)
        order = (3, 0, 1, 2) if depthwise else (0, 3, 1, 2)
        np.testing.assert_array_equal(codes.transpose(order), layer.kernel)
        assert bias.type == schema.TensorType.INT32
        products = (np.float32(layer.source.scale) * layer.scales).astype(np.float32)
        np.testing.assert_array_equal(bias.quantization.scale, products)
    for buffer in model.buffers:
        if buffer.data is not None and len(buffer.data) >= 16:
            assert content.index(bytes(buffer.data)) % 16 == 0


def test_no_transposition_is_left_between_layers(tmp_path: Path) -> None:
    for name in ("convolutions", "arithmetic", "functions"):
        report = detent.export(quantized(name), tmp_path / "model.tflite")
        assert "TRANSPOSE" not in report.operators
    assert "TRANSPOSE" not in detent.export(demo(), tmp_path / "demo.tflite").operators


def test_weights_of_4_bits_are_packed_and_biases_of_16_bit_activations_have_64(tmp_path: Path) -> None:
    narrow = read(detent.export(quantized("convolutions", weights_bits=4), tmp_path / "narrow.tflite").path)
    kernels = [one for one in narrow.subgraphs[0].tensors if one.type == schema.TensorType.INT4]
    assert len(kernels) == 5
    for kernel in kernels:
        assert len(narrow.buffers[kernel.buffer].data) == (int(np.prod(kernel.shape)) + 1) // 2
    wide = read(detent.export(quantized("convolutions", activation_bits=16), tmp_path / "wide.tflite").path)
    types = [one.type for one in wide.subgraphs[0].tensors if one.name.endswith(b"/bias")]
    assert types == [schema.TensorType.INT64] * 5


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    first = detent.export(demo(), tmp_path / "first.tflite").path.read_bytes()
    assert detent.export(demo(), tmp_path / "second.tflite").path.read_bytes() == first


def test_several_samples_at_a_time(tmp_path: Path) -> None:
    path = detent.export(demo(), tmp_path / "model.tflite", batch=4).path
    assert verify(path, demo(), load_test()[0][:8]).equal
    with pytest.raises(ExportError, match="4 samples at a time"):
        verify(path, demo(), load_test()[0][:6])


def test_parameters_as_json_and_as_a_dictionary(tmp_path: Path) -> None:
    parameters = {
        "classes": ["zero", "größer"],
        "rate": 16000,
        "offset": -(2**40),
        "gain": 0.5,
        "mean": np.array([0.25, 1.5], np.float32),
        "sizes": [1, 2],
        "on": True,
        "off": False,
        "name": "digits",
        "none": [],
    }
    model = read(detent.export(demo(), tmp_path / "model.tflite", parameters=parameters).path)
    found = metadata(model)
    assert {"detent.io", "detent.parameters", "SL_PARAMSv1"} == set(found)
    wanted = {**parameters, "mean": [0.25, 1.5]}
    assert json.loads(found["detent.parameters"]) == wanted
    assert read_dictionary(found["SL_PARAMSv1"]) == wanted


def read_dictionary(content: bytes) -> dict[str, Any]:
    """What MLTK's schema holds, read with the bare offsets of the flatbuffers encoding."""

    def number(kind: str, place: int) -> Any:
        return struct.unpack_from(f"<{kind}", content, place)[0]

    def slot(table: int, index: int) -> int:
        entries = table - number("i", table)
        offset = number("H", entries + 4 + 2 * index) if 4 + 2 * index < number("H", entries) else 0
        return table + offset if offset else 0

    def follow(place: int) -> int:
        return place + number("I", place)

    def text(place: int) -> str:
        begin = follow(place)
        return content[begin + 4 : begin + 4 + number("I", begin)].decode()

    def listed(place: int) -> list[int]:
        begin = follow(place)
        return [begin + 4 + 4 * index for index in range(number("I", begin))]

    scalars = {1: "?", 6: "i", 8: "q", 10: "f"}
    root = follow(0)
    assert number("B", slot(root, 0)) == 1
    found: dict[str, Any] = {}
    for place in listed(slot(root, 1)):
        entry = follow(place)
        kind, value = number("B", slot(entry, 1)), follow(slot(entry, 2))
        held = slot(value, 0)
        if kind in scalars:
            found[text(slot(entry, 0))] = number(scalars[kind], held)
        elif kind == 12:
            found[text(slot(entry, 0))] = text(held)
        elif kind == 13:
            found[text(slot(entry, 0))] = [text(one) for one in listed(held)]
        else:
            found[text(slot(entry, 0))] = [number({14: "i", 15: "f"}[kind], one) for one in listed(held)]
    return found


@pytest.mark.parametrize(
    "parameters",
    [
        {"x": None},
        {"x": {}},
        {"x": [1, "a"]},
        {"x": float("nan")},
        {"x": 1e39},
        {"x": 2**63},
        {"x": [True]},
        {"": 1},
        {3: 1},
        {"x": b"raw"},
    ],
)
def test_parameters_of_other_kinds_are_refused(parameters: dict[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        detent.export(demo(), tmp_path / "model.tflite", parameters=parameters)
    assert not list(tmp_path.iterdir())


class _Refused(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 3, padding=1), function

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.function(self.conv(x))
        return found


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (F.gelu, "no integer kernel for gelu"),
        (lambda x: x.softmax(1), "no integer form"),
        (lambda x: F.max_pool2d(x, 2, dilation=2), "no pools with dilation"),
        (lambda x: F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False), "divides by how many"),
        (lambda x: F.leaky_relu(x, 0.0), "slopes above 0"),
        (lambda x: F.leaky_relu(x, -0.5), "slopes above 0"),
        (lambda x: F.relu(x).clamp(max=0.25), "no activation|no integer kernel"),
    ],
)
def test_operators_without_a_form_are_refused_before_anything_is_written(
    function: Any, message: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    qmodel = detent.quantize(_Refused(function).eval(), [torch.randn(4, 3, 8, 8)], target="tflite", progress=False)
    with pytest.raises(UnsupportedOpError, match=message) as caught:
        detent.export(qmodel, tmp_path / "model.tflite")
    assert caught.value.where
    assert not list(tmp_path.iterdir())


def test_grids_of_another_target_are_refused(tmp_path: Path) -> None:
    qmodel = detent.quantize(load_network(), calibration_images()[:64], target="imx500", progress=False)
    with pytest.raises(UnsupportedOpError):
        detent.export(qmodel, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


def test_functions_on_grids_of_another_target_are_no_program() -> None:
    torch.manual_seed(0)
    model = _Refused(torch.tanh).eval()
    qmodel = detent.quantize(model, [torch.randn(4, 3, 8, 8)], target="onnxruntime", progress=False)
    with pytest.raises(UnsupportedOpError, match="whatever its grid"):
        detent.lower(qmodel, runtime="tflite_micro")


def test_traps_of_the_runtimes_are_refused(tmp_path: Path) -> None:
    """What LiteRT computes wrong: 4-bit weights with 16-bit activations, steps for groups; and 4-bit linear layers."""
    both = quantized("convolutions", activation_bits=16, weights_bits=4)
    with pytest.raises(UnsupportedOpError, match="4-bit weights with 16-bit activations"):
        detent.export(both, tmp_path / "model.tflite")
    target = json.loads(detent.load_target("tflite").model_dump_json())
    target["ops"]["linear"]["weights"]["bits"] = [4]
    (tmp_path / "narrow.json").write_text(json.dumps(target))
    torch.manual_seed(0)
    linear = detent.quantize(
        nn.Linear(8, 4).eval(), [torch.randn(16, 8)], target=tmp_path / "narrow.json", progress=False
    )
    with pytest.raises(UnsupportedOpError, match="one scale for the tensor only"):
        detent.export(linear, tmp_path / "model.tflite")
    target["ops"]["linear"]["weights"].update(bits=[8], group_sizes="any")
    (tmp_path / "groups.json").write_text(json.dumps(target))
    grouped = detent.quantize(
        nn.Linear(8, 4).eval(),
        [torch.randn(16, 8)],
        target=tmp_path / "groups.json",
        weights_group_size=4,
        progress=False,
    )
    with pytest.raises(UnsupportedOpError, match="steps for groups of inputs"):
        detent.export(grouped, tmp_path / "model.tflite")
    assert not (tmp_path / "model.tflite").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "`batch` must be 1"),
        ({"inputs": "int4"}, "unknown input type"),
        ({"inputs": {"image": "int8"}}, "image"),
        ({"outputs": "int16"}, "its codes are int8"),
        ({"runtime": "tflite"}, "unknown runtime"),
        ({"opset": 18}, "unknown export option"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, ExportError), match=message):
        detent.export(demo(), tmp_path / "model.tflite", **options)
    assert not list(tmp_path.iterdir())


def test_paths_and_files_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExportError, match="folder does not exist"):
        detent.export(demo(), tmp_path / "nowhere" / "model.tflite")
    images = load_test()[0][:2]
    (tmp_path / "other.tflite").write_bytes(b"not a file of this kind")
    with pytest.raises(ExportError, match="no TensorFlow Lite file"):
        verify(tmp_path / "other.tflite", demo(), images)
    with pytest.raises(ExportError, match="cannot read"):
        verify(tmp_path / "none.tflite", demo(), images)
    with pytest.raises(ConfigError, match="no runtime at hand"):
        verify(tmp_path / "model.bin", demo(), images)
    with pytest.raises(ConfigError, match="unknown runtime"):
        verify(tmp_path / "other.tflite", demo(), images, runtime="tpu")
    monkeypatch.setitem(__import__("sys").modules, "flatbuffers", None)
    with pytest.raises(ExportError, match="detent\\[tflite\\]"):
        detent.export(demo(), tmp_path / "model.tflite")


def test_layouts_and_places() -> None:
    rng = np.random.default_rng(0)
    for shape, layout in (((2, 3, 4, 5), (0, 2, 3, 1)), ((2, 3, 4), (0, -1, 2, 1)), ((2, 3), (0, 1))):
        values = rng.normal(size=shape)
        stored = to_stored(values, layout)
        np.testing.assert_array_equal(stored, values.reshape(-1)[positions(shape, layout)])
        np.testing.assert_array_equal(from_stored(stored, layout, shape), values)
    program = detent.lower(demo())
    shapes = {name: codes.shape for name, codes in program.run(load_test()[0][:2], all_tensors=True).codes.items()}
    layouts = choose_layouts(program.operations, shapes)
    assert {layouts[name] for name, shape in shapes.items() if len(shape) == 4} == {(0, 2, 3, 1)}
