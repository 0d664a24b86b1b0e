"""SmoothQuant: channel ranges move from activations into kernels, and quantized outputs come closer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import detent
from detent.errors import ConfigError
from detent.graph import capture
from detent.transforms import smooth


def _outliers(norm: nn.Module) -> nn.Module:
    """A norm that makes a few channels far larger than the rest, as large language models do."""
    for name in ("weight", "bias"):
        parameter = getattr(norm, name, None)
        if parameter is not None:
            nn.init.uniform_(parameter, 0.5, 1.5)
            with torch.no_grad():
                parameter[::5] *= 40
    return norm


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.q, self.k = _outliers(nn.LayerNorm(16)), nn.Linear(16, 8), nn.Linear(16, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        return self.q(x) * self.k(x)


class HandWritten(nn.Module):
    """RMS norm as language models write it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.first, self.linear = nn.Parameter(torch.ones(16)), nn.Linear(16, 16), nn.Linear(16, 8)
        _outliers(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.linear(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight)


TOKENS = (8, 6, 16)
SMOOTHED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer_norm": (lambda: nn.Sequential(_outliers(nn.LayerNorm(16)), nn.Linear(16, 8)), TOKENS),
    "rms_norm": (lambda: nn.Sequential(_outliers(nn.RMSNorm(16)), nn.Linear(16, 8)), TOKENS),
    "batch_norm": (lambda: nn.Sequential(_outliers(nn.BatchNorm1d(16)), nn.Linear(16, 8)), (8, 16)),
    "two_readers": (TwoReaders, TOKENS),
    "hand_written": (HandWritten, TOKENS),
    "layer": (lambda: nn.Sequential(_outliers(nn.Linear(16, 16)), nn.ReLU(), nn.Linear(16, 8)), TOKENS),
}


@pytest.mark.parametrize("name", SMOOTHED)
def test_the_float_function_is_kept_and_codes_come_closer(name: str) -> None:
    torch.manual_seed(0)
    build, shape = SMOOTHED[name]
    model, x = build().eval(), torch.randn(shape)
    graph = capture(model, x)
    stats = detent.calibrate(graph, [x], progress=False)
    smoothed = smooth(graph, stats)
    assert "smoothed the channels of" in smoothed.notes[-1]
    assert graph.fingerprint() == stats.fingerprint
    errors = []
    for candidate in (graph, smoothed):
        seen = detent.calibrate(candidate, [x], progress=False)
        quantized = detent.apply(candidate, detent.plan(candidate, seen, target="onnxruntime"))
        with torch.no_grad():
            errors.append(float((quantized(x) - model(x)).square().mean()))
    with torch.no_grad():
        assert (smoothed(x) - model(x)).abs().max() <= 1e-5 * model(x).abs().max()
    assert errors[1] < errors[0]


def test_given_exponents_give_the_formula() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(_outliers(nn.LayerNorm(16)), nn.Linear(16, 8)).eval(), torch.randn(TOKENS)
    graph = capture(model, x)
    stats = detent.calibrate(graph, [x], progress=False)
    smoothed = smooth(graph, stats, alpha=0.75)
    inputs = model[0](x).abs().amax((0, 1)).detach()
    kernel = model[1].weight.detach()
    wanted = inputs**0.75 / kernel.abs().amax(0) ** 0.25
    state = smoothed.module.state_dict()
    assert torch.allclose(state["1.weight"], kernel * wanted, rtol=1e-5)
    assert torch.allclose(state["0.weight"], model[0].weight / wanted, rtol=1e-5)
    assert torch.allclose(state["0.bias"], model[0].bias / wanted, rtol=1e-5)


def test_a_norm_without_weight_gets_one() -> None:
    x = torch.randn(TOKENS)
    model = nn.Sequential(nn.LayerNorm(16, elementwise_affine=False), nn.Linear(16, 8)).eval()
    graph = capture(model, x)
    smoothed = smooth(graph, detent.calibrate(graph, [x], progress=False), alpha=0.5)
    assert smoothed.module.state_dict()["0.weight"].shape == (16,)
    assert torch.allclose(smoothed(x), model(x), rtol=1e-5, atol=1e-6)


def test_dead_channels_keep_their_scale() -> None:
    x = torch.randn(TOKENS)
    model = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 8)).eval()
    with torch.no_grad():
        model[0].weight[3] = 0
        model[1].weight[:, 5] = 0
    graph = capture(model, x)
    state = smooth(graph, detent.calibrate(graph, [x], progress=False), alpha=0.5).module.state_dict()
    assert torch.equal(state["1.weight"][:, 3], model[1].weight[:, 3])
    assert torch.equal(state["0.weight"][[3, 5]], model[0].weight[[3, 5]])


class Normed(nn.Module):
    """A norm whose output also goes around its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = _outliers(nn.LayerNorm(16)), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        return self.linear(x) + x


def test_what_cannot_be_smoothed_stays_and_is_noted() -> None:
    x = torch.randn(TOKENS)
    graph = capture(Normed(), x)
    smoothed = smooth(graph, detent.calibrate(graph, [x], progress=False))
    assert smoothed.fingerprint() == graph.fingerprint()
    assert "add combines" in smoothed.notes[-1]


def test_bad_input_is_refused() -> None:
    x = torch.randn(TOKENS)
    first, second = (capture(nn.Sequential(nn.LayerNorm(16), nn.Linear(16, k)), x) for k in (3, 4))
    stats = detent.calibrate(first, [x], progress=False)
    with pytest.raises(ConfigError, match="another model"):
        smooth(second, stats)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        smooth(first, stats, alpha=1.5)
