"""Gains and shifts go into the layer that reads them exactly where padding lets them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from detent.graph import capture
from detent.transforms import fold_forward

IMAGE = (2, 4, 7, 7)


class Scaled(nn.Module):
    """Arithmetic by constants, then a layer."""

    def __init__(self, layer: nn.Module, *shape: int, shift: bool = True) -> None:
        super().__init__()
        self.layer, self.shift = layer, shift
        self.register_buffer("gain", torch.rand(shape or (4, 1, 1)) + 0.5)
        self.register_buffer("offset", torch.randn(shape or (4, 1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = x / self.gain
        if self.shift:
            x = self.offset - x
        return self.layer(x)


def _norm(channels: int = 4) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 2.0)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


FOLDED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "norm_then_pointwise": (lambda: nn.Sequential(_norm(), nn.Conv2d(4, 6, 1)), IMAGE),
    "norm_then_kernel": (lambda: nn.Sequential(_norm(), nn.Conv2d(4, 6, 3, stride=2, bias=False)), IMAGE),
    "norm_then_groups": (lambda: nn.Sequential(_norm(), nn.Conv2d(4, 6, 3, groups=2)), IMAGE),
    "norm_then_depthwise": (lambda: nn.Sequential(_norm(), nn.Conv2d(4, 8, 3, groups=4)), IMAGE),
    "norm_then_linear": (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)), (3, 4)),
    "depthwise": (lambda: nn.Sequential(nn.Conv2d(4, 4, 1, groups=4), nn.Conv2d(4, 3, 1)), IMAGE),
    "depthwise_gain_then_padding": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1, groups=4, bias=False), nn.Conv2d(4, 3, 3, padding="same")),
        IMAGE,
    ),
    "arithmetic": (lambda: Scaled(nn.Conv2d(4, 6, 3)), IMAGE),
    "gain_then_padding": (lambda: Scaled(nn.Conv2d(4, 6, 3, padding=1), shift=False), IMAGE),
    "last_axis": (lambda: Scaled(nn.Linear(4, 6), 4), (2, 5, 4)),
    "number": (lambda: Scaled(nn.Conv2d(4, 6, 3, bias=False), 1), IMAGE),
}


@pytest.mark.parametrize("name", FOLDED)
def test_the_gain_and_shift_become_part_of_the_layer(name: str) -> None:
    torch.manual_seed(0)
    build, shape = FOLDED[name]
    model = build().eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    graph = capture(model, torch.randn(shape))
    folded = fold_forward(graph)
    assert len(folded.nodes()) == 2
    x = torch.randn(5, *shape[1:])
    with torch.no_grad():
        wanted, got = model(x), folded(x)
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert torch.equal(graph(x), wanted)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_exact_weights() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2, eps=0.0), nn.Linear(2, 1)).eval()
    model[0].running_mean.copy_(torch.tensor([1.0, 2.0]))
    model[0].running_var.copy_(torch.tensor([4.0, 0.25]))
    model[0].bias.data = torch.tensor([3.0, 0.0])
    model[1].weight.data = torch.tensor([[2.0, 8.0]])
    model[1].bias.data = torch.tensor([1.0])
    folded = fold_forward(capture(model, torch.randn(3, 2)))
    assert folded.module.state_dict()["1.weight"].tolist() == [[1.0, 16.0]]
    assert folded.module.state_dict()["1.bias"].tolist() == [1 + 2 * (3 - 0.5) + 8 * -4]


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = _norm(), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.conv(y) + y


class Reused(TwoReaders):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(self.norm(x)).relu())


KEPT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str | None]] = {
    "padding": (lambda: nn.Sequential(_norm(), nn.Conv2d(4, 4, 3, padding=1)), IMAGE, "pads its input"),
    "pointwise_padding": (lambda: nn.Sequential(_norm(), nn.Conv2d(4, 4, 1, padding=1)), IMAGE, "pads its input"),
    "two_readers": (TwoReaders, IMAGE, "also used elsewhere"),
    "reused": (Reused, IMAGE, "kernel of conv is also used"),
    "another_axis": (lambda: Scaled(nn.Conv2d(4, 4, 1), 7, 1, shift=False), IMAGE, "another axis"),
    "two_axes": (lambda: Scaled(nn.Conv2d(4, 4, 1), 7, 7, shift=False), IMAGE, None),
    "kernel_before": (lambda: nn.Sequential(nn.Conv2d(4, 4, 3), _norm(), nn.Conv2d(4, 4, 1)), IMAGE, None),
    "batch_statistics": (
        lambda: nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False), nn.Conv2d(4, 4, 1)),
        IMAGE,
        None,
    ),
    "transposed": (lambda: nn.Sequential(_norm(), nn.ConvTranspose2d(4, 4, 1)), IMAGE, None),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_would_not_be_the_same_stays(name: str) -> None:
    build, shape, reason = KEPT[name]
    graph = capture(build().eval(), torch.randn(shape))
    folded = fold_forward(graph)
    assert folded.fingerprint() == graph.fingerprint()
    new = folded.notes[len(graph.notes) :]
    assert new == [] if reason is None else any(reason in note for note in new)


def test_what_would_overflow_is_not_folded() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4, eps=0.0), nn.Conv2d(4, 4, 1)).eval()
    model[0].running_var.zero_()
    graph = capture(model, torch.randn(IMAGE))
    folded = fold_forward(graph)
    assert folded.fingerprint() == graph.fingerprint()
    assert any("not be finite" in note for note in folded.notes)
