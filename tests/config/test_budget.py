"""Budgets: what a limit may look like, and what a mistake says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest

from detent.config.budget import Budget
from detent.errors import ConfigError


@dataclass(frozen=True)
class Figures:
    weights: float = 1000.0
    activations: float = 400.0
    total: float = 1400.0
    bit_operations: float = 6.4e9
    latency: float | None = 0.02


@pytest.mark.parametrize(
    ("options", "limits"),
    [
        ({}, {}),
        ({"weights": 500}, {"weights": 500.0}),
        ({"weights": 500.5}, {"weights": 500.5}),
        ({"weights": "50%"}, {"weights": 500.0}),
        ({"weights": " 12.5 % "}, {"weights": 125.0}),
        ({"weights": "150%"}, {"weights": 1500.0}),
        ({"weights": "1.5MB"}, {"weights": 1.5e6}),
        ({"activations": "200 kB"}, {"activations": 2e5}),
        ({"activations": "200KB"}, {"activations": 2e5}),
        ({"total": "64KiB"}, {"total": 65536.0}),
        ({"total": "2 MiB"}, {"total": 2.0**21}),
        ({"total": "800 B"}, {"total": 800.0}),
        ({"total": "800"}, {"total": 800.0}),
        ({"total": "1e3"}, {"total": 1000.0}),
        ({"total": ".5GB"}, {"total": 5e8}),
        ({"bit_operations": "3 GBOPs"}, {"bit_operations": 3e9}),
        ({"bit_operations": "50%"}, {"bit_operations": 3.2e9}),
        ({"latency": "5 ms"}, {"latency": 0.005}),
        ({"latency": "50%"}, {"latency": 0.01}),
        ({"latency": "3 Mcycles"}, {"latency": 3e6}),
        ({"weights": "50%", "total": 10}, {"weights": 500.0, "total": 10.0}),
    ],
)
def test_limits(options: dict[str, Any], limits: dict[str, float]) -> None:
    budget = Budget(**options)
    found = budget.limits(Figures())
    assert found == pytest.approx(limits)
    assert list(found) == list(limits)
    assert budget.limited == tuple(limits)
    assert budget.differences() == options
    assert Budget(**budget.differences()) == budget


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": "50%"}, "did you mean 'weights'"),
        ({"weights": 0}, "positive"),
        ({"weights": -5}, "positive"),
        ({"weights": "0%"}, "positive"),
        ({"weights": "-5%"}, "positive"),
        ({"weights": math.nan}, "finite"),
        ({"weights": math.inf}, "finite"),
        ({"weights": 10**400}, "finite"),
        ({"weights": "1e999"}, "finite"),
        ({"weights": True}, "a limit is a number"),
        ({"weights": [1]}, "a limit is a number"),
        ({"weights": ""}, "no amount"),
        ({"weights": "half"}, "no amount"),
        ({"weights": "1,000"}, "no amount"),
        ({"weights": "1 2"}, "no amount"),
        ({"weights": "nan"}, "no amount"),
        ({"weights": "50%%"}, "no amount"),
        ({"weights": "5 mB"}, "unknown unit 'mB'"),
        ({"weights": "5 MiBs"}, "did you mean 'MiB'"),
        ({"weights": "5 GBOPs"}, "unknown unit"),
        ({"weights": "5 ms"}, "unknown unit"),
        ({"bit_operations": "5 MB"}, "unknown unit"),
        ({"latency": "5 MB"}, "unknown unit"),
    ],
)
def test_a_mistake_names_the_limit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Budget(**options)
    assert caught.value.where is None or next(iter(options)) in caught.value.where


def test_it_is_frozen_and_keyword_only() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Budget().weights = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        Budget("50%")  # type: ignore[call-arg]


def test_printing_shows_what_is_limited() -> None:
    assert repr(Budget()) == "Budget()"
    assert str(Budget(weights="50%", total=10)) == "Budget(weights='50%', total=10)"


def test_latency_needs_a_table() -> None:
    with pytest.raises(ConfigError, match="latency table"):
        Budget(latency="50%").limits(Figures(latency=None))
    assert Budget(latency=None).limits(Figures(latency=None)) == {}


def test_a_mapping_serves_for_a_budget() -> None:
    assert Budget.resolve({"weights": "50%"}) == Budget(weights="50%")
    assert Budget.resolve(Budget(total=3)) == Budget(total=3)
    for wrong in ("50%", 3, None, {1: 2}):
        with pytest.raises(ConfigError, match="Budget or a mapping"):
            Budget.resolve(wrong)  # type: ignore[arg-type]
