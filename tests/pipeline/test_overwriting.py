"""`configuration_overwrite`: widths in place of the solver's, by number or by name, and what does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from torch import Tensor

import detent
from detent.errors import ConfigError, InfeasibleBudgetError
from detent.records.sensitivity import SensitivityTable
from tests.pipeline.mixed_network import QUICK, choose, images, network, target


@pytest.fixture(scope="module")
def table() -> SensitivityTable:
    return detent.score(*network(), images(), target=target(), mixed_precision=QUICK, progress=False)


def test_all_widths_by_their_numbers(table: SensitivityTable) -> None:
    free = [one for one in table if len(one.bits) > 1]
    lines = [line.split() for line in str(table).splitlines()[2:]]
    assert [(line[0], int(line[2])) for line in lines] == [(one.name, at) for at, one in enumerate(free)]
    indices = [at % len(one.bits) for at, one in enumerate(free)]
    found = choose({"total": "100%"}, mixed={"configuration_overwrite": indices}, table=table)
    for one, at in zip(free, indices, strict=True):
        widths = found.widths.weights if one.role == "weights" else found.widths.activations
        assert {widths[member] for member in one.members} == {one.bits[at]}
    assert found.overwritten == len(free)
    assert found.evaluated == ()
    assert any(f"{len(free)} tensors are those of `configuration_overwrite`" in note for note in found.notes())
    # Scores made on the way are those of a table.
    again = choose({"total": "100%"}, mixed={"configuration_overwrite": tuple(indices)})
    assert (again.widths, again.objective) == (found.widths, found.objective)


def test_some_widths_by_name(table: SensitivityTable) -> None:
    given = {"wide": 8, "relu": 4, "weights of head": 2}
    found = choose({"total": "70%"}, mixed={"configuration_overwrite": given}, table=table)
    assert (found.widths.weights["wide"], found.widths.weights["head"], found.widths.activations["relu"]) == (8, 2, 4)
    assert found.use["total"] <= found.limits["total"]
    assert found.overwritten == 3
    free = choose({"total": "70%"}, mixed={"interactions": False, "evaluated": 0}, table=table)
    bound = choose(
        {"total": "70%"},
        mixed={"interactions": False, "evaluated": 0, "configuration_overwrite": given},
        table=table,
    )
    assert bound.objective >= free.objective


def test_only_tensors_with_a_choice_under_the_budget_are_counted(table: SensitivityTable) -> None:
    kernels = [one for one in table if one.role == "weights"]
    found = choose({"weights": "100%"}, mixed={"configuration_overwrite": [1] * len(kernels)})
    assert set(found.widths.weights.values()) == {4}
    assert set(found.widths.activations.values()) == {8}
    # Of the layer and the value of this name, only the kernel has a choice.
    found = choose({"weights": "100%"}, mixed={"configuration_overwrite": {"head": 2}}, table=table)
    assert (found.widths.weights["head"], found.widths.activations["head"]) == (2, 8)


def test_it_also_holds_where_widths_are_raised(table: SensitivityTable) -> None:
    metrics = iter([1.0, *[0.0] * 100])
    mixed = {**QUICK, "configuration_overwrite": {"wide": 4}}
    given: dict[str, Any] = {"target": target(), "mixed_precision": mixed, "table": table, "progress": False}
    found = detent.keep_accuracy(*network(), images(), lambda model: next(metrics), 0.5, raised_at_once=4, **given)
    assert found.widths.weights["wide"] == 4
    assert {bits for layer, bits in found.widths.weights.items() if layer != "wide"} == {8}
    front = detent.pareto(*network(), images(), "total", ["90%", "70%"], **given)
    assert [point.distribution.widths.weights["wide"] for point in front.points] == [4, 4]


def test_a_budget_that_is_exceeded_is_told(table: SensitivityTable) -> None:
    everything = [0] * sum(len(one.bits) > 1 for one in table)
    with pytest.raises(InfeasibleBudgetError, match="configuration_overwrite") as error:
        choose({"total": "50%"}, mixed={"configuration_overwrite": everything}, table=table)
    (name, *_) = error.value.needed
    assert error.value.needed[name] > error.value.allowed[name]
    assert f"{error.value.needed[name]:g}" in error.value.what
    assert "narrower" in str(error.value)
    with pytest.raises(InfeasibleBudgetError, match="configuration_overwrite"):
        choose({"weights": "30%"}, mixed={"configuration_overwrite": {"twice": 8, "stem": 8, "wide": 8}})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([0, 1], r"(?s)\d+ tensors have a choice of widths, and 2 indices are given.*detent\.score"),
        ([], "0 indices are given"),
        ([3, 0, 0, 0], r"(?s)index 3 \(number 0\) is none of weights of stem.*0 for 8 bits, 1 for 4 bits, 2 for 2"),
        ([0, 0, 0, -1], r"index -1 \(number 3\)"),
        ({"stme": 4}, "did you mean 'stem'"),
        ({"stem": 3}, r"(?s)3 bits are no candidate of weights of stem.*8, 4, 2"),
        ({"relu": 4}, "4 bits are no candidate of activations of relu"),
        ({"stem": "4"}, "'stem': '4'"),
        ({"stem": True}, "'stem': True"),
        ({"stem": 17}, "'stem': 17"),
        ({4: 4}, "4: 4"),
        ("0123", "a list of candidate indices"),
        (4, "a list of candidate indices"),
        ([0, 0.0, 0, 0], "a list of candidate indices"),
        ([True, 0, 0, 0], "a list of candidate indices"),
    ],
    ids=str,
)
def test_what_does_not_fit(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        choose({"weights": "70%"}, mixed={"configuration_overwrite": given})
    assert "configuration_overwrite" in (error.value.where or "")


def test_a_name_of_two_tensors_is_refused(table: SensitivityTable) -> None:
    with pytest.raises(ConfigError, match="'weights of head' or 'activations of head'"):
        choose({"total": "70%"}, mixed={"configuration_overwrite": {"head": 4}}, table=table)


def test_names_are_checked_before_calibration() -> None:
    def data() -> Iterator[Tensor]:
        raise AssertionError("the data were read")

    mixed = {"configuration_overwrite": {"stme": 4}}
    with pytest.raises(ConfigError, match="did you mean 'stem'"):
        detent.quantize(network()[0], data, budget={"weights": "50%"}, mixed_precision=mixed, target=target())
