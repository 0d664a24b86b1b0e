"""Rules: what they may ask for, how choices are put together, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import detent
from detent import edit
from detent.errors import ConfigError, FormatError
from detent.records.choice import TensorChoice
from detent.records.rules import Rule, rules_from_data

GRID = detent.Grid.from_dict({"kind": "symmetric", "bits": 8, "signed": True, "threshold": 1.0})

RULES = [
    edit.rule(edit.op("silu"), edit.activations(bits=16)),
    edit.rule(edit.first() | edit.last(), edit.weights(bits=8, kind="power_of_two"), edit.activations(metric="kl")),
    edit.rule(edit.everything(), edit.activations(metric="lp", p=3.0, z_threshold=6.0)),
    edit.rule(edit.scope("head"), edit.weights(threshold=[0.5, 0.25]), edit.activations(lower=-1, upper=2.0)),
    edit.rule(~edit.name("x"), edit.weights(keep_float=True), edit.activations(grid=GRID, freeze=True)),
    edit.rule(edit.regex("^a"), edit.weights(bits=4), edit.weights(freeze=True)),
]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_rule_survives_json(rule: Rule) -> None:
    assert Rule.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule


def test_a_rule_prints_as_it_is_written() -> None:
    assert repr(RULES[0]) == "rule(op('silu'), activations(bits=16))"
    assert repr(RULES[3]) == ("rule(scope('head'), weights(threshold=(0.5, 0.25)), activations(lower=-1.0, upper=2.0))")
    assert RULES[5] == edit.rule(edit.regex("^a"), edit.weights(bits=4, freeze=True))


def test_files(tmp_path: Path) -> None:
    edit.save_rules(RULES, tmp_path / "rules.json")
    assert edit.load_rules(tmp_path / "rules.json") == tuple(RULES)
    assert len((tmp_path / "rules.json").read_text().splitlines()) == len(RULES) + 2
    edit.save_rules([], tmp_path / "none.json")
    assert edit.load_rules(tmp_path / "none.json") == ()
    (tmp_path / "broken.json").write_text("[{")
    with pytest.raises(FormatError, match="not valid JSON"):
        edit.load_rules(tmp_path / "broken.json")
    (tmp_path / "wrong.json").write_text(
        '[{"where": {"op": "silu"}, "weights": {"bits": 4}}, {"where": {"op": "silu"}}]'
    )
    with pytest.raises(ConfigError, match="asks for nothing") as caught:
        edit.load_rules(tmp_path / "wrong.json")
    assert caught.value.where is not None
    assert caught.value.where.endswith("wrong.json: rule 2")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"bits": 17}, "1..16"),
    ({"bits": True}, "1..16"),
    ({"bit": 8}, "did you mean 'bits'"),
    ({"kind": "pow2"}, "unknown grid kind"),
    ({"metric": "msee"}, "did you mean 'mse'"),
    ({"p": 9.0}, "0.5..6"),
    ({"z_threshold": 0}, "positive"),
    ({"z_threshold": float("nan")}, "positive"),
    ({"threshold": 0.0}, "positive"),
    ({"threshold": float("inf")}, "finite"),
    ({"threshold": "wide"}, "a number or a list"),
    ({"threshold": 1.0, "lower": 0.0, "upper": 1.0}, "not both"),
    ({"lower": 0.0}, "given together"),
    ({"lower": 1.0, "upper": 0.0}, "above"),
    ({"lower": [0.0, 1.0], "upper": 2.0}, "same length"),
    ({"threshold": 1.0, "metric": "mse"}, "nothing to search"),
    ({"metric": "mse", "p": 2.0}, "exponent of the 'lp'"),
    ({"keep_float": True, "bits": 8}, "cannot go with `bits`"),
    ({"keep_float": False}, "true or absent"),
    ({"grid": GRID, "bits": 8}, "cannot go with `bits`"),
    ({"grid": 8}, "must be a detent.Grid"),
    ({"freeze": "yes"}, "true or false"),
    ({"group_size": 0}, "from 1"),
    ({"group_size": 4, "threshold": 1.0}, "nothing to search"),
    ({"kind": "lut", "group_size": 4}, "none for each group"),
    ({"kind": "lut", "metric": "kl"}, "squared error"),
    ({"kind": "lut_power_of_two", "threshold": 1.0}, "give a `grid`"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[message for _, message in WRONG])
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        edit.activations(**options)
    assert message in str(caught.value)


def test_rules_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match="asks for nothing"):
        edit.rule(edit.op("conv"))
    with pytest.raises(ConfigError, match="`z_threshold` is for activations"):
        edit.rule(edit.op("conv"), edit.weights(z_threshold=3.0))
    with pytest.raises(ConfigError, match="`group_size` is for weights"):
        edit.rule(edit.op("conv"), edit.activations(group_size=4))
    with pytest.raises(ConfigError, match=r"`where` is a filter"):
        edit.rule("conv", edit.weights(bits=4))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="an action is"):
        edit.rule(edit.op("conv"), {"bits": 4})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="bits=4 and bits=8"):
        edit.rule(edit.op("conv"), edit.weights(bits=4), edit.weights(bits=8))
    for data, message in (
        ({"op": "conv"}, "are a list"),
        ([{"where": {"op": "conv"}, "weight": {"bits": 4}}], "did you mean 'weights'"),
        ([{"weights": {"bits": 4}}], "needs `where`"),
        ([3], "a rule is an object"),
        ([{"where": {"op": "conv"}, "weights": 4}], "object of options"),
    ):
        with pytest.raises(ConfigError, match=message):
            rules_from_data(data, "rules")


OVERLAYS: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({"bits": 4}, {"bits": 8}, {"bits": 8}),
    ({"bits": 4}, {"metric": "kl"}, {"bits": 4, "metric": "kl"}),
    ({"bits": 4, "freeze": True}, {"keep_float": True}, {"keep_float": True, "freeze": True}),
    ({"keep_float": True}, {"bits": 8}, {"bits": 8}),
    ({"grid": GRID}, {"metric": "kl"}, {"metric": "kl"}),
    ({"grid": GRID}, {"freeze": True}, {"grid": GRID, "freeze": True}),
    ({"bits": 4, "metric": "kl"}, {"threshold": 2.0}, {"bits": 4, "threshold": 2.0}),
    ({"bits": 4, "threshold": 2.0}, {"metric": "kl"}, {"bits": 4, "metric": "kl"}),
    ({"threshold": 2.0}, {"lower": 0.0, "upper": 1.0}, {"lower": 0.0, "upper": 1.0}),
    ({"metric": "lp", "p": 3.0}, {"metric": "mse"}, {"metric": "mse"}),
    ({"bits": 4}, {"grid": GRID}, {"grid": GRID}),
]


@pytest.mark.parametrize(("earlier", "later", "expected"), OVERLAYS)
def test_a_later_choice_wins(earlier: dict[str, Any], later: dict[str, Any], expected: dict[str, Any]) -> None:
    assert TensorChoice(**earlier).overlaid(TensorChoice(**later)) == TensorChoice(**expected)
