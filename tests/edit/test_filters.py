"""Filters: what each matches, how they combine, print and survive JSON."""

from __future__ import annotations

import json

import pytest

from detent import edit
from detent.errors import ConfigError
from detent.records.filters import Filter, Operation, filter_from_dict

CONV = Operation(
    name="features.3.conv",
    words=("conv", "conv2d"),
    layer="features.3.conv",
    modules=("net.Net", "net.Block", "torch.nn.modules.conv.Conv2d"),
    position=3,
    positions=5,
)
SILU = Operation(
    name="features.3.act",
    words=("activation", "silu"),
    layer="features.3.act",
    modules=("net.Net", "net.Block", "torch.nn.modules.activation.SiLU"),
    positions=5,
)
CHUNK = Operation(name="split[0]", words=("preserving", "getitem"), layer="", positions=5)
UNKNOWN = Operation(name="fft", positions=5)
ALL = (CONV, SILU, CHUNK, UNKNOWN)

MATCHES = [
    (edit.op("conv"), {CONV}),
    (edit.op("silu"), {SILU}),
    (edit.op("activation"), {SILU}),
    (edit.op("input"), set()),
    (edit.name("features.3.act"), {SILU}),
    (edit.name("features.*"), {CONV, SILU}),
    (edit.name("*.act"), {SILU}),
    (edit.name("split[0]"), {CHUNK}),
    (edit.name("features"), set()),
    (edit.regex(r"\.act$"), {SILU}),
    (edit.regex(r"^3"), set()),
    (edit.module("SiLU"), {SILU}),
    (edit.module("Block"), {CONV, SILU}),
    (edit.module("net.Block"), {CONV, SILU}),
    (edit.module("other.Block"), set()),
    (edit.scope("features.3"), {CONV, SILU}),
    (edit.scope("features"), {CONV, SILU}),
    (edit.scope("features.3.act"), {SILU}),
    (edit.scope("feat"), set()),
    (edit.position(3, 4), {CONV}),
    (edit.position(-2, None), {CONV}),
    (edit.position(None, 3), set()),
    (edit.first(4), {CONV}),
    (edit.first(3), set()),
    (edit.last(2), {CONV}),
    (edit.last(), set()),
    (edit.everything(), set(ALL)),
    (~edit.op("conv"), {SILU, CHUNK, UNKNOWN}),
    (edit.op("conv") | edit.op("silu"), {CONV, SILU}),
    (edit.scope("features") & ~edit.op("conv"), {SILU}),
    (edit.all_of(edit.scope("features"), edit.op("conv")), {CONV}),
    (edit.any_of(edit.op("silu"), edit.name("fft")), {SILU, UNKNOWN}),
    (~(edit.op("conv") | edit.op("silu")), {CHUNK, UNKNOWN}),
]


@pytest.mark.parametrize(("where", "expected"), MATCHES, ids=[repr(where) for where, _ in MATCHES])
def test_a_filter_matches_and_survives_json(where: Filter, expected: set[Operation]) -> None:
    assert {operation for operation in ALL if where.matches(operation)} == expected
    restored = filter_from_dict(json.loads(json.dumps(where.to_dict())))
    assert restored == where
    assert repr(restored) == repr(where)
    assert hash(restored) == hash(where)


@pytest.mark.parametrize(("where", "_"), MATCHES, ids=[repr(where) for where, _ in MATCHES])
def test_the_printed_form_is_python(where: Filter, _: set[Operation]) -> None:
    words = {name: getattr(edit, name) for name in edit.__all__}
    assert eval(repr(where), words) == where


def test_combining_flattens_and_double_negation_cancels() -> None:
    a, b, c = edit.op("conv"), edit.op("silu"), edit.op("add")
    assert a & b & c == edit.all_of(a, b, c)
    assert a | b | c == edit.any_of(a, b, c)
    assert repr((a | b) & ~c) == "(op('conv') | op('silu')) & ~op('add')"
    assert repr(~(a & b)) == "~(op('conv') & op('silu'))"
    assert ~~a == a


WRONG = [
    (lambda: edit.op("silo"), "did you mean 'silu'"),
    (lambda: edit.op("Conv2d"), "did you mean 'conv2d'"),
    (lambda: edit.regex("("), r"regular expression '\(' is not valid"),
    (lambda: edit.name(""), "not empty"),
    (lambda: edit.scope(3), "not empty"),  # type: ignore[arg-type]
    (lambda: edit.first(0), "from 1"),
    (lambda: edit.position(0.5, None), "whole number"),  # type: ignore[arg-type]
    (lambda: edit.op("conv") and edit.op("silu"), "`&`, `|` and `~`"),
    (lambda: edit.op("conv") & "silu", "combines with filters"),  # type: ignore[operator]
    (lambda: edit.any_of(), "matches nothing"),
    (lambda: edit.all_of("conv"), "combines with filters"),  # type: ignore[arg-type]
    (lambda: filter_from_dict({"oop": "conv"}), "did you mean 'op'"),
    (lambda: filter_from_dict({"op": "conv", "name": "x"}), "one key"),
    (lambda: filter_from_dict("conv"), "one key"),
    (lambda: filter_from_dict({"position": [1]}), "two numbers"),
    (lambda: filter_from_dict({"all": {}}), "takes a list"),
    (lambda: filter_from_dict({"op": ["conv"]}), "unknown operation"),
]


@pytest.mark.parametrize(("make", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_no_filter(make: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()  # type: ignore[operator]
    assert __import__("re").search(message.replace("|", r"\|"), str(caught.value))
