"""Kernels on other grids than the target's first: codebooks, groups, uniform; from the option to the exported file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

import detent
from detent import edit
from detent.errors import ConfigError
from detent.exporters import verify_onnx


class Net(nn.Module):
    """Every kind of kernel: convolution, depthwise, pointwise, transposed, linear; `[N, 3, 8, 8]`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16, padding=1)
        self.pointwise = nn.Conv2d(16, 32, 1)
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.stem(x))))
        return self.head(torch.relu(self.up(torch.relu(self.pointwise(x)))).mean((2, 3)))


LAYERS = ["stem", "depthwise", "pointwise", "up", "head"]
OPTIONS: list[dict[str, Any]] = [
    {"weights_grid": "lut"},
    {"weights_grid": "lut", "weights_bits": 2, "tie_free": False},
    {"weights_grid": "lut_power_of_two", "weights_bits": 5, "bias_correction": "analytic"},
    {"weights_grid": "lut", "codebook_scope": "channel", "bias_correction": "analytic"},
    {"weights_grid": "uniform", "weights_bits": 4},
    {"weights_grid": "power_of_two", "weights_group_size": 8, "weights_bits": 4},
]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def graph(images: Tensor) -> detent.Graph:
    torch.manual_seed(1)
    return detent.capture(Net().eval(), images)


@pytest.fixture(scope="module")
def stats(graph: detent.Graph, images: Tensor) -> detent.Statistics:
    return detent.calibrate(graph, images, progress=False)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_plan_survives_its_file_and_runs_alike_in_onnxruntime(
    graph: detent.Graph, stats: detent.Statistics, images: Tensor, options: dict[str, Any], tmp_path: Path
) -> None:
    plan = detent.plan(graph, stats, **options)
    assert detent.QuantPlan.from_json(plan.to_json()) == plan
    qmodel = detent.apply(graph, plan)
    expected = graph(images)
    assert (qmodel(images) - expected).norm() < (0.5 if plan.weights["head"].grid.bits <= 2 else 0.2) * expected.norm()
    path = detent.export(qmodel, tmp_path / "net.onnx").path
    for optimize in (False, True):
        agreement = verify_onnx(path, qmodel, images, optimize=optimize)
        assert agreement.off_fraction == 0 if options.get("tie_free", True) else agreement.largest_steps <= 1


def test_codes_of_a_codebook_stay_small_and_feed_integer_kernels(
    graph: detent.Graph, stats: detent.Statistics, tmp_path: Path
) -> None:
    plan = detent.plan(graph, stats, weights_grid="lut")
    assert {plan.weights[layer].grid.kind for layer in LAYERS} == {"lut"}
    assert {plan.weights[layer].grid.bits for layer in LAYERS} == {4}
    file = onnx.load(detent.export(detent.apply(graph, plan), tmp_path / "net.onnx"))
    kinds = {tensor.name: tensor.data_type for tensor in file.graph.initializer}
    for layer in LAYERS:
        assert kinds[f"{layer}.weight_codes"] == TensorProto.UINT4
        assert kinds[f"{layer}.weight_table"] == TensorProto.INT8
    makers = {output: node for node in file.graph.node for output in node.output}
    conv = next(node for node in file.graph.node if node.op_type == "Conv")
    assert makers[conv.input[1]].op_type == "DequantizeLinear"


def test_a_codebook_loses_less_than_the_grid_of_as_many_bits(graph: detent.Graph, stats: detent.Statistics) -> None:
    affine = detent.plan(graph, stats, weights_bits=4, tie_free=False)
    lut = detent.plan(graph, stats, weights_bits=4, weights_grid="lut", tie_free=False)
    for layer in LAYERS:
        assert lut.weights[layer].error < affine.weights[layer].error


def test_a_codebook_for_each_channel_loses_less(graph: detent.Graph, stats: detent.Statistics, tmp_path: Path) -> None:
    options: dict[str, Any] = {"weights_grid": "lut", "weights_bits": 3, "tie_free": False}
    shared = detent.plan(graph, stats, **options)
    own = detent.plan(graph, stats, codebook_scope="channel", **options)
    for layer in LAYERS:
        channels = len(own.weights[layer].grid.threshold)
        assert own.weights[layer].grid.table.shape == (channels, 8)
        assert own.weights[layer].error < shared.weights[layer].error
    (tmp_path / "one_table.json").write_text(
        json.dumps({"extends": "default", "ops": {"linear": {"weights": {"codebooks_per_channel": False}}}})
    )
    with pytest.raises(ConfigError, match="one codebook for all channels") as caught:
        detent.apply(graph, replace(own, target=str(tmp_path / "one_table.json")))
    assert caught.value.where == "head"


def test_groups_lose_less_and_say_where_they_do_not_fit(graph: detent.Graph, stats: detent.Statistics) -> None:
    plain = detent.plan(graph, stats, weights_bits=4)
    grouped = detent.plan(graph, stats, weights_bits=4, weights_group_size=8)
    for layer in ("pointwise", "up", "head"):
        assert grouped.weights[layer].grid.group_size == 8
        assert grouped.weights[layer].bias_bits is None
        assert grouped.weights[layer].error < plain.weights[layer].error
    for layer, inputs in (("stem", 3), ("depthwise", 1)):
        assert grouped.weights[layer].grid.group_size is None
        note = f"{layer}: one step a channel, since 8 does not divide its {inputs} input channels"
        assert note in grouped.notes
        assert note not in plain.notes


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("imx500", {"weights_grid": "lut"}, "symmetric or power_of_two grids, not with lut"),
        ("one_table", {"weights_grid": "lut", "codebook_scope": "channel"}, "one codebook for all channels"),
        ("onnxruntime", {"weights_grid": "uniform"}, "not with uniform"),
        ("onnxruntime", {"weights_group_size": 16}, "no groups for this kernel"),
        ("default", {"weights_grid": "lut", "weights_bits": 8}, "no 8-bit codebooks(.|\n)*2, 3, 4, 5, 6, 7"),
    ],
)
def test_what_a_target_does_not_offer_names_the_layer(
    graph: detent.Graph, stats: detent.Statistics, target: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    weights = {"codebooks_per_channel": False}
    (tmp_path / "one_table.json").write_text(json.dumps({"extends": "default", "ops": {"conv": {"weights": weights}}}))
    target = str(tmp_path / "one_table.json") if target == "one_table" else target
    with pytest.raises(ConfigError, match=message) as caught:
        detent.plan(graph, stats, target=target, **options)
    assert caught.value.where == "stem"


def test_group_sizes_a_target_does_not_offer(images: Tensor) -> None:
    graph = detent.capture(nn.Sequential(nn.Linear(64, 8)).eval(), torch.randn(32, 64))
    stats = detent.calibrate(graph, torch.randn(64, 64), progress=False)
    plan = detent.plan(graph, stats, target="onnxruntime", weights_group_size=32, weights_bits=4)
    assert plan.weights["0"].grid.group_size == 32
    with pytest.raises(ConfigError, match="offers groups of 16, 32, 64, 128 for this kernel") as caught:
        detent.plan(graph, stats, target="onnxruntime", weights_group_size=8)
    assert caught.value.where == "0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table": [-100, 0, 0.5, 100]}, "whole numbers in -128..127"),
        ({"table": [-129, 0, 5, 100]}, "whole numbers in -128..127"),
        ({"table": [-100, 0, 5, 128]}, "whole numbers in -128..127"),
        ({"group_size": 8}, "none for each group"),
        ({"bits": 7, "table": list(range(-64, 64))}, "offers 2, 3, 4 bits"),
    ],
)
def test_what_an_edited_codebook_cannot_be(
    images: Tensor, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    weights = {"kind": "symmetric", "bits": [8], "codebook_bits": [4, 3, 2], "group_sizes": "any"}
    (tmp_path / "chip.json").write_text(json.dumps({"extends": "imx500", "ops": {"linear": {"weights": weights}}}))
    graph = detent.capture(nn.Sequential(nn.Linear(16, 8)).eval(), torch.randn(32, 16))
    stats = detent.calibrate(graph, torch.randn(64, 16), progress=False)
    plan = detent.plan(graph, stats, target=tmp_path / "chip.json", weights_grid="lut", weights_bits=2)
    assert np.isfinite(detent.apply(graph, plan)(torch.randn(4, 16)).detach().numpy()).all()
    data = json.loads(plan.to_json())
    data["weights"]["0"]["grid"].update(changes)
    with pytest.raises(ConfigError, match=message) as caught:
        detent.apply(graph, detent.QuantPlan.from_json(json.dumps(data)))
    assert caught.value.where == "0"


def test_a_codebook_trains(graph: detent.Graph, stats: detent.Statistics, images: Tensor) -> None:
    plan = detent.plan(graph, stats, weights_grid="lut", tie_free=False)
    trained, stored = detent.apply(graph, plan, trainable=True), detent.apply(graph, plan)
    trained(images).sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.parameters())
    with torch.inference_mode():
        # Biases of the trained one stay in float.
        torch.testing.assert_close(trained(images), stored(images), rtol=0, atol=0.02)


def test_rules_ask_for_codebooks_of_single_kernels(graph: detent.Graph, stats: detent.Statistics) -> None:
    head = edit.name("head")
    plan = detent.plan(graph, stats, rules=[edit.rule(head, edit.weights(kind="lut", bits=3))])
    kinds = {layer: entry.grid.kind for layer, entry in plan.weights.items()}
    assert kinds == {**dict.fromkeys(LAYERS, "symmetric"), "head": "lut"}
    searched = detent.plan(graph, stats, weights_grid="lut", weights_bits=3)
    assert plan.weights["head"] == searched.weights["head"]
    back = edit.rule(head, edit.weights(kind="symmetric", bits=8))
    mixed = detent.plan(graph, stats, weights_grid="lut", codebook_scope="channel", rules=[back])
    assert mixed.weights["head"].grid.kind == "symmetric"
    assert mixed.weights["stem"].grid.table.ndim == 2


def test_groups_for_all_contradict_a_codebook_for_one(graph: detent.Graph, stats: detent.Statistics) -> None:
    lut = edit.rule(edit.name("head"), edit.weights(kind="lut", bits=4))
    with pytest.raises(ConfigError, match="none for each group") as caught:
        detent.plan(graph, stats, rules=[lut], weights_group_size=8)
    assert caught.value.where == "head"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights_grid": "lutt"}, "did you mean 'lut'"),
        ({"weights_grid": "lut", "weights_metric": "mae"}, "searched by squared error"),
        ({"weights_grid": "lut_power_of_two", "weights_group_size": 8}, "none for each group"),
        ({"codebook_scope": "channel"}, "for codebooks"),
        ({"weights_group_size": 0}, "greater than or equal to 1"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        detent.QuantizationConfig(**options)
