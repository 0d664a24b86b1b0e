"""Blocks of networks: every value in one of them, and together they are the network."""

from __future__ import annotations

import functools
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import detent
from detent.rounding.blocks import Block, Granularity, find_blocks
from detent.rounding.kept_values import KeptValues, Shelf
from detent.rounding.learning_network import BlockRun, whole_network
from tests.models import MODELS, build


class Basic(nn.Module):
    """A residual block, with a convolution in the shortcut where the size changes."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.down = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.down(x))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.layer1 = nn.Sequential(Basic(4, 4), Basic(4, 4))
        self.layer2 = nn.Sequential(Basic(4, 6), Basic(6, 6))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer2(self.layer1(F.relu(self.stem(x)))).mean((2, 3)))


class Inverted(nn.Module):
    """Expansion, depthwise convolution, projection."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, 12, 1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.project = nn.Conv2d(12, out, 1)
        self.shortcut = channels == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(F.relu6(self.depthwise(F.relu6(self.expand(x)))))
        return x + y if self.shortcut else y


class MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.features = nn.Sequential(Inverted(4, 6), Inverted(6, 6))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(F.relu(self.stem(x))).mean((2, 3)))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(F.gelu(self.embed(x))))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)])
        self.middle = nn.Sequential(*(nn.Conv2d(6, 6, 3, padding=1) for _ in range(6)))
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.down[0](x))
        y = self.middle(F.relu(self.down[1](first)))
        return self.last(torch.cat([self.up(y), first], dim=1))


class SeveralEnds(nn.Module):
    """Two inputs, the second one read late; outputs on the way, of whole numbers, and an input that is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(9, 3)

    def forward(self, x: Tensor, late: Tensor) -> tuple[Tensor, ...]:
        early = F.relu(self.first(x))
        y = self.third(torch.cat([F.relu(self.second(early)), late], dim=1))
        return early, y, y.argmax(1), x


class NoFloatOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x))).argmax(1)


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5), nn.GELU(), nn.Dropout(), nn.Linear(5, 4))


IMAGE = (3, 10, 10)
NETWORKS: dict[str, tuple[Any, tuple[tuple[int, ...], ...]]] = {
    "residual": (ResNet, (IMAGE,)),
    "inverted": (MobileNet, (IMAGE,)),
    "transformer": (Encoder, ((7, 3),)),
    "unet": (UNet, (IMAGE,)),
    "several_ends": (SeveralEnds, ((6,), (4,))),
    "no_float_output": (NoFloatOutput, ((6,),)),
    "plain": (plain, ((6,),)),
    "one_layer": (lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()), (IMAGE,)),
}
FROM_MODELS = [name for name, case in MODELS.items() if case.dynamic and name != "reused"]


@functools.cache
def captured(name: str) -> tuple[detent.Graph, list[Tensor]]:
    """A network, and twelve samples."""
    torch.manual_seed(3)
    if name in NETWORKS:
        make, shapes = NETWORKS[name]
        inputs: tuple[Any, ...] = tuple(torch.randn(12, *shape) for shape in shapes)
        graph = detent.capture(make().eval(), inputs if len(inputs) > 1 else inputs[0])
        return graph, list(inputs)
    inputs = MODELS[name].inputs(12)
    graph = detent.capture(build(name), inputs if len(inputs) > 1 else inputs[0])
    return graph, list(torch.utils._pytree.tree_leaves(inputs))


def layers_of(graph: detent.Graph) -> list[str]:
    return [node.name for node in graph.nodes() if node.kind in ("conv", "conv_transposed", "linear") and node.weight]


def names(blocks: list[Block]) -> list[tuple[str, ...]]:
    return [block.layers for block in blocks]


def blocks_of(name: str, granularity: Granularity = "blocks") -> list[tuple[str, ...]]:
    graph, _ = captured(name)
    return names(find_blocks(graph, layers_of(graph), granularity))


def test_residual_blocks() -> None:
    assert blocks_of("residual") == [
        ("stem",),
        ("layer1.0.conv1", "layer1.0.conv2"),
        ("layer1.1.conv1", "layer1.1.conv2"),
        ("layer2.0.conv1", "layer2.0.conv2", "layer2.0.down"),
        ("layer2.1.conv1", "layer2.1.conv2"),
        ("head",),
    ]


def test_inverted_residuals_with_and_without_shortcut() -> None:
    inverted = [tuple(f"features.{place}.{part}" for part in ("expand", "depthwise", "project")) for place in range(2)]
    assert blocks_of("inverted") == [("stem",), *inverted, ("head",)]


def test_a_transformer_layer_is_not_cut_inside_its_halves() -> None:
    found = blocks_of("transformer")
    assert found[0] == ("embed",)
    assert found[-1] == ("head",)
    (feed,) = (block for block in found if "layer.linear1" in block)
    assert "layer.linear2" in feed
    attention = [name for name in layers_of(captured("transformer")[0]) if "attn" in name]
    assert len(attention) == 2
    assert any(set(attention) <= set(block) for block in found)


def test_plain_layers_are_blocks_of_their_own() -> None:
    assert blocks_of("plain") == [("0",), ("2",), ("5",)]
    assert blocks_of("one_layer") == [("0",)]


def test_a_long_skip_is_cut_where_several_values_are_alive() -> None:
    graph, _ = captured("unet")
    blocks = find_blocks(graph, layers_of(graph))
    assert max(len(block.layers) for block in blocks) <= 6
    assert len(blocks) > 4
    skip = blocks[0].outputs[0]
    readers = [place for place, block in enumerate(blocks) if skip in block.inputs]
    assert readers[-1] > 3
    assert len(blocks[readers[-1]].inputs) == 2


def test_single_layers() -> None:
    graph, _ = captured("residual")
    assert names(find_blocks(graph, layers_of(graph), "layers")) == [(name,) for name in layers_of(graph)]


def test_all_the_network_is_held_to_float_where_blocks_end() -> None:
    graph, _ = captured("residual")
    layers = layers_of(graph)
    (whole,) = find_blocks(graph, layers, "network")
    assert whole.layers == tuple(layers)
    assert whole.compared == tuple(name for block in find_blocks(graph, layers) for name in block.compared)


def test_without_layers_there_are_no_blocks() -> None:
    assert find_blocks(captured("plain")[0], []) == []


def test_layers_that_are_not_asked_for_end_no_block() -> None:
    graph, _ = captured("plain")
    assert names(find_blocks(graph, ["0", "5"])) == [("0",), ("5",)]


def test_where_only_whole_numbers_go_on_the_last_number_before_is_compared() -> None:
    graph, _ = captured("no_float_output")
    assert [block.compared for block in find_blocks(graph, layers_of(graph))][-1] == ("second",)


@pytest.mark.parametrize("granularity", get_args(Granularity))
@pytest.mark.parametrize("name", [*NETWORKS, *FROM_MODELS])
def test_every_value_is_in_one_block_and_was_computed_before_it_is_read(name: str, granularity: Granularity) -> None:
    graph, _ = captured(name)
    layers = layers_of(graph)
    blocks = find_blocks(graph, layers, granularity)
    assert [layer for block in blocks for layer in block.layers] == layers
    assert all(block.layers for block in blocks)
    values = [value for block in blocks for value in block.values]
    assert values == [node.name for node in graph.nodes()]
    before: set[str] = set()
    for block in blocks:
        assert before.issuperset(block.inputs)
        assert set(block.outputs) <= set(block.values)
        assert set(block.compared) <= set(block.values)
        assert block.compared
        assert all(graph.find(value).node.op != "placeholder" for value in block.compared)
        before.update(block.outputs)


@pytest.mark.parametrize("granularity", get_args(Granularity))
@pytest.mark.parametrize("name", [*NETWORKS, *FROM_MODELS])
def test_block_after_block_gives_what_the_network_gives(name: str, granularity: Granularity, tmp_path: Any) -> None:
    graph, inputs = captured(name)
    wanted = whole_network(graph)(inputs, [])
    shelf = Shelf(100, tmp_path)
    every = np.arange(12)
    kept: dict[str, KeptValues] = {}
    found: dict[str, Tensor] = {}
    for block in find_blocks(graph, layers_of(graph), granularity):
        nodes = {value: graph.find(value).node for value in block.outputs}
        run = BlockRun(graph.module, [graph.find(value).node for value in block.inputs], nodes, graph.name_of)
        values = run(inputs, [kept[value].take(every) for value in block.inputs])
        for value, tensor in values.items():
            layout = graph.find(value).batch
            assert layout is not None
            kept[value] = KeptValues(shelf, 12, layout.axis)
            kept[value].put(0, tensor)
        found.update(values)
    for value, tensor in wanted.items():
        # Half precision between blocks.
        assert float((found[value] - tensor).abs().max()) <= 5e-3 * float(tensor.abs().max())
