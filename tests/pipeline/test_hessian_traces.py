"""`detent.estimate_traces`, and thresholds weighted by what it finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import detent
from detent.errors import CalibrationError, ConfigError


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, Tensor, detent.Graph, detent.Statistics]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 5)).eval()
    data = torch.randn(48, 3, 6, 6)
    graph = detent.capture(model, data[:2])
    return model, data, graph, detent.calibrate(graph, data, progress=False)


def estimate(graph: detent.Graph, data: Any, **options: Any) -> detent.HessianTraces:
    return detent.estimate_traces(graph, data, progress=False, **options)


def test_traces_weigh_both_searches(network: Any) -> None:
    _, data, graph, stats = network
    traces = estimate(graph, data, stats=stats)
    assert (traces.samples, traces.probes, traces.tolerance) == (32, 5, 0.01)
    assert not traces.unconverged
    options = {"weights_metric": "hmse", "activation_metric": "hmse", "weights_bits": 4}
    plan = detent.plan(graph, stats, hessians=traces, **options)
    same = detent.plan(graph, stats, hessians=traces.scores(stats), **options)
    assert plan.weights == same.weights
    assert plan.activations == same.activations
    assert {entry.metric for entry in plan.weights.values()} == {"hmse"}
    # What is minimized is smaller than where it was not.
    plain = detent.plan(graph, stats, **{**options, "weights_metric": "mse", "activation_metric": "mse"})
    scores, lost = traces.scores(), {}
    for layer in plan.weights:
        kernel = graph.tensor(graph.find(layer).weight).detach().numpy()
        lost[layer] = [
            float((scores.weights[layer] * (one.weights[layer].grid.round(kernel) - kernel) ** 2).sum())
            for one in (plan, plain)
        ]
    assert all(ours <= theirs * (1 + 1e-6) for ours, theirs in lost.values())
    assert any(ours < theirs for ours, theirs in lost.values())


def test_a_plan_by_weighted_errors_can_be_revised(network: Any) -> None:
    _, data, graph, stats = network
    traces = estimate(graph, data, stats=stats)
    plan = detent.plan(graph, stats, target="imx500", weights_metric="hmse", hessians=traces)
    rules = [detent.edit.rule(detent.edit.name("0"), detent.edit.weights(bits=4))]
    revised = detent.revise(graph, plan, stats, rules, hessians=traces)
    assert (revised.weights["0"].grid.bits, revised.weights["0"].metric) == (4, "hmse")
    with pytest.raises(ConfigError, match="needs Hessian scores"):
        detent.revise(graph, plan, stats, rules)


def test_traces_of_kernels_alone(network: Any) -> None:
    _, data, graph, stats = network
    traces = estimate(graph, data)
    assert not traces.has_bins
    assert detent.plan(graph, stats, weights_metric="hmse", hessians=traces).weights["0"].metric == "hmse"
    with pytest.raises(ConfigError, match=r"needs Hessian scores(.|\n)*detent.estimate_traces\(graph, data, stats"):
        detent.plan(graph, stats, activation_metric="hmse", hessians=traces)


def test_what_statistics_leave_out_has_no_trace(network: Any) -> None:
    _, data, graph, _ = network
    few = detent.calibrate(graph, data, progress=False, values=["1"])
    found = estimate(graph, data, stats=few)
    assert [one.name for one in found if one.role == "activations"] == ["1"]
    every = estimate(graph, data)
    assert {"1", "4"} < {one.name for one in every if one.role == "activations"}


def test_options_of_the_target_and_of_the_estimate_count(network: Any, tmp_path: Any) -> None:
    _, data, graph, _ = network
    one = estimate(graph, iter([data[:8], data[8:16]]), samples=12, probes=2, most_probes=3, tolerance=1e-6, seed=3)
    assert (one.samples, one.probes, one.method) == (12, 3, "hutchinson of outputs")
    assert one.unconverged
    assert len(one.notes) == 1
    assert estimate(graph, data, samples=4, loss="fisher").method == "hutchinson of fisher"
    one.save(tmp_path / "t.safetensors")
    assert str(detent.HessianTraces.load(tmp_path / "t.safetensors")) == str(one)


def test_inside_of_contexts_that_know_no_gradients(network: Any) -> None:
    _, data, graph, _ = network
    outside = estimate(graph, data, samples=4)
    with torch.no_grad():
        assert str(estimate(graph, data, samples=4)) == str(outside)
    with torch.inference_mode():
        assert str(estimate(graph, data, samples=4)) == str(outside)
        assert str(estimate(graph, data.clone(), samples=4)) == str(outside)
    assert np.isfinite([one.trace for one in outside]).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"samples": 0}, ConfigError, "`samples`"),
        ({"probes": 1}, ConfigError, "`probes`"),
        ({"most_probes": 4}, ConfigError, "`most_probes`"),
        ({"tolerance": 0}, ConfigError, "`tolerance`"),
        ({"loss": "output"}, ConfigError, "did you mean 'outputs'"),
        ({"target": "imx5000"}, ConfigError, "imx500"),
        ({"sample": 3}, ConfigError, "sample"),
        ({"stats": "file"}, ConfigError, "`stats` must be a Statistics"),
        ({"graph": nn.Linear(2, 2)}, ConfigError, "`graph` must be a Graph"),
        ({"data": []}, CalibrationError, "batch|samples|empty"),
        ({"data": torch.zeros(4, 3, 6, 6) * float("nan")}, CalibrationError, "NaN"),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else None,
)
def test_what_does_not_fit_is_refused(network: Any, change: dict[str, Any], error: type, message: str) -> None:
    _, data, graph, _ = network
    options = {"graph": graph, "data": data, **change}
    with pytest.raises(error, match=message):
        estimate(options.pop("graph"), options.pop("data"), **options)


def test_what_is_of_another_model_is_refused(network: Any) -> None:
    _, data, graph, stats = network
    other = detent.capture(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()).eval(), data[:2])
    with pytest.raises(ConfigError, match="another model"):
        estimate(other, data, stats=stats)
    traces = estimate(other, data, stats=detent.calibrate(other, data, progress=False))
    with pytest.raises(ConfigError, match="another network"):
        detent.plan(graph, stats, activation_metric="hmse", hessians=traces)
    with pytest.raises(ConfigError, match="`hessians` must be a HessianScores"):
        detent.plan(graph, stats, activation_metric="hmse", hessians={"0": 1.0})
