"""Steps for each channel of activations: where they are possible, which limits they get, and what follows from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import detent
from detent import edit
from detent.errors import CalibrationError, ConfigError
from detent.graph.placement import place
from detent.targets import load_target


class Mobile(nn.Module):
    """Channels of very different size, read by depthwise, pointwise and elementwise operations; `[N, 3, 8, 8]`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(16, 32, 2, stride=2, groups=16)
        self.point = nn.Conv2d(32, 8, 1)
        self.gate = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)
        with torch.no_grad():
            self.stem.weight *= torch.logspace(-1.5, 0.5, 8).reshape(8, 1, 1, 1)
            self.stem.bias[0] = -9.0  # dead behind the ReLU

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 1)
        x = self.up(F.silu(self.depthwise(x)))
        x = F.relu(self.point(x))
        y = F.silu(self.gate(x)) * x
        return self.head(y.mean((2, 3)))


PER_CHANNEL = {"relu", "depthwise", "silu", "gate", "silu:1", "mul"}
"""Values that nothing sums over their channels."""
BETWEEN = " within each channel's range"


def images(count: int = 32) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def graph() -> detent.Graph:
    torch.manual_seed(2)
    return detent.capture(Mobile().eval(), images(2))


@pytest.fixture(scope="module")
def stats(graph: detent.Graph) -> detent.Statistics:
    return detent.calibrate(graph, list(images().split(8)), progress=False, moving_maximum=0.9)


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Targets with every kind of grid that offer a step for each channel."""
    folder = tmp_path_factory.mktemp("targets")
    paths = {"uniform": "default"}
    for kind, base in (("symmetric", "tensorrt"), ("power_of_two", "imx500")):
        data = json.loads(load_target(base).model_dump_json())
        data["name"] = kind
        data["defaults"]["activations"]["per_channel"] = True
        for rule in data["ops"].values():
            rule["activations"]["per_channel"] = True
        (folder / f"{kind}.json").write_text(json.dumps(data))
        paths[kind] = str(folder / f"{kind}.json")
    return paths


def planned(graph: detent.Graph, stats: detent.Statistics, **options: Any) -> detent.QuantPlan:
    return detent.plan(graph, stats, **{"activation_per_channel": True, **options})


def test_only_values_that_nothing_sums_over_their_channels(graph: detent.Graph) -> None:
    points = place(graph, load_target("default")).activations
    assert {name for name, point in points.items() if point.axis is not None} == PER_CHANNEL
    assert all(points[name].axis == 1 for name in PER_CHANNEL)
    reasons = {name: point.one_step for name, point in points.items() if point.axis is None}
    assert reasons["x"] == "it is an input of the network"
    assert reasons["up"] == "it is summed over its channels"
    assert reasons["relu:1"] == "it is summed over its channels"  # by `gate`
    assert reasons["head"] == "it is an output of the network"
    assert reasons["mean"] == "it is summed over its channels"
    others = place(graph, load_target("imx500")).activations.values()
    assert {(point.axis, point.one_step) for point in others} == {(None, "the target has no other")}


class Awkward(nn.Module):
    """Values per channel but for what is done with them; each branch for another reason."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Conv2d(4, 4, 1) for _ in range(5))
        self.last = nn.Linear(64, 3)
        self.depthwise = nn.Conv2d(4, 4, 1, groups=4)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        flat = self.last(self.a(x).flatten(1))  # the step would differ along the summed axis
        shuffled = self.depthwise(F.channel_shuffle(self.b(x), 2))  # channels change places
        part = torch.neg(self.c(x)[:, :2])  # not all channels go on
        moved = torch.neg(self.d(x).permute(0, 2, 3, 1))  # still one channel each
        normed = F.layer_norm(self.e(x), (4, 4, 4))
        return flat, shuffled + 0.0 * x, part, moved, normed


def test_why_a_value_has_one_step() -> None:
    torch.manual_seed(0)
    graph = detent.capture(Awkward().eval(), torch.randn(2, 4, 4, 4))
    points = place(graph, load_target("default")).activations
    assert points["a"].one_step == "it is rearranged"
    assert points["b"].one_step == "it is rearranged"
    assert points["c"].one_step == "it is rearranged"
    assert points["d"].axis == 1
    assert points["e"].one_step == "it is summed over its channels"
    shared = detent.capture(Joined().eval(), torch.randn(2, 4, 4, 4))
    stats = detent.calibrate(shared, torch.randn(8, 4, 4, 4), progress=False)
    apart = planned(shared, stats)
    assert apart.activation_grid("a").axis == apart.activation_grid("cat").axis == 1
    plan = planned(shared, stats, concat_threshold_update=True)
    assert plan.activations["a"].same_as == "cat"
    assert plan.activation_grid("cat").axis is None
    assert "one step for all channels of a, b, cat: it shares its grid" in plan.notes


class Joined(nn.Module):
    """A concatenation whose output is read channel by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(torch.cat([self.a(x), self.b(x)], 1)) + 1.0


@pytest.mark.parametrize("kind", ["uniform", "symmetric", "power_of_two"])
@pytest.mark.parametrize("metric", ["mse", "noclipping", "moving_maximum"])
def test_limits_are_the_channels_own_within_the_tensors(
    graph: detent.Graph, stats: detent.Statistics, targets: dict[str, str], kind: str, metric: str
) -> None:
    whole = detent.plan(graph, stats, target=targets[kind], activation_metric=metric)
    plan = planned(graph, stats, target=targets[kind], activation_metric=metric)
    found = {name for name, entry in plan.activations.items() if entry.grid.axis is not None}
    assert {"relu", "silu"} <= found <= PER_CHANNEL
    for name, entry in plan.activations.items():
        if name not in found:
            assert entry == whole.activations[name]
            continue
        grid, tensor = entry.grid, whole.activations[name].grid
        assert entry.metric == metric + BETWEEN
        assert (grid.kind, grid.signed, grid.bits) == (tensor.kind, tensor.signed, tensor.bits)
        (low, high), (lowest, highest) = grid.limits, tensor.limits
        step = grid.scale.astype(np.float64)
        # Rounding the zero point moves the limits of a uniform grid by half a step.
        assert (low >= lowest - step - tensor.scale[0]).all()
        assert (high <= highest + step + tensor.scale[0]).all()
        assert (tensor.scale[0] / grid.scale <= 16.001).all()
        # What the tensor's grid does not clip, the channel's does not either.
        assert (high >= np.minimum(stats[name].channel_maximum, highest - tensor.scale[0]) - 1.001 * step).all()
        least = np.maximum(np.minimum(stats[name].channel_minimum, 0), lowest + tensor.scale[0])
        assert (low <= least + 1.001 * step).all()
        assert grid.scale.min() < tensor.scale[0] / 2  # and it is worth something
    if kind != "power_of_two":
        dead = plan.activation_grid("relu")
        assert dead.scale[0] == pytest.approx(whole.activation_grid("relu").scale[0] / 16)


def test_small_channels_are_rounded_finer(graph: detent.Graph, stats: detent.Statistics) -> None:
    """Error of each channel relative to its size, on the calibration data: no channel loses, small ones win most."""
    recorder = torch.fx.Interpreter(graph.module, garbage_collect_values=False)
    with torch.no_grad():
        recorder.run(images(), enable_io_processing=False)
    whole, plan = detent.plan(graph, stats), planned(graph, stats)
    for name in PER_CHANNEL:
        value = recorder.env[graph.find(name).node].contiguous().numpy()
        size = np.square(value, dtype=np.float64).mean((0, 2, 3)) + 1e-30
        errors = [
            np.square(grid.round(value) - value, dtype=np.float64).mean((0, 2, 3)) / size
            for grid in (whole.activation_grid(name), plan.activation_grid(name))
        ]
        assert np.mean(errors[1]) < 0.5 * np.mean(errors[0])
        assert (errors[1] <= 1.05 * errors[0] + 1e-12).all()


def test_biases_are_multiples_of_their_channels_steps(graph: detent.Graph, stats: detent.Statistics) -> None:
    """Each channel of a depthwise layer has one step for its sums: that of its input times that of its kernel."""
    plan = planned(graph, stats)
    qmodel = detent.apply(graph, plan)
    tensors = dict(qmodel.named_buffers())
    for layer, source, channels in (("depthwise", "relu", 16), ("up", "silu", 32)):
        inputs = np.repeat(plan.activation_grid(source).scale, 2)
        kernel = plan.weights[layer].grid.scale
        steps = inputs * (kernel if len(kernel) == channels else np.tile(kernel, channels // len(kernel)))
        codes = next(value for name, value in tensors.items() if name.endswith(f"{layer}.bias_codes"))
        scale = next(value for name, value in tensors.items() if name.endswith(f"{layer}.bias_scale"))
        assert codes.dtype == torch.int32
        assert np.array_equal(scale.numpy(), steps.astype(np.float32))
        real = codes.numpy() * scale.numpy()
        bias = graph.tensor(graph.find(layer).bias).detach().numpy() + plan.bias_corrections[layer].shift
        assert np.abs(real - bias).max() <= steps.max() / 2 * 1.01


def test_sums_of_a_depthwise_layer_miss_ties(graph: detent.Graph, stats: detent.Statistics) -> None:
    """Between a per-channel input and a per-channel output, the multiplier of each channel is p / q with odd q."""
    plan = planned(graph, stats)
    kernel, before, after = (
        plan.weights["depthwise"].grid,
        plan.activation_grid("relu"),
        plan.activation_grid("depthwise"),
    )
    ratio = kernel.scale.astype(np.float64) * np.repeat(before.scale, 2) / after.scale
    loose = detent.plan(graph, stats, activation_per_channel=True, tie_free=False).weights["depthwise"].grid
    assert (kernel.scale != loose.scale).all()
    assert np.abs(kernel.scale / loose.scale - 1).max() < 2**-11
    for multiplier in ratio:
        fits = [p for p in range(1, 17) if abs(p / multiplier - _odd(p / multiplier)) < 1e-3 * p / multiplier * 0.01]
        assert fits


def _odd(x: float) -> float:
    return 2 * np.floor(x / 2) + 1


def test_rules_and_frozen_entries(graph: detent.Graph, stats: detent.Statistics) -> None:
    wide = edit.rule(edit.name("silu"), edit.activations(bits=16, metric="mae", freeze=True))
    by_hand = edit.rule(edit.name("depthwise"), edit.activations(lower=-1.0, upper=1.0))
    plan = planned(graph, stats, rules=[wide, by_hand])
    entry = plan.activations["silu"]
    assert (entry.grid.bits, entry.grid.axis, entry.metric) == (16, 1, "mae" + BETWEEN)
    assert plan.activation_grid("depthwise").axis is None
    again = planned(graph, stats, rules=[wide], earlier=plan)  # asks for what it is already
    assert again.activations["silu"] == entry
    grid = entry.grid
    given = edit.rule(edit.name("silu"), edit.activations(grid=grid))
    assert detent.plan(graph, stats, rules=[given]).activation_grid("silu") == grid
    grid = plan.activation_grid("relu")
    narrow = edit.rule(edit.name("silu"), edit.activations(grid=grid))
    with pytest.raises(ConfigError, match="16 channels along axis 1, the grid 8 entries"):
        detent.plan(graph, stats, rules=[narrow])
    summed = edit.rule(edit.name("up"), edit.activations(grid=grid))
    with pytest.raises(ConfigError, match="one step for all channels, it is summed over its channels"):
        detent.plan(graph, stats, rules=[summed])


def test_plans_are_saved_edited_and_checked(graph: detent.Graph, stats: detent.Statistics, tmp_path: Path) -> None:
    plan = planned(graph, stats)
    plan.save(tmp_path / "plan.json")
    assert detent.QuantPlan.load(tmp_path / "plan.json") == plan
    x = images(4)
    assert torch.equal(
        detent.apply(graph, detent.QuantPlan.load(tmp_path / "plan.json"))(x), detent.apply(graph, plan)(x)
    )
    relu = plan.activation_grid("relu")
    for value, grid, message in (
        ("up", relu, "one step for all channels: it is summed over its channels"),
        ("silu", relu, "16 channels along axis 1, the plan 8 along axis 1"),
        ("relu", detent.Grid.from_dict({**relu.to_dict(), "axis": 2}), "8 along axis 2"),
        ("relu", detent.Grid.from_dict({**relu.to_dict(), "group_size": 4}), "groups are for kernels"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            detent.apply(graph, plan.with_activation(value, grid))
        assert caught.value.where == value
    data = json.loads(plan.to_json())
    data["target"] = "tensorrt"
    with pytest.raises(ConfigError):
        detent.apply(graph, detent.QuantPlan.from_json(json.dumps(data)))


def test_what_goes_against_it(graph: detent.Graph, stats: detent.Statistics) -> None:
    with pytest.raises(ConfigError, match="target 'imx500' has one step for each activation"):
        planned(graph, stats, target="imx500")
    with pytest.raises(ConfigError, match="target 'tflite' has one step for each activation"):
        detent.quantize(Mobile(), images(), target="tflite", activation_per_channel=True, progress=False)
    narrow = detent.calibrate(graph, images(), progress=False, channels=False)
    with pytest.raises(CalibrationError, match="do not tell the channels of this value apart"):
        planned(graph, narrow)
    qmodel = detent.quantize(Mobile().eval(), images(), activation_per_channel=True, progress=False)
    assert qmodel.plan.activation_grid("relu").axis == 1
    assert any(note.startswith("one step for all channels of x: ") for note in qmodel.notes)
