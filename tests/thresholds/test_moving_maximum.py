"""Plans by moving maxima: the limits they give on each kind of grid, and what goes against them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import detent
from detent import edit
from detent.errors import CalibrationError, ConfigError
from tests.edit.networks import gated, images


@pytest.fixture(scope="module")
def graph():
    return detent.capture(gated(), images(2))


@pytest.fixture(scope="module")
def stats(graph):
    return detent.calibrate(graph, list(images().split(8)), progress=False, moving_maximum=0.9)


def planned(graph, stats, **options):
    return detent.plan(graph, stats, **{"activation_metric": "moving_maximum", **options})


def test_symmetric_limits_reach_the_moving_maximum(graph, stats):
    plan = planned(graph, stats, target="tensorrt")
    entries = {name: entry for name, entry in plan.activations.items() if entry.metric == "moving_maximum"}
    assert {"x", "features.0.act", "mix.1", "twice"} <= set(entries)
    for name, entry in entries.items():
        _, high = entry.grid.limits
        assert high[0] == pytest.approx(stats.moving.maxima[name], rel=1e-6)
        assert stats.moving.maxima[name] < max(stats[name].maximum, -stats[name].minimum)


def test_power_of_two_limits_are_the_next_power(graph, stats):
    for name, entry in planned(graph, stats, target="imx500").activations.items():
        if entry.metric == "moving_maximum":
            size = stats.moving.maxima[name]
            assert size <= entry.grid.threshold[0] < 2 * size
            assert entry.grid.signed == (stats[name].minimum < 0)


def test_uniform_limits_stay_within_what_was_seen(graph, stats):
    plan = planned(graph, stats, target="default")
    for name, entry in plan.activations.items():
        if entry.metric == "moving_maximum":
            size = stats.moving.maxima[name]
            assert entry.grid.lower[0] == np.float32(max(-size, stats[name].minimum))
            assert entry.grid.upper[0] == np.float32(min(size, stats[name].maximum))
    assert plan.activations["features.0.act"].grid.lower[0] > -0.3  # SiLU, not -size


@pytest.mark.parametrize("target", ["imx500", "tensorrt", "default"])
def test_the_error_is_that_of_the_grid(graph, stats, target):
    """On the input, whose values are at hand."""
    entry = planned(graph, stats, target=target, activation_bits=None).activations["x"]
    values = images()
    rounded = entry.grid.round(values.numpy())
    measured = float(np.mean((rounded.astype(np.float64) - values.numpy()) ** 2))
    assert entry.error == pytest.approx(measured, rel=0.05)


def test_values_on_one_grid_take_the_largest(graph, stats):
    plan = planned(graph, stats, target="tflite")
    assert plan.activations["features.0.act"].same_as == "cat"
    members = ("features.0.act", "features.1.act", "cat")
    size = max(stats.moving.maxima[name] for name in members)
    assert plan.activations["cat"].grid.upper[0] == np.float32(min(size, stats["cat"].maximum))


def test_a_rule_asks_for_single_values(graph, stats):
    rule = edit.rule(edit.op("silu"), edit.activations(metric="moving_maximum"))
    plan = detent.plan(graph, stats, target="imx500", rules=[rule], z_threshold=8.0)
    metrics = {name: entry.metric for name, entry in plan.activations.items()}
    assert metrics["features.0.act"] == "moving_maximum"
    assert metrics["x"] == "mse"
    loose = edit.rule(edit.op("silu"), edit.activations(z_threshold=5.0))
    again = detent.plan(graph, stats, target="imx500", rules=[loose, rule])
    assert again.activations["features.0.act"].metric == "moving_maximum"
    with pytest.raises(ConfigError, match="a moving maximum is not searched"):
        detent.plan(graph, stats, target="imx500", rules=[rule, loose])


def test_quantize_collects_what_it_needs():
    batches = list(images().split(8))
    qmodel = detent.quantize(gated(), batches, activation_metric="moving_maximum", progress=False)
    assert qmodel.plan.activations["x"].metric == "moving_maximum"
    assert any("momentum 0.9 over 8 batches" in note for note in qmodel.notes)
    other = detent.quantize(gated(), batches, activation_metric="moving_maximum", moving_maximum=0.0, progress=False)
    assert any("momentum 0 over 8 batches" in note for note in other.notes)
    rule = edit.rule(edit.op("silu"), edit.activations(metric="moving_maximum"))
    by_rule = detent.quantize(gated(), batches, rules=[rule], progress=False)
    assert by_rule.plan.activations["features.0.act"].metric == "moving_maximum"


def test_a_plan_with_it_loads_and_runs(graph, stats, tmp_path):
    plan = planned(graph, stats, target="imx500")
    plan.save(tmp_path / "plan.json")
    loaded = detent.QuantPlan.load(tmp_path / "plan.json")
    assert loaded == plan
    assert torch.equal(detent.apply(graph, loaded)(images(4)), detent.apply(graph, plan)(images(4)))
    assert any("order and the size of the batches" in note for note in loaded.notes)


def test_statistics_without_it_are_not_enough(graph, stats):
    plain = detent.calibrate(graph, images(), progress=False)
    with pytest.raises(CalibrationError, match="no moving maximum of this value") as caught:
        planned(graph, plain)
    assert caught.value.where == "x"
    with pytest.raises(ConfigError, match=r"collected with moving_maximum=0.9, asked for is 0.5"):
        planned(graph, stats, moving_maximum=0.5)
    assert planned(graph, stats, moving_maximum=0.9).activations == planned(graph, stats).activations


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"moving_maximum": 0.9}, "`activation_metric` is 'mse'"),
        ({"activation_metric": "moving_maximum", "z_threshold": 5.0}, "a moving maximum is not searched"),
        ({"activation_metric": "moving_maximum", "shift_negative": True}, "a moving maximum is not searched"),
        ({"activation_metric": "moving_maximum", "moving_maximum": 1.0}, "moving_maximum"),
        ({"weights_metric": "moving_maximum"}, "weights_metric"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(ConfigError, match=message):
        detent.QuantizationConfig(**options)


def test_kernels_have_none():
    with pytest.raises(ConfigError, match="a kernel has none"):
        edit.rule(edit.everything(), edit.weights(metric="moving_maximum"))
    with pytest.raises(ConfigError, match="a moving maximum is not searched"):
        edit.activations(metric="moving_maximum", z_threshold=3.0)


def test_one_bit_and_zeros():
    """The narrowest grid, and values that are all zero, still get a valid grid."""
    graph = detent.capture(torch.nn.ReLU(), torch.zeros(2, 3))
    stats = detent.calibrate(graph, [torch.zeros(2, 3)] * 2, progress=False, moving_maximum=0.9)
    for target in ("imx500", "default", "tensorrt"):
        plan = detent.plan(graph, stats, target=target, activation_metric="moving_maximum")
        assert all(entry.grid is not None for entry in plan.activations.values())
        assert not detent.apply(graph, plan)(torch.zeros(2, 3)).any()
