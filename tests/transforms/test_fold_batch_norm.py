"""Folding batch norms keeps the float function and leaves the user's model alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detent.graph import capture
from detent.transforms import fold_batch_norm
from detent.transforms.edits import FOLDED_NORM


def _randomize(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None and module.running_var is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.01, 4.0)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.eval()


class FunctionalNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("var", torch.rand(4) + 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(F.batch_norm(self.conv(x), self.mean, self.var, eps=1e-3))


class ReusedPair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(self.norm(self.conv(x)).relu()))


class TiedKernel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)) + self.conv(x.relu())


IMAGE = (2, 3, 9, 9)
FOLDABLE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8)), (2, 3, 9)),
    "conv2d_no_bias": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)), IMAGE),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(3, 4, 2), nn.BatchNorm3d(4)), (2, 3, 4, 4, 4)),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(6, 8, 3, groups=2), nn.BatchNorm2d(8)), (2, 6, 9, 9)),
    "depthwise": (lambda: nn.Sequential(nn.Conv2d(6, 12, 3, groups=6), nn.BatchNorm2d(12)), (2, 6, 9, 9)),
    "same_padding": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding="same"), nn.BatchNorm2d(8)), IMAGE),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(3, 8, 3, 2), nn.BatchNorm2d(8)), IMAGE),
    "transposed_grouped": (
        lambda: nn.Sequential(nn.ConvTranspose2d(6, 8, 3, 2, groups=2, bias=False), nn.BatchNorm2d(8)),
        (2, 6, 5, 5),
    ),
    "transposed1d": (lambda: nn.Sequential(nn.ConvTranspose1d(3, 4, 3), nn.BatchNorm1d(4)), (2, 3, 9)),
    "transposed3d": (lambda: nn.Sequential(nn.ConvTranspose3d(3, 4, 2), nn.BatchNorm3d(4)), (2, 3, 4, 4, 4)),
    "linear": (lambda: nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8)), (4, 5)),
    "not_affine": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False)), IMAGE),
    "functional": (FunctionalNorm, IMAGE),
    "reused": (ReusedPair, IMAGE),
    "tied": (TiedKernel, IMAGE),
}


@pytest.mark.parametrize("name", FOLDABLE)
def test_the_float_function_is_kept(name: str) -> None:
    build, shape = FOLDABLE[name]
    model = _randomize(build())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    graph = capture(model, torch.randn(shape))
    folded = fold_batch_norm(graph)
    assert not [node for node in folded.nodes() if node.kind == "norm"]
    assert "folded" in folded.notes[-1]
    x = torch.randn(5, *shape[1:])
    with torch.no_grad():
        wanted, got = model(x), folded(x)
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    # Neither the model nor the graph it was captured as has changed.
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(graph(x), wanted)
    assert [node for node in graph.nodes() if node.kind == "norm"]


def test_folded_tensors_take_the_paths_of_the_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    folded = fold_batch_norm(capture(model.eval(), torch.randn(IMAGE)))
    assert sorted(folded.module.state_dict()) == ["0.bias", "0.weight"]
    assert folded.find("0").weight_name == "0.weight"


def test_a_reused_pair_stays_shared() -> None:
    folded = fold_batch_norm(capture(_randomize(ReusedPair()), torch.randn(IMAGE)))
    assert folded.find("conv").weight_name == folded.find("conv:1").weight_name == "conv.weight"


def test_a_kernel_that_is_also_used_without_norm_is_kept_beside_the_folded_one() -> None:
    folded = fold_batch_norm(capture(_randomize(TiedKernel()), torch.randn(IMAGE)))
    assert folded.find("conv").weight_name == "conv.weight_folded"
    assert folded.find("conv:1").weight_name == "conv.weight"


def test_the_layer_remembers_what_the_norm_made_of_its_output() -> None:
    model = _randomize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)))
    model[3] = nn.BatchNorm2d(4, affine=False).eval()
    folded = fold_batch_norm(capture(model, torch.randn(IMAGE))).copy()
    mean, std = folded.find("0").node.meta[FOLDED_NORM]
    assert torch.equal(mean, model[1].bias.double())
    assert torch.equal(std, model[1].weight.double().abs())
    mean, std = folded.find("2").node.meta[FOLDED_NORM]
    assert not mean.any()
    assert (std == 1).all()


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.norm(y) + y


KEPT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "first": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3)), IMAGE, "no convolution"),
    "two_readers": (TwoReaders, IMAGE, "also used elsewhere"),
    "sequence": (lambda: nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(7)), (2, 7, 5), "another axis"),
    "batch_statistics": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)),
        IMAGE,
        "batch's own statistics",
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_cannot_be_folded_stays_and_is_noted(name: str) -> None:
    build, shape, reason = KEPT[name]
    model = _randomize(build())
    folded = fold_batch_norm(capture(model, torch.randn(shape)))
    assert [node for node in folded.nodes() if node.kind == "norm"]
    assert any(reason in note for note in folded.notes)
    x = torch.randn(shape)
    assert torch.equal(folded(x), model(x))


def test_a_gain_that_overflows_is_not_folded() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, eps=0.0)).eval()
    model[1].running_var.zero_()
    folded = fold_batch_norm(capture(model, torch.randn(IMAGE)))
    assert any("not be finite" in note for note in folded.notes)
