"""Equalization keeps the float function, evens out ranges, and leaves alone what it cannot treat."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import detent
from detent.graph import capture
from detent.transforms import equalize_layers

IMAGE = (2, 3, 12, 12)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def _uneven(model: nn.Module) -> nn.Module:
    """Kernels whose channels differ in range by powers of ten, as after folding batch norms."""
    with torch.no_grad():
        for module in model.modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, nn.Parameter) and weight.dim() > 1:
                weight *= 10 ** torch.empty(weight.shape[0], *[1] * (weight.dim() - 1)).uniform_(-1, 1)
                weight *= 10 ** torch.empty(weight.shape[1], *[1] * (weight.dim() - 2)).uniform_(-1, 1)
            if isinstance(module, nn.PReLU):
                nn.init.uniform_(module.weight, -0.5, 0.5)
    return model.eval()


class Twice(nn.Module):
    """A value that two convolutions read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1, groups=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self.stem(x))
        return self.left(x) + self.right(x)


class ChannelsLast(nn.Module):
    """A convolution whose channels a linear layer reads after a permutation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.conv(x).permute(0, 2, 3, 1).relu())


class Resized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(F.pad(self.a(x), (1, 1, 2, 0)), scale_factor=2.0, mode="bilinear")
        return self.b(F.hardtanh(x, -0.5, 2.0))


def _mobile() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.ReLU6(),
        nn.Conv2d(8, 16, 3, padding=1, groups=8),
        nn.ReLU6(),
        nn.Conv2d(16, 5, 1),
    )


EQUAL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "relu": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), IMAGE, 1),
    "nothing_between": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 4, 3)), IMAGE, 1),
    "mobile": (_mobile, IMAGE, 2),
    "grouped": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(12, 4, 1)),
        IMAGE,
        2,
    ),
    "transposed": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(3, 8, 3, 2),
            nn.LeakyReLU(),
            nn.ConvTranspose2d(8, 12, 2, groups=4),
            nn.ReLU6(),
            nn.Conv2d(12, 2, 3),
        ),
        IMAGE,
        2,
    ),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU6(), nn.AvgPool1d(2), nn.Conv1d(8, 4, 3)),
        (2, 3, 20),
        1,
    ),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(3, 8, 3), nn.MaxPool3d(2), nn.Conv3d(8, 4, 1)), (2, 3, 6, 6, 6), 1),
    "linear": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU6(), nn.Dropout(), nn.Linear(8, 4)), (3, 7, 6), 1),
    "pooled": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
        IMAGE,
        1,
    ),
    "flattened": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(5), nn.Flatten(), nn.ReLU6(), nn.Linear(32, 4)),
        IMAGE,
        1,
    ),
    "two_readers": (Twice, IMAGE, 1),
    "channels_last": (ChannelsLast, IMAGE, 1),
    "resized": (Resized, IMAGE, 1),
}


@pytest.mark.parametrize("name", EQUAL)
def test_the_float_function_is_kept(name: str) -> None:
    build, shape, count = EQUAL[name]
    model = _uneven(build())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    graph = capture(model, torch.randn(shape))
    fingerprint = graph.fingerprint()
    equal = equalize_layers(graph)
    assert f"equalized the channels of {count} layer" in equal.notes[-1]
    x = torch.randn(5, *shape[1:])
    with torch.no_grad():
        wanted, got = model(x), equal(x)
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    # Neither the model nor the graph it was captured as has changed; the result has the same values by name.
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert graph.fingerprint() == fingerprint != equal.fingerprint()
    assert [node.name for node in equal.nodes()] == [node.name for node in graph.nodes()]
    detent.calibrate(equal, [x], progress=False)


def test_ranges_meet_at_their_geometric_mean() -> None:
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[4.0], [-0.5]]))
        model[0].bias.copy_(torch.tensor([1.0, -1.0]))
        model[2].weight.copy_(torch.tensor([[1.0, -8.0]]))
    equal = equalize_layers(capture(model, torch.randn(3, 1)))
    state = {key: value.flatten().tolist() for key, value in equal.module.state_dict().items()}
    assert state["0.weight"] == [2.0, -2.0]
    assert state["0.bias"] == [0.5, -4.0]
    assert state["2.weight"] == [2.0, -2.0]


def test_a_chain_converges() -> None:
    model = _uneven(_mobile())
    equal = equalize_layers(capture(model, torch.randn(IMAGE)))
    first, depthwise, last = (equal.tensor(equal.find(name).weight).detach().abs() for name in "024")
    made, read = first.amax((1, 2, 3)), depthwise.reshape(8, -1).amax(1)
    assert torch.allclose(made, read, rtol=5e-3)
    assert torch.allclose(depthwise.amax((1, 2, 3)), last.amax((0, 2, 3)), rtol=5e-3)


def test_dead_channels_keep_their_scale() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 1)).eval()
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].weight[2] = 1e-12
        model[2].weight[:, 3] = 0
    equal = equalize_layers(capture(model, torch.randn(IMAGE)))
    state = equal.module.state_dict()
    assert torch.equal(state["0.bias"][[1, 3]], model[0].bias[[1, 3]])
    assert state["0.bias"][2] == model[0].bias[2] * 2.0**8
    x = torch.randn(IMAGE)
    assert torch.allclose(equal(x), model(x), rtol=1e-5, atol=1e-6)


def test_kernels_that_are_not_finite_are_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    with torch.no_grad():
        model[0].weight[1, 0, 0, 0] = float("nan")
    graph = capture(model, torch.randn(IMAGE))
    equal = equalize_layers(graph)
    assert equal.fingerprint() == graph.fingerprint()
    assert any("not finite" in note for note in equal.notes)


def test_memory_formats_are_kept() -> None:
    model = _uneven(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 4, 3))).to(
        memory_format=torch.channels_last
    )
    x = torch.randn(IMAGE).to(memory_format=torch.channels_last)
    equal = equalize_layers(capture(model, x))
    assert equal.module.state_dict()["2.weight"].is_contiguous(memory_format=torch.channels_last)
    assert equal(x).is_contiguous(memory_format=torch.channels_last)
    assert (equal(x) - model(x)).abs().max() <= 1e-5 * model(x).abs().max()


def test_a_second_time_changes_nothing() -> None:
    once = equalize_layers(capture(_uneven(_mobile()), torch.randn(IMAGE)))
    twice = equalize_layers(once)
    state = twice.module.state_dict()
    for key, value in once.module.state_dict().items():
        assert torch.allclose(state[key], value, rtol=1e-2), key


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x).relu()
        return self.b(y) + y


class Returned(Residual):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.a(x)
        return self.b(y), y


class Tied(Residual):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(self.a(x)).relu())


class ComputedKernel(Residual):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(self.a(x), self.b.weight * x.mean())


class Rolled(Residual):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.roll(self.a(x), 1, 1))


class Sliced(Residual):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(self.a(x)[:, :2], torch.ones(3, 2, 1, 1))


class PooledChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.max_pool1d(self.a(x), 3, 1, 1))


class OtherAxis(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 4, 1), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


KEPT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "residual": (Residual, IMAGE, "add combines"),
    "returned": (Returned, IMAGE, "returns its output"),
    "tied": (Tied, IMAGE, "used more than once"),
    "silu": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 1)), IMAGE, "silu follows"),
    "computed": (ComputedKernel, IMAGE, "computed by the network"),
    "rolled": (Rolled, IMAGE, "roll follows"),
    "sliced": (Sliced, IMAGE, "some of its channels"),
    "pooled_channels": (PooledChannels, (2, 5, 3), "max_pool follows"),
    "other_axis": (OtherAxis, (2, 3, 4), "another axis"),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_cannot_be_equalized_stays_and_is_noted(name: str) -> None:
    build, shape, reason = KEPT[name]
    graph = capture(_uneven(build()), torch.randn(shape))
    equal = equalize_layers(graph)
    assert equal.fingerprint() == graph.fingerprint()
    assert any(reason in note for note in equal.notes), equal.notes


def test_a_network_without_pairs_gets_no_note() -> None:
    graph = capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.randn(IMAGE))
    assert equalize_layers(graph).notes == graph.notes


def _digits(seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((8, *IMAGE[1:]), np.float32) * 3 for _ in range(2))


@pytest.mark.parametrize("target", ["imx500", "onnxruntime", "tflite", "default"])
def test_targets_place_grids_as_before(target: str) -> None:
    graph = capture(_uneven(_mobile()), torch.randn(IMAGE))
    plans = []
    for candidate in (graph, equalize_layers(graph)):
        stats = detent.calibrate(candidate, list(_digits(0)), progress=False)
        plans.append(detent.plan(candidate, stats, target=target))
    fuses_any_clamp = target != "tflite"
    assert (list(plans[0].activations) == list(plans[1].activations)) is fuses_any_clamp
    assert list(plans[0].weights) == list(plans[1].weights)


@pytest.mark.parametrize("target", ["imx500", "onnxruntime"])
def test_quantized_and_exported(target: str, tmp_path: Path) -> None:
    equal = equalize_layers(capture(_uneven(_mobile()), torch.randn(IMAGE)))
    stats = detent.calibrate(equal, list(_digits(0)), progress=False)
    model = detent.apply(equal, detent.plan(equal, stats, target=target))
    x = torch.from_numpy(next(_digits(1)))
    assert (model(x) - equal(x)).abs().max() < 0.1 * equal(x).abs().max()
    detent.export(model, tmp_path / "equal.onnx")  # checks its numbers by onnxruntime
