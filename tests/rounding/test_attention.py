"""Attention: weights of samples by what their errors mean at the outputs, against exact Jacobians."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import detent
from detent.errors import CalibrationError
from detent.rounding import attention
from detent.rounding.attention import attention_of_samples
from detent.rounding.block_data import NetworkInputs, in_parts
from detent.rounding.learning_network import BlockRun

SAMPLES = 12


class Gated(nn.Module):
    """What a value means at the outputs depends on the sample."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.second(torch.tanh(self.first(x)))
        return self.third(F.relu(y) * x.square().sum(1, keepdim=True)), y.mean(1)


class Convolutional(nn.Module):
    """A view behind a convolution, a bend before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 3, 3), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.conv(x)).view(x.shape[0], -1)
        return self.head(y.square())


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as found:
        yield found


def prepared(make: type[nn.Module], *shape: int) -> tuple[detent.Graph, Tensor]:
    torch.manual_seed(4)
    data = torch.randn(SAMPLES, *shape)
    return detent.capture(make().eval(), data[:2]), data


def weights_of(
    graph: detent.Graph, data: Tensor, values: list[str], pool: ThreadPoolExecutor, *, seed: int = 0, part: int = 5
) -> dict[str, np.ndarray]:
    parts = in_parts(np.arange(SAMPLES), part)
    return dict(attention_of_samples(graph, values, NetworkInputs([data], [0]), parts, pool, seed=seed))


def exact(graph: detent.Graph, data: Tensor, value: str) -> np.ndarray:
    """Mean squares of the entries of each sample's Jacobian of all outputs, relative to their mean over samples."""
    node = graph.find(value).node
    outputs = {graph.name_of(output): output for output in graph.outputs()}
    head = BlockRun(graph.module, [], {value: node}, graph.name_of)
    at = head([data], [])[value]
    tail = BlockRun(graph.module, [node], outputs, graph.name_of, gradients=True)

    def one(number: Tensor, place: int) -> Tensor:
        found = tail([data[place : place + 1]], [number[None]])
        return torch.cat([found[name].flatten() for name in outputs if name != value])

    sums = []
    for place in range(SAMPLES):
        jacobian = torch.autograd.functional.jacobian(lambda number, place=place: one(number, place), at[place].clone())
        sums.append(float(jacobian.double().square().sum()) / at[place].numel())
    return np.array(sums) / np.mean(sums)


CASES: list[tuple[type[nn.Module], tuple[int, ...], list[str]]] = [
    (Gated, (4,), ["tanh", "relu", "second"]),
    (Convolutional, (2, 4, 4), ["conv", "view"]),
]


@pytest.mark.parametrize(("make", "shape", "values"), CASES, ids=["gated", "convolutional"])
def test_many_directions_give_the_exact_weights(
    make: type[nn.Module],
    shape: tuple[int, ...],
    values: list[str],
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph, data = prepared(make, *shape)
    monkeypatch.setattr(attention, "_DIRECTIONS", 1500)
    found = weights_of(graph, data, values, pool)
    for value in values:
        # The variance of one direction is at most twice the square of the sum.
        np.testing.assert_allclose(found[value], exact(graph, data, value), rtol=5 * (2 / 1500) ** 0.5)


@pytest.mark.parametrize(("make", "shape", "values"), CASES, ids=["gated", "convolutional"])
def test_few_directions_give_weights_of_mean_one(
    make: type[nn.Module], shape: tuple[int, ...], values: list[str], pool: ThreadPoolExecutor
) -> None:
    graph, data = prepared(make, *shape)
    found = weights_of(graph, data, values, pool)
    assert list(found) == values
    for value in values:
        assert found[value].shape == (SAMPLES,)
        assert found[value].dtype == np.float32
        assert (found[value] >= 0).all()
        assert found[value].mean() == pytest.approx(1, rel=1e-6)
        # Four directions: within a factor of what they estimate, for nearly all.
        ratio = found[value] / exact(graph, data, value)
        assert np.median(np.abs(np.log(ratio))) < 1


def test_one_output_number_is_exact_with_any_direction(pool: ThreadPoolExecutor) -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).square())

    graph, data = prepared(Single, 3)
    found = weights_of(graph, data, ["first"], pool)
    np.testing.assert_allclose(found["first"], exact(graph, data, "first"), rtol=1e-4)


def test_a_linear_network_weighs_all_samples_alike(pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    graph = detent.capture(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).eval(), torch.zeros(2, 4))
    monkeypatch.setattr(attention, "_DIRECTIONS", 1000)
    found = weights_of(graph, torch.randn(SAMPLES, 4), ["0"], pool)
    np.testing.assert_allclose(found["0"], np.ones(SAMPLES), rtol=5 * (2 / 1000) ** 0.5)


def test_a_seed_gives_the_same_bits_in_any_number_of_threads(pool: ThreadPoolExecutor) -> None:
    graph, data = prepared(Gated, 4)
    state = torch.get_rng_state()
    first = weights_of(graph, data, ["tanh"], pool)
    with ThreadPoolExecutor(1) as alone:
        again = weights_of(graph, data, ["tanh"], alone)
    assert np.array_equal(first["tanh"], again["tanh"])
    assert not np.array_equal(first["tanh"], weights_of(graph, data, ["tanh"], pool, seed=1)["tanh"])
    assert torch.equal(torch.get_rng_state(), state)


def test_values_that_lead_to_no_output_are_left_out(pool: ThreadPoolExecutor) -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 5), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self.first(x).argmax(1), self.second(x), x * 2

    graph, data = prepared(Aside, 4)
    assert list(weights_of(graph, data, ["first", "second"], pool)) == ["second"]


def test_without_floating_point_outputs_there_are_none(pool: ThreadPoolExecutor) -> None:
    class Class(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x).argmax(1)

    graph, data = prepared(Class, 4)
    assert weights_of(graph, data, ["first"], pool) == {}


def test_gradients_that_are_not_finite_are_told(pool: ThreadPoolExecutor) -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.first(x)).sqrt()

    graph, data = prepared(Root, 4)
    with pytest.raises(CalibrationError, match="NaN or infinite") as error:
        weights_of(graph, data, ["relu"], pool)
    assert error.value.where == "relu"
    assert "attention" in str(error.value.remedy)
