"""Targets: the built-in facts, user files, and what a mistake in a file says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detent.errors import ConfigError, FormatError
from detent.targets import KINDS, OP_NAMES, Target, load_target, target_names

MINIMAL: dict[str, Any] = {
    "schema_version": 1,
    "name": "mine",
    "version": "1",
    "description": "A test.",
    "sources": [],
    "defaults": {"weights": None, "bias_bits": None, "activations": {"kind": "symmetric", "bits": [8], "signed": None}},
}


def write(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps({**MINIMAL, **changes}))
    return path


def test_built_in_targets_are_the_documented_ones() -> None:
    assert target_names() == ["akida1", "akida2", "default", "imx500", "onnxruntime", "qnn", "tensorrt", "tflite"]


@pytest.mark.parametrize("name", target_names())
def test_every_built_in_target_loads_under_its_own_name_with_sources(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert target.sources
    assert all(source.startswith("https://") for source in target.sources)
    for kind in ("conv", "linear"):
        assert target.rule(kind).weights is not None
        assert target.rule(kind).quantize_inputs
    assert ("conv", "relu") in target.fusing


@pytest.mark.parametrize("name", [name for name in target_names() if name != "akida1"])
def test_kernels_have_8_bits_per_channel_unless_the_chip_is_of_4(name: str) -> None:
    target = load_target(name)
    for kind in ("conv", "conv_transposed", "linear"):
        weights = target.rule(kind).weights
        assert weights is not None
        assert weights.bits[0] == 8
        assert weights.per_channel


def test_no_word_means_two_operations() -> None:
    words = [*KINDS, *(name for names in KINDS.values() for name in names)]
    assert sorted(words) == sorted(OP_NAMES)


def test_imx500_facts() -> None:
    target = load_target("imx500")
    rule = target.rule("conv")
    assert rule.weights is not None
    assert rule.weights.bits == (8, 4, 2)
    assert (rule.activations.kind, rule.activations.bits, rule.activations.signed) == ("power_of_two", (8, 16), None)
    assert rule.activations.at(16).signed is True
    assert rule.activations.at(8).signed is None
    assert rule.input_bits == (8,)
    assert target.rule("add").input_bits == (8, 16)
    assert target.rule("mean").activations.bits == (8,)
    assert rule.bias_bits is None
    assert ("conv", "prelu") in target.fusing
    assert ("linear", "prelu") not in target.fusing
    assert target.channel_multiples == {8: 32, 4: 64, 2: 128}


def test_akida1_is_of_4_bits_behind_its_inputs() -> None:
    target = load_target("akida1")
    for kind in ("conv", "linear"):
        rule = target.rule(kind)
        assert rule.weights is not None
        assert (rule.weights.kind, rule.weights.bits, rule.weights.per_channel) == ("power_of_two", (4, 2), False)
        assert (rule.activations.kind, rule.activations.bits) == ("power_of_two", (4, 2))
    # Inputs have the rule of operations without one of their own.
    assert target.defaults.activations.bits == (8,)
    assert target.rule("conv_transposed").weights is None
    assert not target.quantize_model_outputs


def test_akida2_has_int8_activations_without_zero_points() -> None:
    target = load_target("akida2")
    for kind in ("conv", "conv_transposed", "linear", "add", "cat", "pool", "mean"):
        rule = target.rule(kind).activations
        assert (rule.kind, rule.bits, rule.signed) == ("power_of_two", (8,), True)
    assert target.defaults.activations.signed is None
    weights = target.rule("conv").weights
    assert weights is not None
    assert (weights.kind, weights.bits, weights.narrow_range) == ("symmetric", (8, 4), True)
    assert target.quantize_model_outputs


def test_tflite_prescribes_grids_exactly() -> None:
    target = load_target("tflite")
    softmax = target.rule("softmax").fixed_output(8)
    assert softmax is not None
    assert softmax.limits == (0.0, 255 / 256)
    tanh = target.rule("activation", "tanh").fixed_output(8)
    assert tanh is not None
    assert tanh.limits == (-1.0, 127 / 128)
    in_16_bits = target.rule("softmax").fixed_output(16)
    assert in_16_bits is not None
    assert (in_16_bits.scale, in_16_bits.zero_point) == (2.0**-15, 0)
    assert target.rule("softmax", "log_softmax").activations.bits == (8,)
    assert target.rule("pool").output_grid == "input"
    assert target.rule("cat").inputs_share_output_grid
    assert target.rule("activation", "silu") == target.defaults
    assert target.rule("activation", "gelu").activations.bits == (8,)


def test_tflite_in_16_bits_is_symmetric_and_of_one_width() -> None:
    rule = load_target("tflite").rule("conv")
    assert (rule.activations.kind, rule.activations.at(16).kind, rule.activations.at(16).signed) == (
        "uniform",
        "symmetric",
        True,
    )
    assert rule.input_bits == "output"


def test_tensorrt_quantizes_only_what_integer_kernels_read() -> None:
    target = load_target("tensorrt")
    assert target.rule("conv").quantize_inputs
    assert target.rule("conv").output_grid == "none"
    assert not target.rule("softmax").quantize_inputs
    assert target.rule("add").activations.signed is True
    assert not target.quantize_model_outputs


def test_a_loaded_target_is_returned_as_it_is() -> None:
    target = load_target("default")
    assert load_target(target) is target
    with pytest.raises(ValueError, match="frozen"):
        target.name = "other"  # type: ignore[misc]


def test_a_user_file_extends_a_built_in_target_and_overrides_one_key(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"extends": "imx500", "name": "mine", "ops": {"conv": {"weights": {"bits": [4]}}}}))
    target, base = load_target(path), load_target("imx500")
    assert target.name == "mine"
    conv = target.rule("conv").weights
    assert conv is not None
    assert (conv.bits, conv.kind) == ((4,), "symmetric")
    assert target.rule("linear") == base.rule("linear")
    assert target.fusing == base.fusing


def test_extends_is_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "base.json", version="7")
    child = tmp_path / "sub" / "child.json"
    child.write_text(json.dumps({"extends": "../base.json", "name": "child"}))
    assert load_target(child).version == "7"


def test_rules_of_activations_build_on_the_rule_of_the_kind(tmp_path: Path) -> None:
    ops = {"activation": {"quantize_inputs": False}, "relu": {"output_grid": "none"}}
    target = load_target(write(tmp_path / "t.json", ops=ops))
    relu = target.rule("activation", "relu")
    assert (relu.quantize_inputs, relu.output_grid) == (False, "none")
    assert target.rule("activation", "gelu").quantize_inputs is False
    assert target.rule("add").quantize_inputs is True


def test_fusing_patterns_with_alternatives_expand(tmp_path: Path) -> None:
    target = load_target(write(tmp_path / "t.json", fusing=[[["conv", "linear"], "add", ["relu", "tanh"]]]))
    assert target.fusing == (
        ("conv", "add", "relu"),
        ("conv", "add", "tanh"),
        ("linear", "add", "relu"),
        ("linear", "add", "tanh"),
    )


def test_choosing_bits() -> None:
    weights = load_target("imx500").rule("conv").weights
    assert weights is not None
    assert weights.choose_bits(None, what="weights", target="imx500") == 8
    assert weights.choose_bits(4, what="weights", target="imx500") == 4
    with pytest.raises(ConfigError, match=r"'imx500' has no 3-bit weights(.|\n)*choose among 2, 4, 8"):
        weights.choose_bits(3, what="weights", target="imx500")


def with_ops(**entry: Any) -> dict[str, Any]:
    return {"ops": {"conv": entry}}


MISTAKES = [
    ({"fusing": [["conv", "rellu"]]}, "did you mean 'relu'"),
    ({"fusing": [["conv"]]}, "at least two"),
    ({"fusing": "conv"}, "list of patterns"),
    ({"ops": {"convv": {}}}, "did you mean 'conv'"),
    ({"fusng": []}, "did you mean 'fusing'"),
    (with_ops(weights={"kind": "symmetric", "bits": [8], "per_chanel": True}), r"ops\.conv\.weights(.|\n)*per_channel"),
    (with_ops(weights={"kind": "symetric", "bits": [8]}), "did you mean 'symmetric'"),
    (with_ops(weights={"kind": "symmetric", "bits": []}), r"ops\.conv\.weights\.bits"),
    (with_ops(weights={"kind": "symmetric", "bits": [17]}), "16"),
    (with_ops(weights={"kind": "symmetric", "bits": [1]}), "at least 2 bits"),
    (with_ops(weights={"kind": "symmetric", "bits": [8, 8]}), "twice"),
    (with_ops(weights={"kind": "symmetric", "bits": ["8"]}), "integer"),
    (with_ops(weights={"kind": "uniform", "bits": [8], "narrow_range": True}), "narrow_range"),
    (with_ops(activations={"kind": "uniform"}), "`signed` must be"),
    (with_ops(activations={"bits": [1]}), "at least 2 bits"),
    (with_ops(activations={"exceptions": {"16": {"kind": "uniform", "signed": None}}}), "`signed` must be"),
    (with_ops(activations={"exceptions": {"16": {"kind": "unifrom", "signed": True}}}), "did you mean 'uniform'"),
    (with_ops(input_bits="outputs"), "input_bits"),
    (with_ops(bias_bits=16), "32"),
    (with_ops(output_grid="input", inputs_share_output_grid=True), "output_grid"),
    (with_ops(fixed_outputs=[{"bits": 8, "signed": True, "scale": 0.1, "zero_point": 200}]), "not a code"),
    (with_ops(fixed_outputs=[{"bits": 8, "signed": True, "scale": 0.1, "zero_point": 0}] * 2), "two grids"),
    (with_ops(fixed_outputs=[{"bits": 8, "signed": True, "scale": -1.0, "zero_point": 0}]), "greater than 0"),
    ({"name": "a/b"}, "name"),
    ({"schema_version": 2}, "schema_version"),
    ({"extends": "imx50"}, "did you mean 'imx500'"),
    ({"extends": 3}, "extends"),
    ({"defaults": {}}, "missing"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_a_mistake_names_the_file_the_key_and_the_nearest_word(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_target(write(tmp_path / "t.json", **changes))
    assert "t.json" in str(caught.value)


def test_unknown_names_and_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'tflite'"):
        load_target("tflight")
    with pytest.raises(ConfigError, match="no such target file"):
        load_target(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text('{"name": "x"')
    with pytest.raises(FormatError, match="not valid JSON"):
        load_target(tmp_path / "broken.json")
    (tmp_path / "twice.json").write_text('{"ops": {"conv": {}, "conv": {}}}')
    with pytest.raises(ConfigError, match="'conv' is written twice"):
        load_target(tmp_path / "twice.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(FormatError, match="one JSON object"):
        load_target(tmp_path / "list.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FormatError, match="cannot read"):
        load_target(tmp_path / "binary.json")


def test_a_circle_of_extends_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"extends": "b.json"}')
    (tmp_path / "b.json").write_text('{"extends": "a.json"}')
    with pytest.raises(ConfigError, match="circle"):
        load_target(tmp_path / "a.json")


def test_targets_survive_json(tmp_path: Path) -> None:
    target = load_target("tflite")
    assert Target.model_validate_json(target.model_dump_json()) == target
