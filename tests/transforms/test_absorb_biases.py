"""High-bias absorption is exact on the calibration data, also through clamps and groups."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import detent
from detent.errors import ConfigError
from detent.graph import capture
from detent.transforms import absorb_high_biases

IMAGE = (4, 3, 8, 8)


def _biased(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        model[0].weight *= 0.5
        if model[0].bias is not None:
            model[0].bias.copy_(torch.linspace(-1, 4, len(model[0].bias)))
    return model.eval()


EXACT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "relu": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)), IMAGE),
    "relu6_grouped": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU6(), nn.Conv2d(6, 6, 3, groups=3, bias=False)),
        IMAGE,
    ),
    "prelu": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.PReLU(6), nn.Conv2d(6, 4, 3)), IMAGE),
    "pooled": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3),
            nn.ReLU6(),
            nn.MaxPool2d(3, 2, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 2),
        ),
        IMAGE,
    ),
    "flattened": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)), IMAGE),
    "linear": (lambda: nn.Sequential(nn.Linear(5, 6), nn.LeakyReLU(), nn.Linear(6, 4, bias=False)), (4, 7, 5)),
}


@pytest.mark.parametrize("name", EXACT)
def test_exact_on_the_calibration_data(name: str) -> None:
    build, shape = EXACT[name]
    model, x = _biased(build()), torch.rand(shape)
    graph = capture(model, x)
    stats = detent.calibrate(graph, [x], progress=False)
    fingerprint = graph.fingerprint()
    absorbed = absorb_high_biases(graph, stats)
    assert graph.fingerprint() == fingerprint
    assert "absorbed high biases of 0" in absorbed.notes[-1]
    with torch.no_grad():
        wanted, got = model(x), absorbed(x)
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    least = torch.from_numpy(stats["0"].channel_minimum.copy())
    moved = (model[0].bias - absorbed.tensor(absorbed.find("0").bias)).detach()
    limit = 6.0 if "relu6" in name or name == "pooled" else float("inf")
    assert torch.allclose(moved, least.clamp(min=0) * (least < limit), atol=1e-6)
    assert absorbed(torch.rand(shape)).shape == wanted.shape


def test_values_inside_a_fused_operation_are_known_by_what_follows() -> None:
    model, x = _biased(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))), torch.rand(IMAGE)
    graph = capture(model, x)
    whole, part = (detent.calibrate(graph, [x], progress=False, values=v) for v in (None, ["input", "1", "2"]))
    first, second = (absorb_high_biases(graph, stats).fingerprint() for stats in (whole, part))
    assert first == second != graph.fingerprint()


KEPT: dict[str, tuple[Callable[[], nn.Module], str | None]] = {
    "padded": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)), "pads with zeros"),
    "same": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, padding="same")), "pads with"),
    "zero_pad": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.ZeroPad2d(1), nn.Conv2d(6, 4, 3)),
        "does not pass a constant",
    ),
    "averaged": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AvgPool2d(3, 2, 1), nn.Conv2d(6, 4, 1)),
        "pads with zeros",
    ),
    "transposed": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3)),
        "transposed convolution",
    ),
    "no_activation": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)), None),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_would_not_be_exact_is_left_alone(name: str) -> None:
    build, reason = KEPT[name]
    model, x = _biased(build()), torch.rand(IMAGE)
    graph = capture(model, x)
    absorbed = absorb_high_biases(graph, detent.calibrate(graph, [x], progress=False))
    assert absorbed.fingerprint() == graph.fingerprint()
    assert absorbed.notes == graph.notes if reason is None else reason in absorbed.notes[-1]


def test_channels_that_reach_zero_keep_their_bias() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)).eval()
    x = torch.randn(IMAGE) * 10
    graph = capture(model, x)
    assert absorb_high_biases(graph, detent.calibrate(graph, [x], progress=False)).fingerprint() == graph.fingerprint()


def test_statistics_of_another_graph_are_refused() -> None:
    x = torch.rand(IMAGE)
    first, second = (capture(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), x) for _ in range(2))
    with pytest.raises(ConfigError, match="another model"):
        absorb_high_biases(first, detent.calibrate(second, [x], progress=False))
