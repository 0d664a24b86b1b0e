"""Accumulators and the buffers of a device: bounds of the weights, what was observed, errors and notes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import detent
from detent.errors import ConfigError
from detent.integer.operations import LinearLayer


@pytest.fixture(scope="module")
def qmodel() -> detent.QuantizedModel:
    model = nn.Sequential(nn.Linear(64, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False)).eval()
    nn.init.constant_(model[0].weight, 1.0)
    nn.init.constant_(model[2].weight, 0.5)
    return detent.quantize(model, [torch.rand(32, 64)], target="onnxruntime", progress=False)


def test_the_bound_is_reached_by_the_largest_input_and_by_none_larger(qmodel: detent.QuantizedModel) -> None:
    program = detent.lower(qmodel, buffer_bits=21, overflow="note")
    layer = program.operations[1]
    assert isinstance(layer, LinearLayer)
    first, sums = layer.output, layer.kernel.astype(np.int64).sum(axis=1)
    bound = int((255 * sums + layer.bias).max())
    assert 2**20 < bound < 2**21
    assert program.notes == (f"{first}: accumulators could reach {bound}, which 21 bits do not hold",)
    assert program.run(torch.full((1, 64), 1e6)).extremes[first] == (bound, bound)
    assert detent.lower(qmodel, buffer_bits=22).notes == ()


def test_an_error_or_a_note(qmodel: detent.QuantizedModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="which 21 bits do not hold"):
        detent.lower(qmodel, buffer_bits=21)
    program = detent.lower(qmodel, buffer_bits=21, overflow="note")
    assert program.run(torch.zeros(2, 64)).notes == ()
    (note,) = program.run(torch.full((1, 64), 1e6)).notes
    assert "left 21 bits" in note
    program.save(tmp_path / "program.safetensors")
    again = detent.IntegerProgram.load(tmp_path / "program.safetensors")
    assert (again.buffer_bits, again.overflow, again.notes) == (21, "note", program.notes)


@pytest.mark.parametrize("bits", [1, 33, 0, -8])
def test_wrong_widths(qmodel: detent.QuantizedModel, bits: int) -> None:
    with pytest.raises(ConfigError, match="`buffer_bits` must be 2 to 32"):
        detent.lower(qmodel, buffer_bits=bits)


def test_a_wrong_word(qmodel: detent.QuantizedModel) -> None:
    with pytest.raises(ConfigError, match="did you mean 'note'"):
        detent.lower(qmodel, overflow="notes")  # type: ignore[arg-type]
