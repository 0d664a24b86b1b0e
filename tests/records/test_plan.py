"""The plan: readable JSON that a person edits; what makes no sense is an error that names the tensor."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from detent.errors import ConfigError, FormatError
from detent.records.grid import Grid
from detent.records.plan import QuantPlan, TensorPlan


def make_plan() -> QuantPlan:
    uniform = Grid(kind="uniform", bits=8, signed=False, lower=np.float32(-0.3), upper=np.float32(2.1))
    kernel = Grid(kind="symmetric", bits=8, signed=True, threshold=np.float32([1.1, 2.3e-5]), axis=0)
    return QuantPlan(
        target="onnxruntime",
        graph="0123",
        samples=8,
        config={"z_threshold": 5.0},
        notes=("a note",),
        activations={
            "x": TensorPlan(grid=uniform, error=1e-5, metric="mse"),
            "cat": TensorPlan(grid=None, same_as="x"),
            "logits": TensorPlan(grid=None),
        },
        weights={"conv": TensorPlan(grid=kernel, bias_bits=32)},
    )


def test_saved_plan_loads_to_the_same_bytes(tmp_path: Path) -> None:
    plan = make_plan()
    plan.save(tmp_path / "plan.json")
    loaded = QuantPlan.load(tmp_path / "plan.json")
    assert loaded.to_json() == plan.to_json()
    assert loaded.weights["conv"].grid == plan.weights["conv"].grid
    assert loaded.activation_grid("cat") == plan.activations["x"].grid
    assert loaded.activation_grid("logits") is None


def test_one_tensor_a_line() -> None:
    lines = make_plan().to_json().splitlines()
    assert sum('"conv"' in line for line in lines) == 1
    assert any('"x": {"grid": {"kind": "uniform"' in line for line in lines)


def edited(**changes: object) -> str:
    return json.dumps({**json.loads(make_plan().to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (make_plan().to_json()[:-40], FormatError, "JSON"),
        ("[]", FormatError, "not a detent plan"),
        (edited(format="other"), FormatError, "not a detent plan"),
        (edited(version=99), FormatError, "version 99"),
        (edited(activatoins={}), ConfigError, "did you mean 'activations'"),
        (edited(activations=[]), FormatError, "object"),
        (edited(samples="many"), FormatError, "wrong type"),
        (edited(activations={"x": 7}), ConfigError, "where: x"),
        (edited(activations={"x": {"grid": {"kind": "uniform", "bits": 99}}}), ConfigError, "where: x"),
        (edited(activations={"x": {"gird": {}}}), ConfigError, "did you mean 'grid'"),
        (edited(activations={"x": {}}), ConfigError, "where: x"),
        (edited(activations={"x": {"same_as": "y"}}), ConfigError, "where: x"),
        (edited(activations={"x": "float", "y": {"same_as": "x"}, "z": {"same_as": "y"}}), ConfigError, "where: z"),
        (edited(activations={"x": {"same_as": "y", "error": 1}}), ConfigError, "alone"),
        (
            edited(weights={"conv": {"grid": make_plan().weights["conv"].grid.to_dict(), "bias_bits": 8}}),
            ConfigError,
            "32",
        ),
    ],
)
def test_what_cannot_be_read_names_the_place(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        QuantPlan.from_json(text)


KERNEL = {"kind": "symmetric", "bits": 8, "signed": True, "threshold": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"signed": "false"}, "`signed` must be true or false"),
        ({"narrow_range": 1}, "`narrow_range` must be true or false"),
        ({"axis": 0.5}, "`axis` must be a whole number"),
        ({"axis": 0, "group_size": "4"}, "`group_size` must be a whole number"),
        ({"threshold": 10**400}, "must be a number"),
        ({"threshold": 1e-44}, "the step of a 8-bit symmetric grid"),
        ({"kind": "uniform", "threshold": None, "lower": -3e38, "upper": 3e38, "bits": 1}, "the step of a 1-bit"),
    ],
)
def test_limits_and_flags_of_another_kind_name_the_tensor(change: dict[str, object], message: str) -> None:
    entry = {"grid": {**KERNEL, **change}}
    with pytest.raises(ConfigError, match=rf"(?s){message}.*where: conv"):
        QuantPlan.from_json(edited(weights={"conv": entry}))


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ('{"activations": {"x": "float", "x": 1}}', ConfigError, "key 'x' is written twice"),
        ("[" * 100_000, FormatError, "nested too deeply"),
        ("1" * 5000, FormatError, "not valid JSON"),
    ],
)
def test_json_that_python_reads_otherwise_is_refused(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        QuantPlan.from_json(text)


def test_a_plan_prints_in_a_line() -> None:
    assert repr(make_plan()) == "QuantPlan(target 'onnxruntime', 1 kernels, 3 activations, 8 samples)"


def test_missing_key_is_named() -> None:
    data = json.loads(make_plan().to_json())
    del data["weights"]
    with pytest.raises(FormatError, match="weights"):
        QuantPlan.from_json(json.dumps(data))


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="No such file"):
        QuantPlan.load(tmp_path / "absent.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FormatError, match="UTF-8"):
        QuantPlan.load(tmp_path / "binary.json")
    os.mkfifo(tmp_path / "pipe")  # what is no ordinary file must not be replaced by one
    for place in (tmp_path / "no" / "folder.json", tmp_path, tmp_path / "pipe", tmp_path / "zero\0byte"):
        with pytest.raises(FormatError, match="cannot write"):
            make_plan().save(place)
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "pipe").unlink()
    assert {path.name for path in tmp_path.iterdir()} == {"binary.json"}


def test_changed_plans_are_new_values() -> None:
    plan = make_plan()
    changed = plan.with_activation("x", None).with_weight("conv", None)
    assert changed.activations["x"].grid is None
    assert changed.weights["conv"].bias_bits == 32
    assert plan.activations["x"].grid is not None
    with pytest.raises(ConfigError, match="did you mean 'conv'"):
        plan.with_weight("conf", None)
