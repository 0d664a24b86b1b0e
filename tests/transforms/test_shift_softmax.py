"""Logits are centred before a softmax."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import detent
from detent.errors import ConfigError
from detent.graph import capture
from detent.transforms import shift_softmax

SHIFTED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Softmax(-1)), (6, 5)),
    "no_bias": (lambda: nn.Sequential(nn.Linear(5, 4, bias=False), nn.Softmax(-1)), (6, 5)),
    "logarithm": (lambda: nn.Sequential(nn.Linear(5, 4), nn.LogSoftmax(-1)), (6, 5)),
    "conv": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(2), nn.Softmax(1)), (2, 3, 5, 5)),
}


@pytest.mark.parametrize("name", SHIFTED)
def test_logits_are_centred(name: str) -> None:
    torch.manual_seed(0)
    build, shape = SHIFTED[name]
    model, x = build().eval(), torch.rand(shape) * 4
    with torch.no_grad():
        if model[0].bias is not None:
            model[0].bias += 7
    graph = capture(model, x)
    before = detent.calibrate(graph, [x], progress=False)
    shifted = shift_softmax(graph, before)
    after = detent.calibrate(shifted, [x], progress=False)
    assert after["0"].maximum == pytest.approx(-after["0"].minimum, rel=1e-5)
    assert "centred before softmax: 0 by" in shifted.notes[-1]
    assert torch.allclose(shifted(x), model(x), rtol=1e-5, atol=1e-6)
    assert graph.fingerprint() == before.fingerprint


class Attention(nn.Module):
    """A softmax over a product of two computed values: there is no bias to move."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x @ x.transpose(1, 2), -1)


class Returned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.linear(x)
        return y, y.softmax(-1)


class SharedBias(Returned):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).softmax(-1) + self.linear.bias


@pytest.mark.parametrize(
    ("model", "reason"),
    [(Attention(), None), (Returned(), "used elsewhere"), (SharedBias(), "more than once")],
)
def test_what_cannot_be_centred_stays(model: nn.Module, reason: str | None) -> None:
    x = torch.rand(3, 2, 5)
    graph = capture(model.eval(), x)
    shifted = shift_softmax(graph, detent.calibrate(graph, [x], progress=False))
    assert shifted.fingerprint() == graph.fingerprint()
    assert shifted.notes == graph.notes if reason is None else reason in shifted.notes[-1]


def test_statistics_of_another_graph_are_refused() -> None:
    x = torch.rand(3, 5)
    first, second = (capture(nn.Sequential(nn.Linear(5, 4), nn.Softmax(-1)), x) for _ in range(2))
    with pytest.raises(ConfigError, match="another model"):
        shift_softmax(first, detent.calibrate(second, [x], progress=False))
