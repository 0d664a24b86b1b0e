"""Widths of single tensors: checked, plain data, part of a plan that lasts through saving and revising."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import detent
from detent.errors import ConfigError
from detent.records.distribution import Distribution, Evaluated
from detent.records.plan import QuantPlan
from detent.records.widths import Widths
from tests.edit.networks import gated, images
from tests.mixed_targets import write_target

SOME = Widths(weights={"twice": 4, "head": 2}, activations={"x": 4})


def test_plain_data_and_back() -> None:
    assert Widths.from_dict(SOME.to_dict(), "plan") == SOME
    assert Widths.from_dict(json.loads(json.dumps(SOME.to_dict())), "plan") == SOME
    assert Widths.from_dict({}, "plan") == Widths()
    assert Widths.from_dict({"weights": {"conv": 3}}, "plan") == Widths(weights={"conv": 3})


def test_truth_and_the_least_width() -> None:
    assert not Widths()
    assert SOME
    assert Widths(activations={"x": 8})
    assert (Widths().least, SOME.least, Widths(activations={"x": 5}).least) == (16, 2, 5)


@pytest.mark.parametrize("bits", [0, 17, -4, 4.0, True, "4", None])
def test_what_is_no_width_names_the_tensor(bits: Any) -> None:
    for kind in ("weights", "activations"):
        with pytest.raises(ConfigError, match=r"whole number in 1\.\.16") as error:
            Widths(**{kind: {"conv": bits}})
        assert error.value.where == "conv"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (7, "two tables"),
        ([], "two tables"),
        ({"weights": 4}, "two tables"),
        ({"weights": ["conv"]}, "two tables"),
        ({"weight": {}}, "(?s)unknown table of widths.*'weights'"),
        ({"weights": {"conv": 99}}, "whole number"),
    ],
)
def test_other_data_are_refused(data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        Widths.from_dict(data, "plan.json: widths")
    assert error.value.where in ("plan.json: widths", "conv")


def test_a_distribution_shows_itself() -> None:
    found = Distribution(
        widths=SOME,
        objective=0.0123456,
        bound=0.01,
        gap=0.19,
        limits={"weights": 1000.0},
        use={"weights": 990.0},
        binding=("weights",),
        interactions=True,
        evaluated=(Evaluated(widths=SOME, predicted=0.0123456, measured=0.02),),
    )
    assert found.notes() == (
        "mixed precision: weights 990 of 1000 (binding)",
        "mixed precision: predicted relative error of the outputs 0.0123 with interactions, bound 0.01, gap 0.19",
        "mixed precision: kernels 1x4 1x2, activations 1x4",
        "mixed precision: the best of 1 run on held-out samples: measured error 0.02",
    )
    lines = str(found).splitlines()
    assert tuple(lines[:4]) == found.notes()
    assert [line.split() for line in lines[4:]] == [
        ["tensor", "role", "bits"],
        ["twice", "weights", "4"],
        ["head", "weights", "2"],
        ["x", "activations", "4"],
    ]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_target(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def graph() -> detent.Graph:
    return detent.capture(gated(), images(2))


@pytest.fixture(scope="module")
def stats(graph: detent.Graph) -> detent.Statistics:
    return detent.calibrate(graph, [images()], progress=False)


def test_a_plan_takes_widths_and_keeps_them(
    graph: detent.Graph, stats: detent.Statistics, target: Path, tmp_path: Path
) -> None:
    plan = detent.plan(graph, stats, target=target, widths=SOME)
    assert plan.widths == SOME
    assert {layer: entry.grid.bits for layer, entry in plan.weights.items() if entry.grid.bits != 8} == SOME.weights
    assert [name for name in plan.activations if plan.activation_grid(name).bits != 8] == ["x"]
    plan.save(tmp_path / "plan.json")
    loaded = QuantPlan.load(tmp_path / "plan.json")
    assert loaded.widths == SOME
    assert loaded.to_json() == plan.to_json()
    assert json.loads(plan.to_json())["widths"] == SOME.to_dict()
    assert torch.equal(detent.apply(graph, loaded)(images()), detent.apply(graph, plan)(images()))


def test_a_plan_without_widths_says_nothing_of_them(graph: detent.Graph, stats: detent.Statistics) -> None:
    plan = detent.plan(graph, stats, target="imx500")
    assert "widths" not in json.loads(plan.to_json())
    assert not plan.widths


def test_widths_outlast_a_revision(graph: detent.Graph, stats: detent.Statistics, target: Path) -> None:
    plan = detent.plan(graph, stats, target=target, widths=SOME)
    rule = detent.edit.rule(detent.edit.name("head"), detent.edit.weights(metric="mae"))
    revised = detent.revise(graph, plan, stats, [rule])
    assert revised.widths == SOME
    assert revised.weights["head"].grid.bits == 2
    assert revised.weights["head"].metric == "mae"
    assert revised.weights["twice"].grid.bits == 4
    wide = detent.revise(graph, plan, stats, [detent.edit.rule(detent.edit.name("head"), detent.edit.weights(bits=8))])
    assert wide.weights["head"].grid.bits == 8
    assert wide.weights["twice"] == plan.weights["twice"]


def test_rules_win_over_widths(graph: detent.Graph, stats: detent.Statistics, target: Path) -> None:
    rules = [
        detent.edit.rule(detent.edit.name("twice"), detent.edit.weights(bits=8)),
        detent.edit.rule(detent.edit.name("head"), detent.edit.weights(keep_float=True)),
        detent.edit.rule(detent.edit.name("x"), detent.edit.activations(bits=8)),
    ]
    plan = detent.plan(graph, stats, target=target, widths=SOME, rules=rules)
    assert plan.weights["twice"].grid.bits == 8
    assert plan.weights["head"].grid is None
    assert plan.activation_grid("x").bits == 8


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        (Widths(weights={"haed": 4}), "did you mean 'head'"),
        (Widths(activations={"y": 4}), "unknown value in `widths` 'y'"),
        (Widths(weights={"head": 3}), "no 3-bit weights"),
        (Widths(activations={"x": 16}), "no 16-bit activations"),
        ({"weights": {"head": 4}}, "detent.choose_widths"),
    ],
)
def test_widths_that_cannot_be_are_refused(
    graph: detent.Graph, stats: detent.Statistics, target: Path, widths: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        detent.plan(graph, stats, target=target, widths=widths)


def test_plans_with_other_widths_are_refused(graph: detent.Graph, stats: detent.Statistics, target: Path) -> None:
    text = detent.plan(graph, stats, target=target, widths=SOME).to_json()
    with pytest.raises(ConfigError, match="whole number"):
        QuantPlan.from_json(text.replace('"head": 2}', '"head": "two"}'))
    with pytest.raises(ConfigError, match="two tables"):
        QuantPlan.from_json(json.dumps({**json.loads(text), "widths": [1]}))
