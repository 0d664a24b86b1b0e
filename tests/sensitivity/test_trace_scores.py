"""Scores made of Hessian traces: by the bin for thresholds, by the width as HAWQ has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import detent
from detent.errors import ConfigError
from detent.sensitivity.candidates import Candidates
from detent.sensitivity.hawq import hawq_scores
from detent.sensitivity.traces import estimate_traces
from tests.sensitivity.exact_hessians import build, exact


def test_activations_are_scored_by_bin() -> None:
    model, data, graph, placement = build("conv", 8)
    stats = detent.calibrate(graph, data[:6], progress=False)
    found = estimate_traces(graph, placement, [[data]], stats=stats, probes=4, kernels=[])
    scores = found.scores(stats)
    value = "1"
    observed = stats[value]
    diagonal = torch.stack([exact(model, x[None], (value, "activations"), "outputs") for x in data]).numpy()
    energies = [float(model(x[None]).detach().square().sum()) for x in data]
    diagonal *= np.array(energies)[:, None, None, None] / np.mean(energies)  # relative to the mean energy of all
    places = np.floor(model[:2](data).detach().numpy() / observed.width).astype(int) - observed.first_bin
    places = places.clip(0, len(observed.counts) - 1).ravel()
    sums, counts = np.bincount(places, diagonal.ravel()), np.bincount(places)
    known = counts > 0
    expected = np.maximum(sums[known] / counts[known], 1e-3 * diagonal.mean())
    np.testing.assert_allclose(
        scores.of_activation(value, len(observed.counts))[: len(counts)][known], expected, rtol=1e-3
    )
    plan = detent.plan(graph, stats, activation_metric="hmse", hessians=scores)
    assert plan.activations[value].metric in ("hmse", "analytic range")


def test_statistics_of_another_network_or_none() -> None:
    _, data, graph, placement = build("linear", 4)
    stats = detent.calibrate(graph, data, progress=False)
    _, images, other, elsewhere = build("conv", 4)
    with pytest.raises(ConfigError, match="another network"):
        estimate_traces(other, elsewhere, [[images]], stats=stats)
    plain = estimate_traces(graph, placement, [[data]])
    assert set(plain.scores().weights) == {"0", "2"}
    with pytest.raises(ConfigError, match=r"not told apart by value(.|\n)*stats="):
        plain.scores(stats)
    with pytest.raises(ConfigError, match="another network"):
        plain.scores(detent.calibrate(other, images, progress=False))


def test_hawq_scores_are_mean_traces_times_squared_errors() -> None:
    model, data, graph, placement = build("conv", 6)
    stats = detent.calibrate(graph, data, progress=False)
    plans = [detent.plan(graph, stats, weights_bits=bits) for bits in (8, 4)]
    traces = estimate_traces(graph, placement, [[data]], stats=stats, probes=4)
    candidates = Candidates.of(graph, placement, plans)
    table = hawq_scores(traces, candidates)
    assert len(table) == len(candidates.slots)
    assert table.fingerprint == graph.fingerprint()
    kernel = model[0].weight.detach().numpy()
    for bits, plan in zip((8, 4), plans, strict=True):
        entry = plan.weights["0"]
        assert entry.grid is not None
        size = np.square(entry.grid.round(kernel) - kernel, dtype=np.float64).sum()
        assert table.find("0", "weights").score(bits) == pytest.approx(traces.find("0", "weights").mean * size)
    grid = plans[0].activation_grid("1")
    assert grid is not None
    hidden = model[:2](data).detach().numpy()
    size = np.square(grid.round(hidden) - hidden, dtype=np.float64).sum() / len(data)
    expected = traces.find("1", "activations").mean * size
    assert table.find("1", "activations").score(grid.bits) == pytest.approx(expected, rel=0.1)
    with pytest.raises(ConfigError, match="factors"):
        table.gram()
    few = estimate_traces(graph, placement, [[data]], kernels=["0"], values=[])
    with pytest.raises(ConfigError, match="unknown trace among the weights"):
        hawq_scores(few, candidates)
    with pytest.raises(ConfigError, match="not told apart"):
        hawq_scores(estimate_traces(graph, placement, [[data]]), candidates)
