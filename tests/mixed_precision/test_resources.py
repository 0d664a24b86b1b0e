"""Memory, bit operations and times of small networks, computed by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detent.errors import ConfigError
from detent.graph import Graph, capture
from detent.graph.policy import place_as_asked
from detent.mixed_precision.model import ResourceModel, resource_model, resources
from detent.mixed_precision.slots import activation_owners
from detent.mixed_precision.weights import KernelMemory
from detent.planning import plan
from detent.records.grid import Grid
from detent.records.plan import QuantPlan
from detent.statistics import calibrate
from detent.targets import load_target


class Small(nn.Module):
    """conv + ReLU, depthwise, linear, with a bias each but the depthwise one; a constant that is added."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3, padding=1)
        self.deep = nn.Conv2d(10, 10, 3, groups=10, bias=False)
        self.head = nn.Linear(10, 5)
        self.shift = nn.Parameter(torch.linspace(-1, 1, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.deep(F.relu(self.conv(x))).mean((2, 3)) + self.shift)


KERNELS = {"conv": 10 * 3 * 9, "deep": 10 * 9, "head": 50}
FIXED = 4 * (10 + 5 + 10)
MACS = {"conv": 270 * 64, "deep": 90 * 36, "head": 50}


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return capture(Small().eval(), torch.randn(3, 3, 8, 8))


def model_of(graph: Graph, target: str = "default", **options: Any) -> ResourceModel:
    chip = load_target(target)
    return resource_model(graph, place_as_asked(graph, chip), chip, **options)


def planned(graph: Graph, target: str = "default", **options: Any) -> QuantPlan:
    stats = calibrate(graph, [torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))])
    return plan(graph, stats, target=target, **options)


# ---- weights -------------------------------------------------------------------------------------------------------


def test_weights_by_hand(graph: Graph) -> None:
    model = model_of(graph)
    assert {layer: kernel.elements for layer, kernel in model.kernels.items()} == KERNELS
    assert model.fixed_weight_bytes == FIXED
    assert model.weights(8) == FIXED + 410
    assert model.weights(None) == FIXED + 4 * 410
    assert model.weights({"conv": 4, "deep": 8, "head": 3}) == FIXED + 135 + 90 + 150 / 8
    assert model.weights({"conv": 16, "deep": None, "head": 32}) == FIXED + 540 + 360 + 200


def test_output_channels_are_padded_where_the_target_says_so(graph: Graph) -> None:
    model = model_of(graph, "imx500")
    assert model.weights(8) == FIXED + 32 * 27 + 32 * 9 + 32 * 10
    assert model.weights({"conv": 4, "deep": 2, "head": 8}) == FIXED + 64 * 27 / 2 + 128 * 9 / 4 + 320
    # In float nothing is padded, nor at widths the target says nothing of.
    assert model.weights(32) == FIXED + 4 * 410


def test_steps_count_on_request(graph: Graph) -> None:
    model = model_of(graph, count_steps=True)
    assert model.weights(8) == FIXED + 410 + 4 * (10 + 10 + 5)
    assert model.weights(32) == FIXED + 4 * 410


def test_codebooks_bring_their_tables(graph: Graph) -> None:
    model = model_of(graph)
    assert model.weights(4, {"conv": 1, "deep": 10}) == FIXED + 205 + 16 + 160
    with pytest.raises(ConfigError, match="did you mean 'conv'"):
        model.weights(4, {"con": 1})


def test_transposed_and_grouped_kernels_know_their_channels() -> None:
    graph = capture(nn.ConvTranspose2d(4, 6, 2, groups=2).eval(), torch.randn(2, 4, 3, 3))
    (kernel,) = model_of(graph, "imx500").kernels.values()
    assert (kernel.elements, kernel.channels) == (4 * 3 * 4, 6)
    assert kernel.padded(8) == 48 // 6 * 32
    assert kernel.padded(5) == 48


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.inner = nn.Linear(4, 4, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.inner(self.inner(self.embedding(tokens)))
        return F.linear(x, self.embedding.weight)


def test_shared_kernels_are_stored_once_and_once_more_in_float_for_other_readers() -> None:
    model = model_of(capture(Tied().eval(), torch.randint(0, 7, (3, 5))))
    assert sorted(kernel.elements for kernel in model.kernels.values()) == [16, 28]
    assert model.fixed_weight_bytes == 4 * 28
    assert model.weights(8) == 4 * 28 + 16 + 28
    # Tokens are int64 and keep their type: 5 x 8 bytes beside 5 x 4 codes.
    assert model.network.buffers[0].float_bits == 64
    assert model.cuts[0].fixed_bits == 5 * 64


@pytest.mark.parametrize("bits", [2, 3, 4, 7, 8, 16])
def test_a_kernel_by_itself(bits: int) -> None:
    kernel = KernelMemory(layer="a", parameter="a.weight", elements=30, channels=5, multiples={4: 8})
    assert kernel.bytes(bits) == (48 if bits == 4 else 30) * bits / 8
    assert kernel.bytes(bits, codebooks=5) == kernel.bytes(bits) + 5 * 2**bits


# ---- activations and slots -----------------------------------------------------------------------------------------


def test_activations_by_hand(graph: Graph) -> None:
    model = model_of(graph)
    assert model.slots == ("shift", "x", "relu", "deep", "mean", "add", "head")
    assert model.activations(8) == max(192 + 640, 640 + 360)
    assert model.activations({**dict.fromkeys(model.slots, 8), "relu": 4}) == 320 + 360
    assert model.activations({**dict.fromkeys(model.slots, 8), "x": None}) == 4 * 192 + 640
    assert model.total(8, 8) == model.weights(8) + model.activations(8)


def test_everything_knows_whose_grid_it_is_on(graph: Graph) -> None:
    owners = model_of(graph).owners
    assert owners["conv"] is None  # inside conv + relu
    assert owners["relu"] == "relu"
    assert all(owner is None or owner in model_of(graph).slots for owner in owners.values())


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 4, 1)
        self.b = nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(torch.cat([self.a(x), self.b(x)], 1), 2).flatten(1)


def test_values_that_share_a_grid_are_one_slot() -> None:
    graph = capture(Concatenated().eval(), torch.randn(2, 2, 4, 4))
    chip = load_target("tflite")
    owners = activation_owners(graph, place_as_asked(graph, chip))
    assert owners == {"x": "x", "a": "cat", "b": "cat", "cat": "cat", "max_pool": "cat", "flatten": "cat"}
    model = resource_model(graph, place_as_asked(graph, chip), chip)
    assert model.slots == ("x", "cat")
    assert [dict(cut.elements) for cut in model.cuts] == [{"x": 32, "cat": 128}, {"cat": 256}]
    assert model.activations({"x": 8, "cat": 16}) == 512


# ---- bit operations and times --------------------------------------------------------------------------------------


def test_bit_operations_by_hand(graph: Graph) -> None:
    model = model_of(graph)
    assert {product.layer: product.macs for product in model.products} == MACS
    assert model.macs == sum(MACS.values())
    assert model.bit_operations(8, 8) == 64 * sum(MACS.values())
    values = {**dict.fromkeys(model.slots, 8), "x": 4, "add": None}
    found = model.bit_operations({"conv": 2, "deep": 16, "head": 8}, values)
    assert found == MACS["conv"] * 2 * 4 + MACS["deep"] * 16 * 8 + MACS["head"] * 8 * 32


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x, torch.tanh(x))


def test_a_product_of_two_values_takes_the_widths_of_both() -> None:
    model = model_of(capture(Square().eval(), torch.randn(2, 4, 4)))
    assert model.bit_operations({}, {"x": 4, "tanh": 6, "matmul": 8}) == 64 * 4 * 6


def test_times_are_summed_and_names_win_over_kinds(graph: Graph) -> None:
    table = {
        ("conv", 8, 8): 3.0,
        ("conv", 4, 8): 2.0,
        ("deep", 8, 8): 0.5,
        ("linear", 8, 8): 0.25,
        ("add", None, 8): 0.125,
    }
    model = model_of(graph, latency=table)
    assert model.latency(8, 8) == 3.0 + 0.5 + 0.25 + 0.125
    assert model.latency({"conv": 4, "deep": 8, "head": 8}, 8) == 2.0 + 0.5 + 0.25 + 0.125
    with pytest.raises(ConfigError, match="no entry") as caught:
        model.latency({"conv": 2, "deep": 8, "head": 8}, 8)
    assert caught.value.where == "conv"
    assert model_of(graph).latency(8, 8) is None


def test_layers_a_table_leaves_out_are_noted(graph: Graph) -> None:
    model = model_of(graph, latency={("head", 8, 8): 1})
    assert model.latency(8, 8) == 1
    assert any("conv, deep" in note for note in model.notes)
    assert model_of(graph, latency={}).latency(8, 8) == 0


@pytest.mark.parametrize(
    "table",
    [
        [("conv", 8, 8)],
        {"conv": 1.0},
        {("conv", 8): 1.0},
        {(1, 8, 8): 1.0},
        {("conf", 8, 8): 1.0},
        {("conv", 0, 8): 1.0},
        {("conv", 8.0, 8): 1.0},
        {("conv", True, 8): 1.0},
        {("conv", 8, None): 1.0},
        {("conv", 8, 17): 1.0},
        {("conv", 8, 8): -1.0},
        {("conv", 8, 8): math.nan},
        {("conv", 8, 8): math.inf},
        {("conv", 8, 8): "1 ms"},
        {("conv", 8, 8): True},
        {("conv", 8, 8): None},
    ],
)
def test_a_wrong_table_of_times_is_refused(graph: Graph, table: Any) -> None:
    with pytest.raises(ConfigError):
        model_of(graph, latency=table)


# ---- one configuration ---------------------------------------------------------------------------------------------


def test_figures_of_one_width(graph: Graph) -> None:
    found = resources(graph, weights_bits=4, activation_bits=8)
    assert found.weights == FIXED + 205
    assert found.activations == 1000
    assert found.total == found.weights + found.activations
    assert found.bit_operations == 32 * sum(MACS.values())
    assert found.macs == sum(MACS.values())
    assert found.largest_cut == (("relu", 640.0), ("deep", 360.0))
    assert found.latency is None
    assert resources(graph) == resources(graph, "default", weights_bits=8, activation_bits=8)
    assert resources(graph, order="best").activations <= resources(graph).activations
    assert resources(graph, "imx500").target == "imx500"


def test_they_print_as_a_table_and_as_json(graph: Graph) -> None:
    found = resources(graph, latency={("head", 8, 8): 0.5})
    text = str(found)
    assert "weights         510 B" in text
    assert "activations     1 kB" in text
    assert "relu 640 B, deep 360 B" in text
    assert "latency         0.5" in text
    assert "note: the latency table has nothing for conv, deep" in text
    data = json.loads(found.to_json())
    assert (data["format"], data["version"], data["weights"]) == ("detent.resources", 1, 510.0)
    assert data["largest_cut"] == [["relu", 640.0], ["deep", 360.0]]


def test_figures_of_a_plan(graph: Graph) -> None:
    decided = planned(graph, weights_bits=4)
    assert resources(graph, plan=decided) == resources(graph, weights_bits=4)
    edited = decided.with_weight("conv", None).with_activation("relu", None)
    found = resources(graph, plan=edited)
    assert found.weights == FIXED + 4 * 270 + 70
    assert found.activations == 4 * 640 + 360
    assert found.bit_operations == MACS["conv"] * 32 * 8 + MACS["deep"] * 4 * 32 + MACS["head"] * 4 * 8


def test_a_plan_with_codebooks(graph: Graph) -> None:
    decided = planned(graph, weights_bits=8)
    table = np.arange(-8, 8, dtype=np.float32) * 16
    one = Grid(kind="lut", bits=4, signed=True, threshold=np.ones(10, np.float32), axis=0, table=table)
    many = replace(one, table=np.tile(table, (10, 1)))
    found = resources(graph, plan=decided.with_weight("conv", one).with_weight("deep", many))
    assert found.weights == FIXED + 135 + 16 + 45 + 160 + 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "imx5000"}, "did you mean 'imx500'"),
        ({"target": "imx500", "weights_bits": 3}, "no 3-bit weights"),
        ({"target": "imx500", "activation_bits": 4}, "no 4-bit activations"),
        ({"weights_bits": 1}, "no 1-bit weights"),
        ({"weights_bits": "8"}, "no 8-bit|weights"),
        ({"order": "worst"}, "known: best, captured"),
        ({"plan": "plan.json"}, "QuantPlan"),
        ({"latency": 3}, "latency table"),
    ],
)
def test_bad_arguments(graph: Graph, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resources(graph, **options)


def test_a_plan_of_something_else_is_refused(graph: Graph) -> None:
    decided = planned(graph)
    with pytest.raises(ConfigError, match="beside a plan"):
        resources(graph, plan=decided, weights_bits=8)
    with pytest.raises(ConfigError, match="target 'default'"):
        resources(graph, "imx500", plan=decided)
    with pytest.raises(ConfigError, match="another model"):
        resources(graph, plan=replace(decided, graph="0" * 64))
    with pytest.raises(ConfigError, match="lacks this layer"):
        resources(graph, plan=replace(decided, weights={}))
    with pytest.raises(ConfigError, match="lacks this activation"):
        resources(graph, plan=replace(decided, activations={}))
    with pytest.raises(ConfigError, match="Graph"):
        resources(nn.Linear(2, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bits",
    [
        0,
        17,
        -8,
        True,
        8.0,
        "8",
        [8],
        {},
        {"conv": 8, "deep": 8},
        {"conv": 8, "deep": 8, "head": 8, "tail": 8},
        {"conv": 8, "deep": 8, "hed": 8},
        {"conv": 8, "deep": 0, "head": 8},
        {"conv": 8, "deep": "4", "head": 8},
        {"conv": 8, "deep": True, "head": 8},
        {"conv": 8, "deep": 4.0, "head": 8},
    ],
)
def test_widths_that_are_none(graph: Graph, bits: Any) -> None:
    model = model_of(graph)
    for figure in (model.weights, lambda found: model.bit_operations(found, 8), lambda found: model.figures(found, 8)):
        with pytest.raises(ConfigError):
            figure(bits)
    with pytest.raises(ConfigError):
        model.activations(bits)


def test_the_model_says_what_it_is(graph: Graph) -> None:
    assert repr(model_of(graph)).startswith("ResourceModel(target 'default', 3 kernels, 7 activation slots")
