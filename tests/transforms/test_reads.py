"""Statistics of only what rewrites read make them do exactly what statistics of everything do."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn

import detent
from detent.config import QuantizationConfig
from detent.errors import ConfigError
from detent.graph import Graph, capture
from detent.records.statistics import Statistics
from detent.statistics import calibrate
from detent.statistics.observation import observed_values
from detent.targets import load_target
from detent.transforms import Reads, fold_batch_norm, read_by_rewrites
from tests.transforms.random_networks import Description, RandomNetwork, example, networks

OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "bias_absorption": {"bias_absorption": True},
    "softmax_shift": {"softmax_shift": True},
    "smooth_quant": {"smooth_quant": True},
    "shift_negative": {"shift_negative": True, "shift_negative_ratio": 1e6},
    "all": {"bias_absorption": True, "softmax_shift": True, "smooth_quant": True, "shift_negative": True},
}


class Net(nn.Module):
    """Something to read for each rewrite: ReLU between layers, a softmax, a norm and a moved value before linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1)
        self.gate = nn.SiLU()
        self.norm, self.linear = nn.LayerNorm(6), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.gate(self.second(torch.relu(self.first(x))))
        return torch.softmax(self.linear(self.norm(x.flatten(2).transpose(1, 2))), -1)


def _reads(graph: Graph, options: dict[str, Any]) -> Reads:
    everything = [observation.name for observation in observed_values(graph, None, [])]
    return read_by_rewrites(graph, QuantizationConfig(**options), everything)


def _everything_and_reads(graph: Graph, x: torch.Tensor, options: dict[str, Any]) -> tuple[Statistics, Statistics]:
    reads = _reads(graph, options)
    everything = calibrate(graph, x, progress=False, batch_size=4)
    if not reads.values:
        return everything, Statistics({}, 0, graph.fingerprint())
    return everything, calibrate(graph, x, progress=False, batch_size=4, values=reads.values, channels=reads.channels)


def _result(graph: Graph, seen: Statistics, options: dict[str, Any]) -> tuple[object, ...]:
    try:
        after = detent.transform(graph, seen, target="imx500", **options)
    except ConfigError as error:  # no value that the target could serve
        return (str(error),)
    return after.fingerprint(), after.notes, after.module.code


@cache
def _descriptions() -> tuple[Description, ...]:
    drawn: dict[Description, None] = {}

    @settings(
        max_examples=40,
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


@cache
def _captured(description: Description) -> Graph:
    return fold_batch_norm(capture(RandomNetwork(description), example(description)))


@pytest.mark.parametrize("name", OPTIONS)
def test_random_networks_become_the_same(name: str) -> None:
    options, changed = OPTIONS[name], 0
    for description in _descriptions():
        graph = _captured(description)
        everything, read = _everything_and_reads(graph, example(description), options)
        expected = _result(graph, everything, options)
        assert _result(graph, read, options) == expected, description
        changed += expected[0] != graph.fingerprint()
    assert changed


def test_each_rewrite_names_what_it_reads() -> None:
    graph = capture(Net().eval(), torch.randn(2, 3, 4, 4))
    assert _reads(graph, {}) == Reads((), channels=False)
    assert _reads(graph, {"bias_absorption": True}) == Reads(("first",), channels=True)
    assert _reads(graph, {"softmax_shift": True}) == Reads(("linear",), channels=False)
    assert _reads(graph, {"smooth_quant": True}) == Reads(("norm",), channels=True)
    assert _reads(graph, {"shift_negative": True}) == Reads(("gate",), channels=False)
    assert _reads(graph, OPTIONS["all"]) == Reads(("first", "gate", "norm", "linear"), channels=True)


def test_a_value_that_is_not_observed_is_not_named() -> None:
    graph = capture(Net().eval(), torch.randn(2, 3, 4, 4))
    config = QuantizationConfig(bias_absorption=True, softmax_shift=True)
    # Behind a ReLU the same is known as before it.
    assert read_by_rewrites(graph, config, ["relu"]).values == ("relu",)
    assert read_by_rewrites(graph, config, ["norm"]).values == ()


def test_quantize_reads_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    x, graph = torch.randn(32, 3, 4, 4), capture(Net().eval(), torch.randn(2, 3, 4, 4))
    asked: list[tuple[object, object]] = []

    def spy(graph: Graph, data: Any, **options: Any) -> Statistics:
        asked.append((options["values"], options["channels"]))
        return calibrate(graph, data, **options)

    monkeypatch.setattr("detent.pipeline.calibrate", spy)
    options: dict[str, Any] = {
        "bias_correction": "none",
        "weights_bits": 8,
        "target": load_target("imx500"),
        "progress": False,
    }
    quantized = detent.quantize(graph, x, **options, **OPTIONS["all"])
    assert asked[0] == (("first", "gate", "norm", "linear"), True)
    assert len(asked) == 2
    whole = detent.transform(graph, target="imx500")
    whole = detent.transform(whole, calibrate(whole, x, progress=False), target="imx500", **OPTIONS["all"])
    assert quantized.plan.graph == whole.fingerprint()


def test_quantize_does_not_run_a_network_that_has_nothing_to_rewrite(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = capture(nn.Linear(4, 4).eval(), torch.randn(2, 4))
    runs: list[object] = []

    def spy(graph: Graph, data: Any, **options: Any) -> Statistics:
        runs.append(options["values"])
        return calibrate(graph, data, **options)

    monkeypatch.setattr("detent.pipeline.calibrate", spy)
    detent.quantize(graph, torch.randn(16, 4), softmax_shift=True, bias_correction="none", progress=False)
    assert len(runs) == 1
