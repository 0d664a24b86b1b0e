"""Activation channel equalization: the deviation after a ReLU or clamp, and what is done with it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from detent.graph import capture
from detent.transforms import equalize_activations, fold_batch_norm
from detent.transforms.equalize_activations import clipped_deviation

IMAGE = (2, 3, 8, 8)


@pytest.mark.parametrize(("lower", "upper"), [(0.0, math.inf), (0.0, 6.0), (-1.0, 1.0), (-math.inf, math.inf)])
@pytest.mark.parametrize("mean", [-4.0, -0.5, 0.0, 2.0, 7.0])
@pytest.mark.parametrize("std", [0.1, 1.0, 5.0])
def test_the_deviation_of_a_clipped_normal(lower: float, upper: float, mean: float, std: float) -> None:
    # Midpoints of a million slices of equal probability.
    uniform = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000
    sample = (mean + std * torch.special.ndtri(uniform)).clamp(lower, upper)
    found = clipped_deviation(*(torch.tensor([v], dtype=torch.float64) for v in (mean, std, lower, upper)))
    assert float(found) == pytest.approx(float(sample.std()), rel=2e-3, abs=1e-4)


def _network(activation: nn.Module, gains: list[float], reader: nn.Module) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, len(gains), 3), nn.BatchNorm2d(len(gains)), activation, reader).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor(gains))
        model[1].bias.uniform_(-1, 1)
        model[1].running_var.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6()])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_wide_channels_are_narrowed(activation: nn.Module, groups: int) -> None:
    torch.manual_seed(0)
    model = _network(activation, [0.5, -8.0, 3.0, 0.0], nn.Conv2d(4, 8, 3, padding=1, groups=groups))
    folded = fold_batch_norm(capture(model, torch.randn(IMAGE)))
    equal = equalize_activations(folded)
    before, after = (g.tensor(g.find("0").weight).detach() for g in (folded, equal))
    factors = after.flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)
    beta, gamma = model[1].bias.detach().double(), model[1].weight.detach().double().abs()
    upper = torch.tensor(6.0 if isinstance(activation, nn.ReLU6) else math.inf).double()
    wanted = (1 / clipped_deviation(beta, gamma, torch.zeros(()).double(), upper)).clamp(max=1)
    assert torch.allclose(factors[:3].double(), wanted[:3], rtol=1e-5)  # the last kernel is zero
    assert factors[0] == 1
    assert factors[1] < 0.5
    x = torch.randn(IMAGE)
    assert (equal(x) - model(x)).abs().max() <= 1e-5 * model(x).abs().max()
    # What the layer remembers of its norm follows, so a second time nothing is left to do.
    assert equalize_activations(equal).fingerprint() == equal.fingerprint()


def test_other_activations_are_left_alone() -> None:
    for activation in (nn.PReLU(), nn.SiLU(), nn.Identity()):
        model = _network(activation, [9.0, 9.0], nn.Conv2d(2, 2, 1))
        folded = fold_batch_norm(capture(model, torch.randn(IMAGE)))
        assert equalize_activations(folded).fingerprint() == folded.fingerprint()


def test_a_value_with_another_reader_is_noted() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = _network(nn.ReLU(), [9.0, 9.0], nn.Identity())
            self.conv = nn.Conv2d(2, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.conv(x) + x

    folded = fold_batch_norm(capture(Residual(), torch.randn(IMAGE)))
    equal = equalize_activations(folded)
    assert equal.fingerprint() == folded.fingerprint()
    assert "add combines" in equal.notes[-1]
