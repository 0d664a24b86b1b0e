"""Gains: the least-squares one is the optimum, the other keeps the variance; the plan carries them everywhere."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import detent
from detent.errors import ConfigError
from detent.records.plan import QuantPlan
from detent.statistics import moments as moments_module

KINDS = {
    "conv": lambda: nn.Conv2d(8, 12, 3, bias=False),
    "depthwise": lambda: nn.Conv2d(8, 8, 3, groups=8),
    "transposed, grouped": lambda: nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2),
}


@pytest.fixture(autouse=True)
def all_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    # The moments are then those of the very data that the tests evaluate on.
    monkeypatch.setattr(moments_module, "_LEAST_PATCHES", 10**6)


def setup(kind: str):
    torch.manual_seed(0)
    model = KINDS[kind]().eval()
    data = (torch.einsum("nchw,dc->ndhw", torch.randn(64, 8, 6, 6), torch.randn(8, 8)) + 0.5).relu()
    graph = detent.capture(model, data[:2])
    return model, data, graph, detent.calibrate(graph, data, progress=False), detent.collect_moments(graph, data)


def planned(graph, stats, moments, rule, **options):
    options = {"weights_bits": 3, "activation_bits": 16, "tie_free": False, **options}
    return detent.plan(graph, stats, moments=moments, gain_correction=rule, **options)


def deviations(y: torch.Tensor) -> torch.Tensor:
    return (y - y.mean(dim=(0, 2, 3), keepdim=True)).double()


@pytest.mark.parametrize("kind", KINDS)
def test_least_squares_is_the_best_gain(kind: str) -> None:
    model, data, graph, stats, moments = setup(kind)
    plan = planned(graph, stats, moments, "least_squares", bias_correction="analytic")
    ((_, entry),) = plan.weights.items()
    assert entry.gain is not None
    assert np.any(np.abs(entry.gain - 1) > 0.005)
    with torch.no_grad():
        wanted, found = deviations(model(data)), deviations(detent.apply(graph, plan)(data))
    # At the optimum the error is orthogonal to the quantized output, channel by channel, or together where a step is.
    above, below = ((part * found).sum(dim=(0, 2, 3)) for part in (wanted - found, found))
    if kind.startswith("transposed"):  # the channels of both groups share a step
        above, below = (part.reshape(2, -1).sum(dim=0) for part in (above, below))
    assert float((above / below).abs().max()) < 0.005


@pytest.mark.parametrize("kind", ["conv", "depthwise"])
def test_second_moment_keeps_the_variance(kind: str) -> None:
    model, data, graph, stats, moments = setup(kind)
    plans = [planned(graph, stats, moments, rule, bias_correction="analytic") for rule in ("none", "second_moment")]
    with torch.no_grad():
        wanted = deviations(model(data)).square().mean(dim=(0, 2, 3))
        plain, kept = (deviations(detent.apply(graph, p)(data)).square().mean(dim=(0, 2, 3)) / wanted for p in plans)
    assert float((kept - 1).abs().max()) < 0.01
    assert float((plain - 1).abs().max()) > 0.02


def test_codes_stay_and_the_step_takes_the_gain() -> None:
    _, _, graph, stats, moments = setup("conv")
    plain, gained = (detent.apply(graph, planned(graph, stats, moments, rule)) for rule in ("none", "least_squares"))
    codes, others = ({k: v for k, v in q.state_dict().items() if k.endswith("weight_codes")} for q in (plain, gained))
    for name, value in codes.items():
        assert torch.equal(value, others[name])
    steps = [q.plan.weights["conv2d"].grid.scale for q in (plain, gained)]
    np.testing.assert_allclose(steps[1], steps[0] * gained.plan.weights["conv2d"].gain, rtol=1e-6)


def test_a_plan_with_gains_is_saved_loaded_and_trained() -> None:
    _, data, graph, stats, moments = setup("depthwise")
    plan = planned(graph, stats, moments, "least_squares", bias_correction="analytic", tie_free=True)
    again = QuantPlan.from_json(plan.to_json())
    assert again.to_json() == plan.to_json()
    with torch.no_grad():
        wanted = detent.apply(graph, plan)(data)
        assert torch.equal(detent.apply(graph, again)(data), wanted)
        trainable = detent.apply(graph, plan, trainable=True)
        torch.testing.assert_close(trainable(data), wanted, rtol=0, atol=float(wanted.abs().max()) * 1e-3)
    assert any(name.endswith("multiplied") for name, _ in trainable.named_parameters())
    # Another grid by hand is without the gain that was found for the old one.
    assert plan.with_weight("conv2d", plan.weights["conv2d"].grid).weights["conv2d"].gain is None


@pytest.mark.parametrize(
    ("gain", "message"),
    [
        ([1.0], "8 thresholds"),
        ([1.0] * 7 + [-1.0], "positive"),
        (["x"], "positive"),
        ([float("inf")] * 8, "positive"),
        ([], "positive"),
    ],
)
def test_an_edited_gain_that_makes_no_sense_is_refused(gain: list, message: str) -> None:
    _, _, graph, stats, moments = setup("depthwise")
    record = json.loads(planned(graph, stats, moments, "least_squares").to_json())
    record["weights"]["conv2d"]["gain"] = gain
    with pytest.raises(ConfigError, match=message):
        detent.apply(graph, QuantPlan.from_json(json.dumps(record)))


def test_a_dead_input_leaves_gains_at_one() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(4, 4, 1, groups=4).eval()
    data = torch.randn(32, 4, 5, 5)
    data[:, 2] = 0
    graph = detent.capture(model, data[:2])
    stats, moments = detent.calibrate(graph, data, progress=False), detent.collect_moments(graph, data)
    plan = planned(graph, stats, moments, "least_squares", weights_metric="output", bias_correction="analytic")
    gain = plan.weights["conv2d"].gain
    assert gain is not None
    assert gain[2] == 1
    assert bool(torch.isfinite(detent.apply(graph, plan)(data)).all())


def test_plans_with_gains_can_be_compared() -> None:
    _, _, graph, stats, moments = setup("conv")
    plan, again = (planned(graph, stats, moments, "least_squares") for _ in range(2))
    assert plan == again == QuantPlan.from_json(plan.to_json())
    ((name, entry),) = plan.weights.items()
    assert entry == again.weights[name]
    assert entry != planned(graph, stats, moments, "second_moment").weights[name]
    assert entry != planned(graph, stats, moments, "none").weights[name]
