"""Op roles: limits, preserved grids, channels and MACs are checked against what the operators do."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from detent.errors import ConfigError
from detent.graph import Graph, GraphNode, OpRole, capture, register
from detent.graph.roles import OPS
from tests.models import MODELS, build


class Call(nn.Module):
    """A module that is one function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def only_node(function: Callable[[Tensor], Tensor], example: Tensor) -> tuple[Graph, GraphNode]:
    graph = capture(Call(function), example)
    (node,) = [node for node in graph.nodes() if node.kind != "input"]
    return graph, node


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float, float]]] = {
    "relu": (F.relu, (0, inf)),
    "relu6": (F.relu6, (0, 6)),
    "hardtanh": (F.hardtanh, (-1, 1)),
    "leaky_relu": (F.leaky_relu, (-inf, inf)),
    "sigmoid": (torch.sigmoid, (0, 1)),
    "hardsigmoid": (F.hardsigmoid, (0, 1)),
    "tanh": (torch.tanh, (-1, 1)),
    "silu": (F.silu, (-0.2784645, inf)),
    "gelu": (F.gelu, (-0.1699712, inf)),
    "hardswish": (F.hardswish, (-0.375, inf)),
    "mish": (F.mish, (-0.3088434, inf)),
    "softplus": (F.softplus, (0, inf)),
    "log_sigmoid": (F.logsigmoid, (-inf, 0)),
    "selu": (F.selu, (-1.7580993, inf)),
    "elu": (lambda x: F.elu(x, alpha=0.5), (-0.5, inf)),
    "celu": (lambda x: F.celu(x, alpha=2.0), (-2, inf)),
    "softmax": (lambda x: F.softmax(x, dim=1), (0, 1)),
    "log_softmax": (lambda x: F.log_softmax(x, dim=1), (-inf, 0)),
    "exp": (torch.exp, (0, inf)),
    "abs": (torch.abs, (0, inf)),
    "sin": (torch.sin, (-1, 1)),
    "erf": (torch.erf, (-1, 1)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_limits_of_activations(name: str) -> None:
    function, (lower, upper) = ACTIVATIONS[name]
    graph, node = only_node(function, torch.randn(2, 5))
    assert node.op is not None
    assert node.op.name == name
    x = torch.linspace(-40, 40, 200_002).reshape(2, -1)
    y = graph(torch.linspace(-40, 40, 200_000).reshape(-1, 5)) if node.kind == "softmax" else function(x)
    assert node.op.bounds[0] <= y.min()
    assert y.max() <= node.op.bounds[1]
    # The limits are tight: no narrower ones would do.
    assert node.op.bounds == pytest.approx((lower, upper), abs=1e-4)


def test_arguments_decide_what_a_clamp_is() -> None:
    assert only_node(lambda x: x.clamp(0, 6), torch.randn(2, 3))[1].op == only_node(F.relu6, torch.randn(2, 3))[1].op
    _, relu = only_node(lambda x: x.clamp(min=0), torch.randn(2, 3))
    assert relu.op is not None
    assert relu.op.name == "relu"
    _, clamp = only_node(lambda x: x.clamp(-2, 3), torch.randn(2, 3))
    assert clamp.op is not None
    assert (clamp.op.name, clamp.op.bounds) == ("hardtanh", (-2.0, 3.0))


PRESERVING: dict[str, Callable[[Tensor], Tensor]] = {
    "reshape": lambda x: x.reshape(x.shape[0], -1),
    "view": lambda x: x.view(x.shape[0], 4, 8, 2),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(1, 2),
    "slice": lambda x: x[:, 1:3],
    "select": lambda x: x[:, 1],
    "flatten": lambda x: x.flatten(1),
    "squeeze": lambda x: x.squeeze(1),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "expand": lambda x: x.unsqueeze(1).expand(-1, 2, -1, -1, -1),
    "contiguous": lambda x: x.contiguous(),
    "dropout": lambda x: F.dropout(x, training=False),
    "max_pool": lambda x: F.max_pool2d(x, 2),
    "max_pool_padded": lambda x: F.max_pool2d(x, 3, 2, 1),
    "adaptive_max_pool": lambda x: F.adaptive_max_pool2d(x, 2),
    "nearest": lambda x: F.interpolate(x, scale_factor=2.0),
    "nearest_exact": lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest-exact"),
    "pad": lambda x: F.pad(x, (1, 1)),
    "reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "replicate": lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"),
    "circular": lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
    "flip": lambda x: x.flip(2),
    "roll": lambda x: x.roll(1, 3),
    "repeat": lambda x: x.repeat(1, 1, 2, 1),
    "chunk": lambda x: x.chunk(2, 1)[1],
    "split": lambda x: x.split([1, 3], 1)[1],
    "unbind": lambda x: x.unbind(1)[2],
    "narrow": lambda x: x.narrow(1, 0, 2),
    "amax": lambda x: x.amax(1),
    "max": lambda x: x.max(dim=1).values,
    "unfold": lambda x: F.unfold(x, 3, padding=1),
    "clone": lambda x: x.clone(),
}


@pytest.mark.parametrize("name", PRESERVING)
def test_preserving_operators_make_no_new_values(name: str) -> None:
    graph = capture(Call(PRESERVING[name]), torch.randn(2, 4, 4, 4))
    for node in graph.nodes():
        assert node.kind == "input" or node.preserving, node
    x = torch.randint(-50, 50, (3, 4, 4, 4)).float()
    allowed = {*x.unique().tolist(), 0.0}
    assert set(graph(x).unique().tolist()) <= allowed


NEW_VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "pad_with_one": lambda x: F.pad(x, (1, 1), value=1.0),
    "avg_pool": lambda x: F.avg_pool2d(x, 2),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "mean": lambda x: x.mean((2, 3)),
    "sum": lambda x: x.sum(1),
    "add": lambda x: x + 1.0,
    "cat": lambda x: torch.cat([x, x], 1),
    "stack": lambda x: torch.stack([x, x], 1),
}


@pytest.mark.parametrize("name", NEW_VALUES)
def test_other_operators_do(name: str) -> None:
    _, node = only_node(NEW_VALUES[name], torch.randn(2, 4, 4, 4))
    assert node.op is not None
    assert not node.preserving


def test_dropout_that_drops_has_no_role() -> None:
    graph = capture(Call(lambda x: F.dropout(x, 0.5, training=True) + 1.0), torch.randn(2, 4))
    assert graph.find("dropout").op is None
    assert any("dropout" in note for note in graph.notes)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("recurrent", "fixed_batch")])
def test_macs_are_half_of_torchs_own_flops(name: str) -> None:
    model = build(name)
    inputs = MODELS[name].inputs(2)
    graph = capture(model, inputs)
    # Torch counts attention in its plain form only.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        graph(*MODELS[name].inputs(1))
    assert graph.macs == counter.get_total_flops() // 2


def test_kernels_and_their_axes() -> None:
    graph = capture(build("decoder"), MODELS["decoder"].inputs(2))
    up, last = graph.find("up"), graph.find("last")
    assert (up.kind, up.weight_name, up.weight_axes, up.groups) == ("conv_transposed", "up.weight", (1, 0), 2)
    assert (last.kind, last.weight_name, last.weight_axes, last.groups) == ("conv", "last.weight", (0, 1), 1)
    assert last.bias is not None
    matrices = capture(build("stored_matrix"), MODELS["stored_matrix"].inputs(2))
    right, left = matrices.find("matmul"), matrices.find("matmul:1")
    assert (right.weight_name, right.weight_axes, right.channel_axis) == ("right", (1, 0), 2)
    assert (left.weight_name, left.weight_axes, left.channel_axis) == ("left", (0, 1), 1)
    # Weight norm and the transposed parameter became stored kernels.
    assert matrices.find("normed").weight is not None
    assert matrices.find("linear").weight is not None
    assert not [node for node in matrices.nodes() if "weight_norm" in node.name or node.name == "t"]
    products = [node for node in matrices.nodes() if node.op is not None and node.op.name in ("einsum", "bmm")]
    assert all(node.weight is None and len(node.data) == 2 for node in products)
    with pytest.raises(ValueError, match="no stored kernel"):
        _ = products[0].weight_axes


def test_operands_that_are_stored_tensors_are_told() -> None:
    graph = capture(build("transformer"), MODELS["transformer"].inputs(2))
    add = graph.find("add")
    assert graph.name_of(add.data[0]) == "embedding"
    assert [node.target for node in add.constants] == ["positions"]


CHANNELS: dict[str, tuple[Callable[[Tensor], Tensor], int | None]] = {
    "relu": (F.relu, 1),
    "permute": (lambda x: x.permute(0, 2, 3, 1), 3),
    "transpose": (lambda x: x.transpose(1, 3), 3),
    "flatten": (lambda x: x.flatten(1), None),
    "flatten_space": (lambda x: x.flatten(2), 1),
    "mean": (lambda x: x.mean((2, 3)), 1),
    "mean_channels": (lambda x: x.mean(1), None),
    "mean_keep": (lambda x: x.mean((2, 3), keepdim=True), 1),
    "unsqueeze": (lambda x: x.unsqueeze(1), 2),
    "select": (lambda x: x[:, :, 0], 1),
    "select_channel": (lambda x: x[:, 0], None),
    "slice": (lambda x: x[:, 1:3], 1),
    "chunk": (lambda x: x.chunk(2, 1)[0], 1),
    "unbind": (lambda x: x.unbind(2)[0], 1),
    "unbind_channel": (lambda x: x.unbind(1)[0], None),
    "expand": (lambda x: x[:, :, :1, 0].expand(-1, -1, 3), 1),
    "cat": (lambda x: torch.cat([x, x], 1), 1),
    "pad": (lambda x: F.pad(x, (1, 1)), 1),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), None),
    "reshape": (lambda x: x.reshape(x.shape[0], 4, -1), 1),
    "layer_norm": (lambda x: F.layer_norm(x, (4,)), 3),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_channels_are_followed(name: str) -> None:
    function, axis = CHANNELS[name]
    graph = capture(Call(function), torch.randn(2, 4, 4, 4))
    (output,) = graph.outputs()
    assert graph.find(graph.name_of(output)).channel_axis == axis


def test_an_operator_has_one_role() -> None:
    with pytest.raises(ConfigError, match="registered twice"):
        register("conv2d", OpRole(name="conv2d", kind="conv"))


def test_every_entry_is_an_operator() -> None:
    for name in OPS:
        assert hasattr(torch.ops.aten, name.split(".")[0]), name
