"""Who reads a stored tensor: by its path, by its memory, and after an edit."""

from __future__ import annotations

import torch
from torch import nn

from detent.graph import Graph, capture
from detent.graph.graph import GraphNode
from detent.graph.tensors import add_tensor
from detent.transforms.channel_paths import read_elsewhere
from detent.transforms.edits import StoredReaders, kernel_is_shared


class Tied(nn.Module):
    """Two layers with one kernel, two whose kernels are views of one tensor, one with its own, two with one bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.own = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.own.bias = self.second.bias
        both = torch.randn(8, 4)
        self.register_buffer("top", both[:4])
        self.register_buffer("top_again", both[:4])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.own(self.second(self.first(x)))
        return nn.functional.linear(nn.functional.linear(x, self.top), self.top_again)


def _captured(model: nn.Module | None = None) -> tuple[Graph, list[GraphNode]]:
    graph = capture((model or Tied()).eval(), torch.randn(2, 4))
    return graph, [item for item in graph.nodes() if item.kind == "linear"]


def test_kernels_are_shared_by_path_and_by_memory() -> None:
    graph, layers = _captured()
    readers = StoredReaders(graph)
    shared = [True, True, False, True, True]
    assert [readers.share_kernel(layer) for layer in layers] == shared
    assert [kernel_is_shared(graph, layer) for layer in layers] == shared


def test_biases_are_read_elsewhere_by_path() -> None:
    graph, layers = _captured()
    readers = StoredReaders(graph)
    for layer in layers:
        reads = (layer.weight, layer.bias)
        assert readers.read_elsewhere(layer, reads) == read_elsewhere(layer, reads)
    assert not readers.read_elsewhere(layers[0], (layers[0].bias, None))
    assert readers.read_elsewhere(layers[1], (layers[1].bias,))
    assert readers.read_elsewhere(layers[2], (layers[2].bias,))


def test_one_question_sees_the_edits_before_it() -> None:
    graph, layers = _captured()
    top = layers[3].weight
    assert top is not None
    add_tensor(graph.module, str(top.target), graph.tensor(top).clone())
    assert [kernel_is_shared(graph, layer) for layer in layers] == [True, True, False, False, False]


def test_empty_kernels_have_no_memory_to_share() -> None:
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("first", torch.zeros(0, 4))
            self.register_buffer("second", torch.zeros(3, 0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(nn.functional.linear(x, self.first), self.second)

    graph, layers = _captured(Empty())
    assert [kernel_is_shared(graph, layer) for layer in layers] == [False, False]
