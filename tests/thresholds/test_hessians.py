"""Hessian-weighted squared error: scores of one value change nothing, others move limits to where they are large."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import detent
from detent.errors import ConfigError


@pytest.fixture(scope="module")
def network() -> tuple[detent.Graph, detent.Statistics]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5)).eval()
    data = torch.randn(64, 3, 6, 6)
    graph = detent.capture(model, data[:2])
    return graph, detent.calibrate(graph, data, progress=False)


def shapes(graph: detent.Graph) -> dict[str, tuple[int, ...]]:
    return {name: tuple(graph.tensor(graph.find(name).weight).shape) for name in ("0", "3")}


def kernel_scores(graph: detent.Graph, *, even: bool) -> detent.HessianScores:
    random = np.random.default_rng(1)
    return detent.HessianScores(
        weights={
            name: np.full(shape, 3.0) if even else random.exponential(size=shape) ** 4
            for name, shape in shapes(graph).items()
        }
    )


@pytest.mark.parametrize("options", [{}, {"weights_grid": "lut"}, {"weights_group_size": 3}], ids=str)
def test_kernels(network: tuple[detent.Graph, detent.Statistics], options: dict[str, object]) -> None:
    graph, stats = network
    options = {"weights_bits": 3, "tie_free": False, "gain_correction": "none", **options}
    plain = detent.plan(graph, stats, weights_metric="mse", **options)
    even = detent.plan(graph, stats, weights_metric="hmse", hessians=kernel_scores(graph, even=True), **options)
    scores = kernel_scores(graph, even=False)
    uneven = detent.plan(graph, stats, weights_metric="hmse", hessians=scores, **options)
    for name in shapes(graph):
        kernel = graph.tensor(graph.find(name).weight).detach().numpy()
        weighted = [
            float((scores.weights[name] * (plan.weights[name].grid.round(kernel) - kernel) ** 2).sum())
            for plan in (plain, even, uneven)
        ]
        assert uneven.weights[name].metric == "hmse"
        np.testing.assert_allclose(even.weights[name].grid.threshold, plain.weights[name].grid.threshold, rtol=1e-5)
        assert weighted[2] < weighted[0]


def test_activations(network: tuple[detent.Graph, detent.Statistics]) -> None:
    graph, stats = network
    options = {"activation_bits": 4, "activation_metric": "hmse"}
    bins = {name: len(stats[name].counts) for name in stats}
    plain = detent.plan(graph, stats, activation_bits=4)
    even = detent.plan(
        graph,
        stats,
        hessians=detent.HessianScores(activations={n: np.full(k, 2.0) for n, k in bins.items()}),
        **options,
    )
    assert {n: e.grid for n, e in even.activations.items()} == {n: e.grid for n, e in plain.activations.items()}
    outside = {n: np.where(np.arange(k) > 0.9 * k, 1000.0, 1.0) for n, k in bins.items()}
    moved = detent.plan(graph, stats, hessians=detent.HessianScores(activations=outside), **options)
    assert moved.activation_grid("1").upper > plain.activation_grid("1").upper


@pytest.mark.parametrize(
    ("options", "scores", "message"),
    [
        ({"weights_metric": "hmse"}, {}, "needs Hessian scores of this kernel"),
        ({"activation_metric": "hmse"}, {}, "needs Hessian scores of this histogram"),
        ({"weights_metric": "hmse"}, {"weights": {"0": np.ones(3), "3": np.ones(3)}}, "has shape"),
    ],
)
def test_scores_that_are_missing_or_do_not_fit(network, options: dict, scores: dict, message: str) -> None:
    graph, stats = network
    with pytest.raises(ConfigError, match=message):
        detent.plan(graph, stats, hessians=detent.HessianScores(**scores), **options)


@pytest.mark.parametrize("scores", [np.array([-1.0, 1.0]), np.array([np.nan]), np.zeros(3), ["x"]], ids=str)
def test_scores_that_make_no_sense(scores: object) -> None:
    with pytest.raises(ConfigError, match="Hessian scores must be"):
        detent.HessianScores(weights={"0": scores})


def test_a_mapping_is_not_enough(network: tuple[detent.Graph, detent.Statistics]) -> None:
    with pytest.raises(ConfigError, match="HessianScores"):
        detent.plan(*network, hessians={"0": np.ones(3)})


@pytest.mark.parametrize("name", ["weights_metric", "activation_metric"])
def test_one_call_cannot_have_scores_and_says_so_before_it_runs(name: str) -> None:
    def never(_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the model ran")

    model = nn.Linear(2, 2)
    model.forward = never  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="needs Hessian scores"):
        detent.quantize(model, torch.zeros(4, 2), **{name: "hmse"})
