"""Measured scores by options: points of interest, their weighting and metrics reach the scores, mistakes come first."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from torch import Tensor

import detent
from detent.errors import ConfigError
from detent.graph.policy import place_as_asked
from detent.records.sensitivity import SensitivityTable
from detent.sensitivity import score_by_measuring
from tests.pipeline.mixed_network import choose, images, network, target

MEASURED = {"samples": 6, "scores": "measured"}


def largest_change(wanted: Tensor, found: Tensor) -> float:
    return float((wanted - found).abs().max())


def scored(**mixed: Any) -> SensitivityTable:
    given = {**MEASURED, "widths": {"stem": (8, 4)}, **mixed}
    return detent.score(*network(), images(), target=target(), mixed_precision=given, progress=False)


def same(a: SensitivityTable, b: SensitivityTable) -> bool:
    return all(np.array_equal(one.scores, other.scores) for one, other in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("mixed", "method"),
    [
        ({}, "measuring outputs"),
        ({"points": "usual"}, "(average) and outputs"),
        ({"points": ["stem", "wide"], "weighting": "last_layer"}, "2 points (last_layer) and outputs"),
        ({"points": "usual", "weighting": "exponential", "distances": {"conv": "cosine"}}, "(exponential) and outputs"),
        ({"points": ["wide"], "weighting": "hessian", "point_weights": {"wide": 2.0}}, "1 points (hessian)"),
        ({"metric": largest_change}, "outputs by largest_change"),
    ],
    ids=lambda given: re.sub(" at 0x[0-9a-f]+", "", str(given)),
)
def test_options_reach_the_scores(mixed: dict[str, Any], method: str) -> None:
    graph, stats = network()
    found = scored(**mixed)
    assert method in found.method
    assert same(found, scored(**mixed))
    if mixed:
        assert not same(found, scored())
    # The same scores as of the function below, on the same batches.
    config = detent.MixedPrecisionConfig(**MEASURED, **mixed)
    plans = [detent.plan(graph, stats, target=target(), weights_bits=w, activation_bits=a) for w, a in ((8, 8), (4, 4))]
    placement = place_as_asked(graph, detent.load_target(target()))
    batches = [graph.flatten(batch) for batch in images()[:6].split(3)]
    direct = score_by_measuring(graph, placement, plans, batches, **config.measuring)
    stem = direct.find("stem", "weights")
    np.testing.assert_array_equal(found.find("stem", "weights").scores, stem.scores)


def test_the_last_layer_counts_what_reaches_it() -> None:
    # With one point, the last is the only one; of two, the first counts nothing.
    stem, head, both = (
        scored(points=points, weighting="last_layer") for points in (["stem"], ["wide"], ["stem", "wide"])
    )
    assert same(head, both)
    assert not same(stem, both)
    found = choose({"weights": "60%"}, mixed={**MEASURED, "points": "usual", "weighting": "last_layer"})
    assert found.use["weights"] <= found.limits["weights"]


@pytest.mark.parametrize(
    ("mixed", "message"),
    [
        ({"points": "all"}, '"outputs", "usual" or a list'),
        ({"points": []}, '"outputs", "usual" or a list'),
        ({"points": 3}, '"outputs", "usual" or a list'),
        ({"points": ["stme"]}, "did you mean 'stem'"),
        ({"weighting": "last_layer"}, "a weighting is for points of interest"),
        ({"points": "usual", "weighting": "last"}, "last_layer"),
        ({"points": "usual", "weighting": "hessian"}, "needs `weights`"),
        ({"points": "usual", "point_weights": {"stem": 1.0}}, 'for weighting "hessian" only'),
        ({"points": ["stem"], "weighting": "hessian", "point_weights": {"stme": 1.0}}, "has none for stem"),
        ({"points": "usual", "distances": {"conv": "mae"}}, "distances.conv"),
        ({"points": "usual", "distances": {"convv": "mse"}}, "did you mean 'conv'"),
        ({"distances": {"conv": "kl"}}, "for points of interest"),
        ({"points": "usual", "metric": largest_change, "distances": {"conv": "mse"}}, "takes the place"),
        ({"metric": "mse"}, "metric"),
        ({"loss": "fisher"}, "is for gradients"),
        ({"scores": "probes", "points": "usual"}, "`points` is for measured scores"),
        ({"scores": "probes", "weighting": "last_layer"}, "`weighting` is for measured scores"),
        ({"scores": "probes", "metric": largest_change}, "`metric` is for measured scores"),
    ],
    ids=lambda given: re.sub(" at 0x[0-9a-f]+", "", str(given)),
)
def test_mistakes_come_before_the_work(mixed: dict[str, Any], message: str) -> None:
    def data() -> Iterator[Tensor]:
        raise AssertionError("the data were read")

    given: dict[str, Any] = {"mixed_precision": {**MEASURED, **mixed}, "target": target(), "progress": False}
    with pytest.raises(ConfigError, match=message):
        detent.quantize(network()[0], data, budget={"weights": "60%"}, **given)
    with pytest.raises(ConfigError, match=message):
        detent.score(*network(), data, **given)


def test_a_metric_must_give_numbers() -> None:
    with pytest.raises(ConfigError, match="the metric must return a finite number"):
        scored(metric=lambda wanted, found: float("nan"))
