"""Files for Sony's IMX500 converter: what is in them, what they compute, and what is refused."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
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
from tests.exporters.mct_operators import evaluate, threshold_shape
from tests.exporters.networks import Residual
from torch import nn
from torch.nn import functional

import detent
from detent.errors import DetentError, ExportError, UnsupportedOpError
from detent.exporters import export, verify_onnx
from detent.records.grid import Grid

CUSTOM = "mct_quantizers"


def images(count: int = 8) -> torch.Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class Two(nn.Module):
    """A convolution with ReLU, a pointwise one, a sum of both, linear head; one of the pointwise outputs is special."""

    def __init__(self, then: Callable[[Any, Any], Any] = lambda y, z: y + z) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)
        self.then = then

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.first(x))
        z = self.then(y, self.second(y))
        return self.head(z.mean((2, 3)))


class Reused(nn.Module):
    """One layer called twice, so that a name has a colon; it computes the output, too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.layer(x))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "grouped": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU6(),
        nn.Conv2d(8, 12, 3, stride=2, groups=4),
        nn.Hardswish(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 7, bias=False),
    ),
    "transposed": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.SiLU(), nn.ConvTranspose2d(8, 6, 2, 2), nn.LeakyReLU(), nn.Conv2d(6, 4, 1)
    ),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(432, 16), nn.ReLU(), nn.Linear(16, 4)),
    "reused": Reused,
}


def hand(
    model: nn.Module | None = None,
    activations: dict[str, Any] | None = None,
    weights: Any = None,
    **options: Any,
) -> HandQuantized:
    torch.manual_seed(0)
    rules = mixed(power_of_two(), {"first": keep_float, **(activations or {})})
    kernels = weights or symmetric(axis=0, narrow_range=False)
    return quantize_by_hand(
        (model or Two()).eval().requires_grad_(False),
        images(),
        activations=rules,
        weights=kernels,
        biases=False,
        **options,
    )


@pytest.fixture(scope="module")
def qmodels() -> dict[str, Any]:
    found = {}
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        found[name] = detent.quantize(make().eval(), [images()], target="imx500", progress=False)
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_contract_of_the_converter(name: str, qmodels: dict[str, Any], tmp_path: Path) -> None:
    report = export(qmodels[name], tmp_path / "model.onnx", format="imx500")
    model = onnx.load(report.path)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 18, CUSTOM: 1}
    assert model.producer_name == "pytorch"
    assert int(model.producer_version.split(".")[0]) >= 2
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["detent.version"]
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    described = {value.name for value in (*model.graph.value_info, *model.graph.output)}
    for node in model.graph.node:
        assert not any(":" in value for value in (*node.input, *node.output))
        if node.domain == CUSTOM:
            assert set(node.output) <= described
    assert {value.type.tensor_type.shape.dim[0].dim_param for value in model.graph.input} == {"batch"}
    readers = {name: [n for n in model.graph.node if name in n.input] for name in (v.name for v in model.graph.input)}
    assert all(len(found) == 1 and found[0].op_type == "ActivationPOTQuantizer" for found in readers.values())
    assert model.graph.output[0].name in {node.output[0] for node in model.graph.node if node.domain == CUSTOM}
    assert {str(numpy_helper.to_array(tensor).dtype) for tensor in model.graph.initializer} <= {"float32", "int64"}
    assert report.format == "imx500"
    assert report.bytes == report.path.stat().st_size
    assert report.operators["ActivationPOTQuantizer"] == len(qmodels[name].plan.activations)
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_file_computes_what_the_model_computes(name: str, qmodels: dict[str, Any], tmp_path: Path) -> None:
    qmodel = qmodels[name]
    path = export(qmodel, tmp_path / "model.onnx", format="imx500").path
    assert verify_onnx(export(qmodel, tmp_path / "plain.onnx").path, qmodel, images()).largest_steps <= 1
    with torch.inference_mode():
        want = qmodel(images()).numpy()
    (got,) = evaluate(path, images().numpy())
    step = json.loads(metadata_of(path)["detent.io"])["outputs"][output_of(path)]["scale"]
    assert np.ptp(want) > 10 * step
    assert np.abs(got - want).max() <= step
    assert (got != want).mean() <= 0.02


def metadata_of(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def output_of(path: Path) -> str:
    return str(onnx.load(path).graph.output[0].name)


@pytest.mark.parametrize("name", NETWORKS)
def test_grids_of_the_file_are_those_of_the_plan(name: str, qmodels: dict[str, Any], tmp_path: Path) -> None:
    qmodel = qmodels[name]
    activations, weights = decoded(export(qmodel, tmp_path / "model.onnx", format="imx500").path)
    wanted = [qmodel.plan.activation_grid(value) for value in qmodel.plan.activations]
    assert sorted(activations) == sorted((grid.bits, grid.signed, float(grid.threshold[0])) for grid in wanted)
    for layer, entry in qmodel.plan.weights.items():
        bits, thresholds, values, axis = weights[f"{layer}.weight"]
        assert (bits, axis) == (entry.grid.bits, entry.grid.axis)
        assert np.array_equal(thresholds, entry.grid.threshold)
        assert np.array_equal(entry.grid.round(values), values)


def decoded(path: Path) -> tuple[list[tuple[int, bool, float]], dict[str, tuple[int, np.ndarray, np.ndarray, int]]]:
    """What the quantizers of a file say: those of activations, and by name those of weights."""
    graph = onnx.load(path).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    activations, weights = [], {}
    for node in graph.node:
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type == "ActivationPOTQuantizer":
            activations.append((given["num_bits"], bool(given["signed"]), given["threshold"]))
        elif node.domain == CUSTOM:
            values, thresholds = stored[node.input[0]], stored[node.input[-1]]
            assert thresholds.ndim == 1
            steps = thresholds.reshape(threshold_shape(values.ndim, given["channel_axis"], given["per_channel"]))
            assert np.all(np.abs(values) <= steps)
            weights[node.input[0]] = given["num_bits"], thresholds, values, given["channel_axis"]
    return activations, weights


@pytest.mark.parametrize(
    ("bits", "axis", "kind"), [(8, 0, "Symmetric"), (4, None, "Symmetric"), (2, 0, "POT"), (8, None, "POT")]
)
def test_widths_and_kinds_of_weights(bits: int, axis: int | None, kind: str, tmp_path: Path) -> None:
    rule = power_of_two(bits, signed=True, axis=axis) if kind == "POT" else symmetric(bits, axis=axis)
    qmodel = hand(weights=rule)
    report = export(qmodel, tmp_path / "model.onnx", format="imx500")
    assert report.operators[f"Weights{kind}Quantizer"] == 3
    (got,) = evaluate(report.path, images().numpy())
    assert np.abs(got - qmodel(images()).numpy()).max() <= 2 * 2.0**-7


def whole_codebook(bits: int, axis: int | None, zero: bool = True) -> Callable[[torch.Tensor], Grid]:
    def rule(value: torch.Tensor) -> Grid:
        table = np.rint(127 * np.linspace(-1, 1, 1 << bits))
        if zero:
            table[np.abs(table).argmin()] = 0
        threshold = codebook(bits, axis=axis)(value).threshold
        return Grid(kind="lut", bits=bits, signed=True, threshold=threshold, axis=axis, table=np.sort(table))

    return rule


@pytest.mark.parametrize("axis", [0, None])
def test_codebooks(axis: int | None, tmp_path: Path) -> None:
    qmodel = hand(weights=whole_codebook(4, axis))
    report = export(qmodel, tmp_path / "model.onnx", format="imx500")
    assert report.operators["WeightsLUTSymmetricQuantizer"] == 3
    (got,) = evaluate(report.path, images().numpy())
    want = qmodel(images()).numpy()
    assert np.ptp(want) > 0
    assert np.abs(got - want).max() <= 2.0**-6


def test_sixteen_bits_into_a_sum_and_at_the_end(tmp_path: Path) -> None:
    wide = power_of_two(16, signed=True)
    path = export(hand(activations={"second": wide, "head": wide}), tmp_path / "model.onnx", format="imx500").path
    activations, _ = decoded(path)
    assert sorted(bits for bits, _, _ in activations) == [8, 8, 8, 8, 16, 16]


def test_integer_biases_become_real_ones_without_a_quantizer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rules = mixed(power_of_two(), {"first": keep_float})
    qmodel = quantize_by_hand(Two(), images(), activations=rules, weights=symmetric(axis=0, narrow_range=False))
    path = export(qmodel, tmp_path / "model.onnx", format="imx500").path
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    assert stored["head.bias"].dtype == np.float32
    (conv,) = (node for node in onnx.load(path).graph.node if node.op_type == "Gemm")
    assert conv.input[2] == "head.bias"


def test_names_with_colons_are_written_without_and_told(qmodels: dict[str, Any], tmp_path: Path) -> None:
    report = export(qmodels["reused"], tmp_path / "model.onnx", format="imx500")
    assert list(qmodels["reused"].output_names) == ["layer:1"]
    assert output_of(report.path) == "layer_1"
    assert any("layer_1" in note for note in report.notes)


def test_notes_name_operators_that_nobody_tried(tmp_path: Path) -> None:
    tame = export(hand(), tmp_path / "model.onnx", format="imx500")
    assert not any("not tried" in note for note in tame.notes)
    wild = hand(Two(lambda y, z: torch.sin(y) + z))
    assert any("not tried" in note and "Sin" in note for note in export(wild, tame.path, format="imx500").notes)


def test_same_model_same_bytes(qmodels: dict[str, Any], tmp_path: Path) -> None:
    first = export(qmodels["residual"], tmp_path / "first.onnx", format="imx500").path.read_bytes()
    assert export(qmodels["residual"], tmp_path / "second.onnx", format="imx500").path.read_bytes() == first


REFUSED: dict[str, tuple[Callable[[], HandQuantized], str, str]] = {
    "threshold of 1.3": (
        lambda: hand(activations={"second": symmetric(narrow_range=False)}),
        "no power of two",
        "second",
    ),
    "zero point": (lambda: hand(activations={"add": uniform(signed=True)}), "no zero points", "add"),
    "step per channel": (lambda: hand(activations={"add": power_of_two(axis=1)}), "one step for", "add"),
    "narrow range": (lambda: hand(activations={"add": symmetric()}), "all codes of 8 bits", "add"),
    "4-bit activation": (lambda: hand(activations={"add": power_of_two(4)}), "8 bits, or of signed 16", "add"),
    "unsigned 16 bits": (
        lambda: hand(activations={"relu": power_of_two(16, signed=False)}),
        "has unsigned 16",
        "relu",
    ),
    "16 bits into a kernel": (
        lambda: hand(activations={"relu": power_of_two(16, signed=True)}),
        "16 bits only where a sum",
        "relu",
    ),
    "16 bits into a mean": (
        lambda: hand(activations={"add": power_of_two(16, signed=True)}),
        "16 bits only where a sum",
        "add",
    ),
    "3-bit weights": (lambda: hand(weights=symmetric(3, axis=0)), "8, 4 and 2 bits, and these have 3", "first.weight"),
    "16-bit weights": (lambda: hand(weights=symmetric(16, axis=0)), "these have 16", "first.weight"),
    "float weights": (
        lambda: hand(weights=mixed(symmetric(axis=0), {"second": keep_float})),
        "kernel is in float",
        "second",
    ),
    "uniform weights": (lambda: hand(weights=uniform(axis=0)), "uniform grid", "first.weight"),
    "weights in groups": (
        lambda: hand(weights=mixed(symmetric(axis=0), {"second": symmetric(axis=0, group_size=4)})),
        "one per group",
        "second.weight",
    ),
    "input channels": (
        lambda: hand(weights=mixed(symmetric(axis=0), {"second": symmetric(axis=1)})),
        "along axis 1",
        "second",
    ),
    "codebook beyond 127": (lambda: hand(weights=codebook(4)), r"-128\.\.127", "first.weight"),
    "codebook without zero": (lambda: hand(weights=whole_codebook(4, 0, zero=False)), "with a zero", "first.weight"),
    "input without quantizer": (lambda: hand(activations={"x": keep_float}), "behind an input", "x"),
    "output without quantizer": (lambda: hand(activations={"head": keep_float}), "has none", "head"),
    "sum without quantizer": (lambda: hand(activations={"add": keep_float}), "has none", "add"),
    "convolution without quantizer": (lambda: hand(activations={"second": keep_float}), "has none", "second"),
    "quantizer inside convolution and ReLU": (
        lambda: hand(activations={"first": power_of_two()}),
        "between this operation and the relu",
        "first",
    ),
    "two samples": (
        lambda: quantize_by_hand(
            Two(),
            images(2),
            activations=mixed(power_of_two(), {"first": keep_float}),
            weights=symmetric(axis=0),
            biases=False,
            dynamic_batch=False,
        ),
        "has 2",
        "x",
    ),
    "PReLU": (lambda: hand(Two(lambda y, z: functional.prelu(y, torch.ones(8)) + z)), "does not take prelu", "prelu"),
    "GELU": (lambda: hand(Two(lambda y, z: functional.gelu(y) + z)), "does not take gelu", "gelu"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name_before_anything_is_written(case: str, tmp_path: Path) -> None:
    make, reason, name = REFUSED[case]
    with pytest.raises(DetentError, match=reason) as caught:
        export(make(), tmp_path / "model.onnx", format="imx500")
    assert isinstance(caught.value, ExportError | UnsupportedOpError)
    assert str(caught.value.where).split(" ")[0] == name
    assert caught.value.remedy
    assert not list(tmp_path.iterdir())


def test_layers_the_converter_has_no_form_of(tmp_path: Path) -> None:
    refused: list[tuple[nn.Module, tuple[int, ...], str]] = [
        (nn.Conv1d(3, 4, 3), (8, 3, 12), "3 axes, only on images"),
        (nn.Linear(16, 4), (8, 5, 16), "3 axes, only of 2 or 4"),
        (nn.ConvTranspose2d(8, 8, 2, groups=4), (8, 8, 6, 6), "with groups 4"),
        (nn.ConvTranspose2d(8, 8, 2, padding=1), (8, 8, 6, 6), "with padding"),
        (nn.ConvTranspose2d(8, 8, 2, dilation=2), (8, 8, 6, 6), "with dilation"),
    ]
    for layer, shape, reason in refused:
        qmodel = detent.quantize(layer.eval(), [torch.randn(shape)], target="imx500", progress=False)
        with pytest.raises(UnsupportedOpError, match=reason):
            export(qmodel, tmp_path / "model.onnx", format="imx500")
    assert not list(tmp_path.iterdir())


def test_shifted_activations_are_refused(tmp_path: Path) -> None:
    model = Two(lambda y, z: functional.silu(z)).eval()
    options: dict[str, Any] = {"shift_negative": True, "shift_negative_ratio": 1.0, "progress": False}
    qmodel = detent.quantize(model, [images()], target="imx500", **options)
    assert "silu.shifted" in qmodel.plan.activations
    with pytest.raises(ExportError, match=r"(?s)does not see a shift.*silu\.shifted.*shift_negative=False"):
        export(qmodel, tmp_path / "model.onnx", format="imx500")
    assert not list(tmp_path.iterdir())


def test_integer_ends_are_refused(tmp_path: Path) -> None:
    qmodel = hand()
    qmodel.input_dtype = "uint8"
    with pytest.raises(ExportError, match="float32 inputs"):
        export(qmodel, tmp_path / "model.onnx", format="imx500")


def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "model.onnx"
    path.write_bytes(b"the old file")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExportError, match="No space left"):
        export(hand(), path, format="imx500")
    assert path.read_bytes() == b"the old file"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ExportError, match="folder does not exist"):
        export(hand(), tmp_path / "nowhere" / "model.onnx", format="imx500")
