"""Every rewrite keeps the float function on random networks, and changes neither the graph it is given nor the model.

A rewrite is one line in `REWRITES`, or in `WITH_STATISTICS` if it needs to know what calibration saw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Final

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from detent.config import QuantizationConfig
from detent.graph import Graph, capture
from detent.records.statistics import Statistics
from detent.statistics import calibrate
from detent.targets import load_target
from detent.transforms import (
    absorb_high_biases,
    bound_relu6,
    collapse_linear,
    collapse_residual,
    equalize_activations,
    equalize_layers,
    fold_batch_norm,
    fold_forward,
    restore_norms,
    shift_negative,
    shift_softmax,
    smooth,
    split_attention,
)
from tests.transforms.random_networks import Description, RandomNetwork, example, networks

RELATIVE: Final = 1e-5
"""Largest difference allowed, relative to the largest output."""

REWRITES: Final[dict[str, Callable[[Graph], Graph]]] = {
    "split_attention": split_attention,
    "restore_norms": restore_norms,
    "fold_batch_norm": fold_batch_norm,
    "fold_forward": fold_forward,
    "collapse_linear": collapse_linear,
    "collapse_residual": collapse_residual,
    "equalize_layers": lambda graph: equalize_layers(fold_batch_norm(graph)),
    "equalize_activations": lambda graph: equalize_activations(fold_batch_norm(graph)),
    "bound_relu6": lambda graph: bound_relu6(fold_batch_norm(graph)),
}
IN_A_ROW: Final = "all in a row"
WITH_STATISTICS: Final[dict[str, Callable[[Graph, Statistics], Graph]]] = {
    "absorb_high_biases": absorb_high_biases,  # exact on the calibration data only, which is what is compared
    "shift_softmax": shift_softmax,
    "smooth": partial(smooth, alpha=0.5),
    "shift_negative": partial(
        shift_negative,
        target=load_target("imx500"),
        config=QuantizationConfig(shift_negative_ratio=1e6),  # whatever the tail, so that most values are shifted
    ),
}


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


@cache
def _descriptions() -> tuple[Description, ...]:
    """The networks all rewrites are tried on; drawn before any is captured, which is what takes time."""
    drawn: dict[Description, None] = {}

    @settings(
        max_examples=130,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(networks())
    def collect(description: Description) -> None:
        drawn[description] = None

    collect()
    return tuple(drawn)


def test_there_are_enough_networks() -> None:
    assert len(_descriptions()) >= 100


@pytest.mark.parametrize("name", [*REWRITES, IN_A_ROW])
def test_a_rewrite_keeps_the_float_function(name: str) -> None:
    changed = 0
    for description in _descriptions():
        case = _captured(description)
        graph = case.graph
        for rewrite in REWRITES.values() if name == IN_A_ROW else [REWRITES[name]]:
            graph = rewrite(graph)
        _check(case, case.graph, graph, description)
        assert case.graph.fingerprint() == case.fingerprint, description
        changed += graph.fingerprint() != case.fingerprint
    assert changed, "no network has the pattern: draw it in random_networks"


@pytest.mark.parametrize("name", WITH_STATISTICS)
def test_a_rewrite_by_statistics_keeps_the_float_function(name: str) -> None:
    changed = 0
    for description in _descriptions():
        case = _captured(description)
        graph, statistics = _folded(description)
        fingerprint = graph.fingerprint()
        rewritten = WITH_STATISTICS[name](graph, statistics)
        _check(case, graph, rewritten, description)
        assert graph.fingerprint() == fingerprint, description
        changed += rewritten.fingerprint() != fingerprint
    assert changed, "no network has the pattern: draw it in random_networks"


def _check(case: _Captured, graph: Graph, rewritten: Graph, description: Description) -> None:
    x = example(description)
    with torch.no_grad():
        outputs = rewritten(x)
    assert len(outputs) == len(case.outputs), description
    for wanted, got in zip(case.outputs, outputs, strict=True):
        assert got.shape == wanted.shape, description
        assert (got - wanted).abs().max() <= RELATIVE * wanted.abs().max(), description
    state = case.model.state_dict()
    assert all(torch.equal(value, case.state[key]) for key, value in state.items()), description
    # Another number of samples than was captured.
    statistics = calibrate(rewritten, example(description, samples=5), progress=False, batch_size=4)
    assert statistics.samples == 5
    assert len(statistics), description
