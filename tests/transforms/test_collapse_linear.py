"""Layers in a row become one exactly where that keeps the function and does not add parameters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from detent.graph import Graph, capture
from detent.statistics import calibrate
from detent.transforms import collapse_linear

IMAGE = (2, 3, 9, 9)


def _run(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> Graph:
    """Collapse, and check that neither the function nor the model has changed."""
    torch.manual_seed(0)
    model = build().eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    graph = capture(model, torch.randn(shape))
    collapsed = collapse_linear(graph)
    x = torch.randn(5, *shape[1:])
    with torch.no_grad():
        wanted, got = model(x), collapsed(x)
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert torch.equal(graph(x), wanted)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    return collapsed


def _layers(graph: Graph) -> list[str]:
    return [node.name for node in graph.nodes() if node.weight is not None]


class FirstThenPointwise(nn.Sequential):
    def __init__(self, **options: object) -> None:
        super().__init__(nn.Conv2d(3, 8, 3, **options), nn.Conv2d(8, 4, 1))  # type: ignore[arg-type]


COLLAPSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (FirstThenPointwise, IMAGE),
    "strided": (lambda: FirstThenPointwise(stride=2), IMAGE),
    "dilated": (lambda: FirstThenPointwise(dilation=2), IMAGE),
    "padded": (lambda: FirstThenPointwise(padding=1), IMAGE),
    "same": (lambda: FirstThenPointwise(padding="same", bias=False), IMAGE),
    "circular": (lambda: FirstThenPointwise(padding=1, padding_mode="circular"), IMAGE),
    "even_kernel": (lambda: nn.Sequential(nn.Conv2d(3, 8, 4, padding="same"), nn.Conv2d(8, 2, 1)), IMAGE),
    "strided_twice": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3, stride=(2, 1), padding=1), nn.Conv2d(8, 4, 1, stride=2)),
        (2, 3, 12, 11),
    ),
    "no_biases": (lambda: nn.Sequential(nn.Conv1d(3, 8, 3, bias=False), nn.Conv1d(8, 4, 1, bias=False)), (2, 3, 9)),
    "three_axes": (lambda: nn.Sequential(nn.Conv3d(2, 4, 2), nn.Conv3d(4, 2, 1)), (2, 2, 4, 4, 4)),
    "pointwise_first": (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3, stride=2)), IMAGE),
    "pointwise_first_padded": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 4, 3, padding="same")),
        IMAGE,
    ),
    "linear": (lambda: nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 4, bias=False)), (2, 3)),
    "sequence": (lambda: nn.Sequential(nn.Linear(3, 8, bias=False), nn.Linear(8, 4)), (2, 7, 3)),
    "dropout_is_not_in_between": (lambda: nn.Sequential(nn.Linear(3, 8), nn.Identity(), nn.Linear(8, 4)), (2, 3)),
}


@pytest.mark.parametrize("name", COLLAPSED)
def test_two_layers_become_one(name: str) -> None:
    collapsed = _run(*COLLAPSED[name])
    assert len(_layers(collapsed)) == 1
    assert len(collapsed.module.state_dict()) <= 2
    assert "collapsed 1 layer: " in collapsed.notes[-1]


def test_exact_weights() -> None:
    model = nn.Sequential(nn.Conv1d(1, 2, 2), nn.Conv1d(2, 1, 1))
    model[0].weight.data = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])
    model[0].bias.data = torch.tensor([1.0, 2.0])
    model[1].weight.data = torch.tensor([[[10.0], [100.0]]])
    model[1].bias.data = torch.tensor([5.0])
    collapsed = collapse_linear(capture(model, torch.randn(2, 1, 4)))
    assert _layers(collapsed) == ["1"]
    assert sorted(collapsed.module.state_dict()) == ["1.bias", "1.weight"]
    assert collapsed.module.state_dict()["1.weight"].tolist() == [[[310.0, 420.0]]]
    assert collapsed.module.state_dict()["1.bias"].tolist() == [215.0]


def test_chains_collapse_as_far_as_they_can() -> None:
    collapsed = _run(
        lambda: nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(4)], nn.ReLU(), nn.Conv2d(3, 3, 1)), IMAGE
    )
    assert _layers(collapsed) == ["3", "5"]
    assert len(calibrate(collapsed, torch.randn(4, *IMAGE[1:]), progress=False)) == 4


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y) + y


class Returned(TwoReaders):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return torch.cat([self.b(y), y])


class Reused(TwoReaders):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.b(x))


class Tied(TwoReaders):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(3, 3, 1)
        self.c.weight = self.b.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)).relu())


class Computed(TwoReaders):
    def forward(self, x: Tensor) -> Tensor:
        return torch.conv2d(self.a(x), self.b.weight * x.mean())


class Overflow(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 3), nn.Linear(3, 3))
        self[0].weight.data.fill_(1e30)
        self[1].weight.data.fill_(1e30)


KEPT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str | None]] = {
    "grows": (lambda: nn.Sequential(nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)), (2, 8, 5, 5), "would have 72 parameters"),
    "padded_second": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1, padding=1)),
        IMAGE,
        "pads its input",
    ),
    "bias_then_padding": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)),
        IMAGE,
        "which the bias of 0 does not reach",
    ),
    "same_then_stride": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.Conv2d(4, 4, 1, stride=2)),
        IMAGE,
        "strides over",
    ),
    "pointwise_strides_first": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1, stride=2), nn.Conv2d(8, 4, 3)),
        IMAGE,
        "strides before",
    ),
    "two_readers": (TwoReaders, IMAGE, "also used elsewhere"),
    "returned": (Returned, (2, 3, 3, 3), "also used elsewhere"),
    "reused": (Reused, IMAGE, "kernel of b is also used"),
    "tied": (Tied, IMAGE, "kernel of b is also used"),
    "computed_kernel": (Computed, IMAGE, None),
    "activation_between": (lambda: nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4)), (2, 3), None),
    "two_kernels": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), IMAGE, None),
    "groups": (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1)), (2, 4, 5, 5), None),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.Conv2d(4, 4, 1)), IMAGE, None),
}


@pytest.mark.parametrize("name", KEPT)
def test_layers_stay_where_one_would_not_be_the_same(name: str) -> None:
    build, shape, reason = KEPT[name]
    torch.manual_seed(0)
    model = build().eval()
    graph = capture(model, torch.randn(shape))
    collapsed = collapse_linear(graph)
    assert collapsed.fingerprint() == graph.fingerprint()
    new = collapsed.notes[len(graph.notes) :]
    assert new == [] if reason is None else any(reason in note for note in new)


def test_what_would_overflow_is_not_collapsed() -> None:
    graph = capture(Overflow(), torch.randn(2, 3))
    collapsed = collapse_linear(graph)
    assert collapsed.fingerprint() == graph.fingerprint()
    assert any("not be finite" in note for note in collapsed.notes)
