"""Tables of sensitivities travel to disk and back bit by bit; what was changed or makes no sense is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import detent
from detent.errors import ConfigError, FormatError
from detent.records.sensitivity import SensitivityTable, TensorSensitivity
from detent.records.statistics import Statistics
from detent.records.tensor_file import tensor_file


def tensor(
    name: str = "conv", role: Any = "weights", count: int = 6, seed: int = 0, **changes: Any
) -> TensorSensitivity:
    random = np.random.default_rng(seed)
    values = random.normal(size=(3, count)).astype(np.float32)
    given = {
        "name": name,
        "role": role,
        "members": (name,),
        "bits": (8, 4, 2),
        "scores": np.square(values).sum(1, dtype=np.float64) if count else np.array([1e-5, 1e-3, 0.1]),
        "errors": np.array([1e-6, 1e-4, np.nan]),
        "factors": values,
    }
    return TensorSensitivity(**{**given, **changes})


def table(**changes: Any) -> SensitivityTable:
    values = tensor("relu", "activations", seed=1, members=("relu", "pool"))
    narrow = tensor("conv", "activations", seed=2)
    one = dataclasses.replace(
        narrow, bits=(16,), scores=narrow.scores[:1], errors=narrow.errors[:1], factors=narrow.factors[:1]
    )
    given = {
        "tensors": (tensor(), values, one),
        "method": "probes of outputs",
        "samples": 3,
        "probes": 2,
        "fingerprint": "f" * 64,
    }
    return SensitivityTable(**{**given, **changes})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "scores.safetensors"
    table().save(path)
    return path


def same(a: SensitivityTable, b: SensitivityTable) -> bool:
    def plain(one: SensitivityTable) -> list[object]:
        arrays = [(t.scores.tobytes(), t.errors.tobytes(), t.factors.tobytes()) for t in one]
        return [[(t.name, t.role, t.members, t.bits) for t in one], arrays, one.method, one.samples, one.probes]

    return plain(a) == plain(b) and a.fingerprint == b.fingerprint


def test_round_trip(saved: Path) -> None:
    loaded = detent.SensitivityTable.load(saved)
    assert same(loaded, table())
    first = loaded.tensors[0]
    assert (first.scores.dtype, first.factors.dtype) == (np.float64, np.float32)
    assert isinstance(first.bits, tuple)
    assert all(type(bits) is int for bits in first.bits)
    np.testing.assert_array_equal(loaded.gram(), table().gram())


def test_same_table_same_bytes(saved: Path, tmp_path: Path) -> None:
    SensitivityTable.load(str(saved)).save(str(tmp_path / "again"))
    assert (tmp_path / "again").read_bytes() == saved.read_bytes()


def test_a_table_without_factors_travels_too(tmp_path: Path) -> None:
    measured = table(tensors=(tensor(count=0),), method="measured", probes=0)
    measured.save(tmp_path / "table")
    assert same(SensitivityTable.load(tmp_path / "table"), measured)
    with pytest.raises(ConfigError, match="measured scores have no factors"):
        measured.gram()


def test_finding_tensors_and_scores() -> None:
    found = table()
    assert (len(found), [one.name for one in found]) == (3, ["conv", "relu", "conv"])
    assert found.find("conv", "weights").bits == (8, 4, 2)
    assert found.find("conv", "activations").bits == (16,)
    assert found.find("conv", "weights").score(4) == found.tensors[0].scores[1]
    with pytest.raises(ConfigError, match="5 bits were not scored; candidates are 8, 4, 2"):
        found.find("conv", "weights").score(5)
    with pytest.raises(ConfigError, match=r"(?s)among the activations 'rel'.*did you mean 'relu'"):
        found.find("rel", "activations")


def test_products_of_factors_are_in_the_order_of_the_candidates() -> None:
    found = table()
    gram = found.gram()
    assert gram.shape == (7, 7)
    np.testing.assert_allclose(np.diag(gram), np.concatenate([one.scores for one in found]), rtol=1e-6)
    a, b = found.tensors[0].factors[2].astype(np.float64), found.tensors[1].factors[0].astype(np.float64)
    assert gram[2, 3] == pytest.approx(a @ b)
    np.testing.assert_array_equal(gram, gram.T)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": np.zeros(2)}, "for each width"),
        ({"errors": np.zeros(2)}, "for each width"),
        ({"factors": np.zeros((2, 6), np.float32)}, "for each width"),
        ({"factors": np.zeros(3, np.float32)}, "for each width"),
        ({"bits": (), "scores": np.zeros(0), "errors": np.zeros(0), "factors": np.zeros((0, 6))}, "for each width"),
        ({"scores": np.array([0.0, np.nan, 1.0])}, "finite"),
        ({"scores": np.array([0.0, np.inf, 1.0])}, "finite"),
        ({"scores": np.array([0.0, -1e-9, 1.0])}, "not negative"),
        ({"factors": np.full((3, 6), np.nan, np.float32)}, "finite"),
        ({"bits": (8, 8, 2)}, "descending"),
        ({"bits": (2, 4, 8)}, "descending"),
    ],
)
def test_what_makes_no_sense_names_the_tensor(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        tensor(**changes)
    assert error.value.where == "conv"


def test_factors_of_one_table_are_along_the_same_directions() -> None:
    with pytest.raises(ConfigError, match="as many factors"):
        table(tensors=(tensor(), tensor("other", count=5)))
    with pytest.raises(ConfigError, match="as many factors"):
        table(tensors=(tensor(), tensor("other", count=0)))


def test_printing_shows_all_candidates() -> None:
    lines = str(table()).splitlines()
    assert lines[0] == "SensitivityTable(3 tensors by probes of outputs, 3 samples, 2 probes)" == repr(table())
    assert lines[1].split() == ["tensor", "role", "number", "16", "bits", "8", "bits", "4", "bits", "2", "bits"]
    assert lines[2].split()[:2] == ["conv", "weights"]
    assert lines[2].split()[2] == "0"
    assert len(lines[2].split()) == 6
    assert len(lines[4].split()) == 3
    assert not any(line.endswith(" ") for line in lines)
    assert str(table(tensors=())).splitlines()[1].split() == ["tensor", "role", "number"]


def test_every_damaged_file_is_refused(saved: Path, tmp_path: Path) -> None:
    raw = saved.read_bytes()
    path = tmp_path / "damaged"
    for size in (0, 7, 8, 100, len(raw) - 1):
        path.write_bytes(raw[:size])
        with pytest.raises(FormatError, match="score the network again"):
            SensitivityTable.load(path)
    for place in range(len(raw) - 60, len(raw), 7):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        with pytest.raises(FormatError, match="changed after it was written"):
            SensitivityTable.load(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot read"):
        SensitivityTable.load(tmp_path / "missing")
    Statistics({}, 0, "f" * 64).save(tmp_path / "statistics")
    with pytest.raises(FormatError, match=r"detent\.statistics"):
        SensitivityTable.load(tmp_path / "statistics")
    (tmp_path / "later").write_bytes(tensor_file("detent.sensitivity", 99, {}, {}))
    with pytest.raises(FormatError, match="version 99"):
        SensitivityTable.load(tmp_path / "later")
    with pytest.raises(FormatError, match="cannot write"):
        table().save(tmp_path / "no" / "folder")


HEAD = {"method": "probes", "samples": 1, "probes": 1, "fingerprint": "f"}
ARRAYS = {"0.scores": np.zeros(1), "0.errors": np.zeros(1), "0.factors": np.zeros((1, 1), np.float32)}
ENTRY = {"name": "conv", "role": "weights", "members": ["conv"], "bits": [8]}


@pytest.mark.parametrize(
    ("meta", "arrays"),
    [
        ({}, {}),
        ({**HEAD}, ARRAYS),
        ({**HEAD, "tensors": 7}, ARRAYS),
        ({**HEAD, "tensors": [7]}, ARRAYS),
        ({**HEAD, "tensors": [{"name": "conv"}]}, ARRAYS),
        ({**HEAD, "tensors": [{**ENTRY, "bits": 8}]}, ARRAYS),
        ({**HEAD, "tensors": [{**ENTRY, "bits": ["eight"]}]}, ARRAYS),
        ({**HEAD, "tensors": [{**ENTRY, "role": "gradients"}]}, ARRAYS),
        ({**HEAD, "tensors": [ENTRY]}, {}),
        ({**HEAD, "tensors": [ENTRY]}, {**ARRAYS, "0.scores": np.zeros(2)}),
        ({**HEAD, "tensors": [ENTRY]}, {**ARRAYS, "0.scores": np.full(1, np.nan)}),
        ({"tensors": [ENTRY]}, ARRAYS),
        ({**HEAD, "samples": "many", "tensors": [ENTRY]}, ARRAYS),
        ({**HEAD, "probes": -1, "tensors": [ENTRY]}, ARRAYS),
        ({**HEAD, "fingerprint": 7, "tensors": [ENTRY]}, ARRAYS),
    ],
)
def test_a_file_without_sensitivities_is_refused(tmp_path: Path, meta: dict[str, Any], arrays: dict[str, Any]) -> None:
    path = tmp_path / "table"
    path.write_bytes(tensor_file("detent.sensitivity", 1, meta, arrays))
    with pytest.raises(FormatError, match="holds no sensitivities"):
        SensitivityTable.load(path)


def test_the_good_one_of_these_loads(tmp_path: Path) -> None:
    (tmp_path / "table").write_bytes(tensor_file("detent.sensitivity", 1, {**HEAD, "tensors": [ENTRY]}, ARRAYS))
    assert len(SensitivityTable.load(tmp_path / "table")) == 1
