"""Clamps from zero end at a power of two, and the layers around them make up for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from detent.graph import capture
from detent.transforms import bound_relu6

IMAGE = (2, 3, 8, 8)

MOVED: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "relu6": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 4, 3)), 8.0),
    "depthwise": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8)), 8.0),
    "hardtanh": (lambda: nn.Sequential(nn.Linear(8, 8), nn.Hardtanh(0.0, 0.3), nn.Linear(8, 4)), 0.5),
    "pooled": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 4)),
        8.0,
    ),
}


@pytest.mark.parametrize("name", MOVED)
def test_bounds_become_powers_of_two(name: str) -> None:
    build, power = MOVED[name]
    model = build().eval()
    with torch.no_grad():
        model[0].weight *= 8
    graph = capture(model, torch.randn(IMAGE))
    bounded = bound_relu6(graph)
    assert bounded.find("1").op.bounds == (0.0, power)
    assert f"at {power:g} instead of" in bounded.notes[-1]
    x = torch.randn(IMAGE) * 3
    assert bounded.find("1").name in bounded
    assert (bounded(x) - model(x)).abs().max() <= 1e-5 * model(x).abs().max()
    assert torch.equal(graph(x), model(x))
    assert bound_relu6(bounded).fingerprint() == bounded.fingerprint()


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Hardtanh(0.0, 4.0), nn.Hardtanh(-1.0, 3.0)])
def test_other_bounds_stay(activation: nn.Module) -> None:
    graph = capture(nn.Sequential(nn.Conv2d(3, 8, 3), activation, nn.Conv2d(8, 4, 3)).eval(), torch.randn(IMAGE))
    bounded = bound_relu6(graph)
    assert bounded.fingerprint() == graph.fingerprint()
    assert bounded.notes == graph.notes


def test_a_bound_that_others_see_stays_and_is_noted() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.nn.functional.relu6(self.a(x))
            return self.b(x) + x

    graph = capture(Residual(), torch.randn(IMAGE))
    bounded = bound_relu6(graph)
    assert bounded.fingerprint() == graph.fingerprint()
    assert "add combines" in bounded.notes[-1]
    # Nobody's defaults were touched.
    assert float(torch.nn.functional.hardtanh(torch.tensor(5.0))) == 1.0
