"""Programs as files: the same program again, and clear errors for damaged ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import detent
from detent.errors import FormatError
from detent.integer.storage import described, restored
from tests.integer.networks import NETWORKS
from tests.integer.test_lowering import data, quantized


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_program_is_the_same_program(name: str, tmp_path: Path) -> None:
    program, x = detent.lower(quantized(name)), data(name)
    program.save(tmp_path / "program.safetensors")
    again = detent.IntegerProgram.load(tmp_path / "program.safetensors")
    ours, theirs = (one.run(x, all_tensors=True) for one in (program, again))
    assert set(ours.codes) == set(theirs.codes)
    for tensor, codes in ours.codes.items():
        assert codes.dtype == theirs.codes[tensor].dtype
        np.testing.assert_array_equal(codes, theirs.codes[tensor])
    assert ours.extremes == theirs.extremes
    again.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "program.safetensors").read_bytes()


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "program.safetensors"
    detent.lower(quantized("convolutions")).save(path)
    raw = path.read_bytes()
    for damaged, message in (
        (raw[:-5], "not a complete program file"),
        (raw[:-5] + b"\1\1\1\1\1", "changed after it was written"),
        (b"", "not a complete program file"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match=message):
            detent.IntegerProgram.load(path)
    with pytest.raises(FormatError, match="cannot read the file"):
        detent.IntegerProgram.load(tmp_path / "nothing")
    with pytest.raises(FormatError, match="cannot"):
        detent.lower(quantized("convolutions")).save(tmp_path / "no" / "folder")


def test_operations_of_another_version() -> None:
    entries, arrays = described(detent.lower(quantized("pools")).operations)
    entries = json.loads(json.dumps(entries))
    assert len(restored(entries, arrays)) == len(entries)
    with pytest.raises(FormatError, match="knows no operation 'softmax'"):
        restored([{**entries[0], "kind": "softmax"}], arrays)
    with pytest.raises(FormatError, match="is not complete"):
        restored([{name: value for name, value in entries[0].items() if name != "grid"}], arrays)


def test_the_summary_names_every_tensor() -> None:
    console = Console(record=True, width=140)
    program = detent.lower(quantized("arithmetic"))
    program.summary(console)
    text = console.export_text()
    for operation in program.operations:
        assert operation.output in text
    assert "uint8 0..255" in text
    assert "bits" in text
