"""Every rewrite keeps the float function on random networks, and changes neither the graph it is given nor the model.

A rewrite is one line in `REWRITES`, or in `WITH_STATISTICS` if it needs to know what calibration saw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from detent.graph import Graph, capture
from detent.records.statistics import Statistics
from detent.statistics import calibrate
from detent.transforms import equalize_layers, fold_batch_norm
from tests.transforms.random_networks import Description, RandomNetwork, example, networks

RELATIVE: Final = 1e-5
"""Largest difference allowed, relative to the largest output."""

REWRITES: Final[dict[str, Callable[[Graph], Graph]]] = {
    "fold_batch_norm": fold_batch_norm,
    "equalize_layers": lambda graph: equalize_layers(fold_batch_norm(graph)),
}
WITH_STATISTICS: Final[dict[str, Callable[[Graph, Statistics], Graph]]] = {}


@dataclass(frozen=True)
class _Captured:
    model: RandomNetwork
    graph: Graph
    fingerprint: str
    state: dict[str, torch.Tensor]
    outputs: tuple[torch.Tensor, ...]


@cache
def _captured(description: Description) -> _Captured:
    """A random network and its graph: all rewrites are tried on the same ones."""
    model = RandomNetwork(description)
    x = example(description)
    graph = capture(model, x)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        outputs = model(x)
    return _Captured(model, graph, graph.fingerprint(), state, outputs)


@cache
def _folded(description: Description) -> tuple[Graph, Statistics]:
    """What a rewrite with statistics starts from: norms are folded before calibration."""
    graph = fold_batch_norm(_captured(description).graph)
    return graph, calibrate(graph, example(description), progress=False, batch_size=4)


# No shrinking: descriptions are short, and every smaller one would be captured anew.
laws = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.parametrize("name", REWRITES)
@laws
@given(networks())
def test_a_rewrite_keeps_the_float_function(name: str, description: Description) -> None:
    case = _captured(description)
    _check(case, case.graph, REWRITES[name](case.graph), description)
    assert case.graph.fingerprint() == case.fingerprint


@pytest.mark.parametrize("name", WITH_STATISTICS)
@laws
@given(networks())
def test_a_rewrite_by_statistics_keeps_the_float_function(name: str, description: Description) -> None:
    case = _captured(description)
    graph, statistics = _folded(description)
    fingerprint = graph.fingerprint()
    _check(case, graph, WITH_STATISTICS[name](graph, statistics), description)
    assert graph.fingerprint() == fingerprint


def _check(case: _Captured, graph: Graph, rewritten: Graph, description: Description) -> None:
    x = example(description)
    with torch.no_grad():
        outputs = rewritten(x)
    assert len(outputs) == len(case.outputs)
    for wanted, got in zip(case.outputs, outputs, strict=True):
        assert got.shape == wanted.shape
        assert (got - wanted).abs().max() <= RELATIVE * wanted.abs().max()
    assert rewritten is not graph
    assert all(torch.equal(value, case.state[key]) for key, value in case.model.state_dict().items())
    # Another number of samples than was captured.
    statistics = calibrate(rewritten, example(description, samples=5), progress=False, batch_size=4)
    assert statistics.samples == 5
    assert len(statistics)
