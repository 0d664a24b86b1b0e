"""The example for capture comes from the data, without labels, and nothing of the data is lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from detent.errors import CalibrationError
from detent.statistics import first_batch


class Plain(nn.Module):
    def forward(self, x):
        return x


class Optional(nn.Module):
    def forward(self, x, features=False):
        return x


class Pair(nn.Module):
    def forward(self, image, extra):
        return image + extra


class Many(nn.Module):
    def forward(self, *parts):
        return sum(parts)


X = torch.arange(24, dtype=torch.float32).reshape(4, 6)
Y = torch.arange(4)


def same(found, wanted):
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, tuple):
        return len(found) == len(wanted) and all(map(torch.equal, found, wanted))
    return torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("model", "batch", "example"),
    [
        (Plain(), X, X),
        (Plain(), X.numpy(), X),
        (Plain(), (X, Y), (X,)),
        (Plain(), [X, Y], (X,)),
        (Plain(), (X, X), (X,)),
        (Optional(), (X, Y), (X,)),
        (Pair(), (X, X), (X, X)),
        (Pair(), (X, X, Y), (X, X)),
        (Pair(), ((X, X), Y), (X, X)),
        (Pair(), {"image": X, "extra": X, "label": Y}, {"image": X, "extra": X}),
        (Pair(), ({"image": X, "extra": X}, Y), {"image": X, "extra": X}),
        (Many(), (X, X, Y), (X, X)),
        (Plain(), {"pictures": X, "label": Y}, X),
        (Plain(), (X, ["cat", "dog"]), (X,)),
        (Plain(), (X, [{"boxes": Y, "image": "1.png"}]), (X,)),
        (Plain(), [X, 3], (X,)),
        (Plain(), {"x": X, "file": ["1.png"]}, {"x": X}),
    ],
)
def test_example_without_labels(model, batch, example):
    found, data = first_batch([batch, batch], model)
    assert same(found, example)
    assert len(data) == 2


def test_whole_arrays_give_their_first_samples(tmp_path):
    assert same(first_batch(X, Plain())[0], X[:2])
    assert same(first_batch({"image": X, "extra": X}, Pair())[0], {"image": X[:2], "extra": X[:2]})
    path = tmp_path / "data.npz"
    np.savez(path, x=X.numpy(), y=Y.numpy())
    example, data = first_batch(path, Plain())
    assert same(example, {"x": X[:2]})
    assert data is path


def test_iterators_start_again():
    example, data = first_batch(iter([X, X + 1, X + 2]), Plain())
    assert same(example, X)
    assert [float(batch[0, 0]) for batch in data] == [0, 1, 2]


@pytest.mark.parametrize("data", [[], iter([]), list, torch.zeros(0, 3), {"x": np.zeros((0, 3))}])
def test_empty_data(data):
    with pytest.raises(CalibrationError, match="empty"):
        first_batch(data, Plain())


def test_what_cannot_be_told():
    with pytest.raises(CalibrationError, match="nothing tells which of the arrays"):
        first_batch({"a": X, "b": X}, Plain())
    with pytest.raises(CalibrationError, match="cannot be iterated over"):
        first_batch(3, Plain())
    with pytest.raises(CalibrationError, match="where an array is expected"):
        first_batch({"x": [1, 2]}, Plain())
