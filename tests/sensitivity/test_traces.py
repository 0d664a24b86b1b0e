"""Hessian traces: exact with as many directions as outputs, right on average with fewer, and scores made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import detent
from detent.errors import CalibrationError, ConfigError
from detent.graph.placement import place
from detent.records.traces import HessianTraces
from detent.sensitivity.traces import estimate_traces
from detent.sensitivity.units import draw
from tests.mixed_targets import write_target
from tests.sensitivity.exact_hessians import CASES, build, exact


def size_of_outputs(model: nn.Module, data: Tensor) -> int:
    return model(data[:1]).numel()


@pytest.mark.parametrize("loss", ["outputs", "fisher"])
@pytest.mark.parametrize("name", CASES)
def test_as_many_directions_as_outputs_are_exact(name: str, loss: Any) -> None:
    model, data, graph, placement = build(name, 3)
    _, _, kernels, values = CASES[name]
    size = size_of_outputs(model, data)
    found = estimate_traces(
        graph, placement, [[data[:2]], [data[2:]]], values=values, kernels=kernels, probes=size, loss=loss
    )
    assert found.samples == 3
    assert found.probes == size
    assert not found.notes
    for one in found:
        expected = exact(model, data, (one.name, one.role), loss).numpy()
        assert one.elements is not None
        assert one.elements.shape == expected.shape
        np.testing.assert_allclose(one.elements, expected, rtol=2e-4, atol=1e-6 * expected.max())
        assert one.trace == pytest.approx(expected.sum(), rel=1e-4)
        assert one.probe_error == 0
        axis = 0
        if one.role == "activations":
            axis = graph.find(one.name).channel_axis - 1
        elif name == "transposed" and one.name == "0":
            axis = 1
        others = tuple(other for other in range(expected.ndim) if other != axis)
        np.testing.assert_allclose(one.channels, expected.sum(axis=others), rtol=2e-4, atol=1e-6 * expected.max())


@pytest.mark.parametrize("loss", ["outputs", "fisher"])
@pytest.mark.parametrize("fixed", [False, True], ids=["sample by sample", "whole batches"])
def test_fewer_directions_are_right_on_average_and_know_their_error(fixed: bool, loss: Any) -> None:
    model, data, graph, placement = build("linear", 4, dynamic_batch=not fixed, example=4)
    tensors = [("0", "weights"), ("2", "weights"), ("1", "activations")]
    options = {"values": ["1"], "kernels": ["0", "2"], "probes": 3, "most_probes": 3, "loss": loss}
    runs = [estimate_traces(graph, placement, [[data]], seed=seed, **options) for seed in range(80)]
    for name, role in tensors:
        expected = exact(model, data, (name, role), loss).numpy()
        ones = [run.find(name, role) for run in runs]
        elements = np.array([one.elements for one in ones])
        means = elements.mean(axis=0)
        # Squares are skewed: an element that happens to come out low has a low deviation too, so the largest counts.
        error = (elements.std(axis=0, ddof=1) / means).max() / len(runs) ** 0.5
        assert (np.abs(means / expected - 1) <= 5 * error).all()
        assert error < 0.2
        deviation = np.square([one.trace - expected.sum() for one in ones]).mean()
        assert 0.5 < deviation / np.square([one.probe_error for one in ones]).mean() < 2


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.positions, self.head = nn.Embedding(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x + self.positions(torch.arange(3)))).flatten(1)


def test_a_kernel_that_is_applied_to_a_constant(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, data = Positions().eval(), torch.randn(3, 3, 4)
    graph = detent.capture(model, data[:2])
    placement = place(graph, detent.load_target(write_target(tmp_path)))
    found = estimate_traces(graph, placement, [[data]], kernels=["positions", "head"], values=[], probes=6)
    for one in found:
        expected = exact(model, data, (one.name, "weights"), "outputs").numpy()
        np.testing.assert_allclose(one.elements, expected, rtol=2e-4, atol=1e-6 * expected.max())


def test_whole_batches_with_all_their_directions_are_exact() -> None:
    model, data, graph, placement = build("linear", 3, dynamic_batch=False, example=3)
    size = 3 * size_of_outputs(model, data)
    found = estimate_traces(graph, placement, [[data]], values=["1"], kernels=["0"], probes=size)
    assert found.probes == size
    for one in found:
        assert one.elements is not None
        np.testing.assert_allclose(one.elements, exact(model, data, (one.name, one.role), "outputs"), rtol=1e-4)
        assert np.isnan(one.sample_error)


def test_more_outputs_than_are_made_orthogonal() -> None:
    torch.manual_seed(0)
    model, data = nn.Conv2d(1, 3, 3).eval(), torch.randn(2, 1, 42, 42)
    graph = detent.capture(nn.Sequential(model), data)
    found = estimate_traces(graph, place(graph, detent.load_target("default")), [[data]], probes=64, tolerance=1.0)
    kernel = found.find("0", "weights")
    by_tap = nn.functional.unfold(data, 3).square().sum(dim=-1).mean(dim=0) / model(data).square().sum() * 2
    expected = by_tap.reshape(1, 1, 3, 3).expand(3, 1, 3, 3).detach().numpy()
    assert kernel.elements is not None
    np.testing.assert_allclose(kernel.elements, expected, rtol=0.8)
    assert abs(kernel.trace - expected.sum()) < 4 * kernel.probe_error
    assert 0 < kernel.relative_error < 0.1


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 2), nn.Linear(3, 4)
        self.second.weight.data *= 100

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.first(x), self.second(x), x.argmax(-1)


def test_outputs_count_alike() -> None:
    torch.manual_seed(0)
    model, data = TwoOutputs().eval(), torch.randn(4, 3)
    graph = detent.capture(model, data)
    found = estimate_traces(graph, place(graph, detent.load_target("default")), [[data]], probes=6)
    for place_of, name in enumerate(("first", "second")):
        out = model(data)[place_of].detach()
        expected = out.shape[1] * data.square().sum() / out.square().sum() / 2
        assert found.find(name, "weights").trace == pytest.approx(float(expected), rel=1e-4)


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        return self.after(y - y.mean(0))


def test_samples_that_mix_stay_together() -> None:
    torch.manual_seed(0)
    model, data = Mixing().eval(), torch.randn(3, 3)
    graph = detent.capture(model, data)
    found = estimate_traces(graph, place(graph, detent.load_target("default")), [[data]], probes=6)
    jacobian = torch.func.jacrev(lambda w: functional_call(model, {"before.weight": w}, (data,)))(model.before.weight)
    expected = jacobian.detach().square().sum(dim=(0, 1)) / model(data).detach().square().sum()
    kernel = found.find("before", "weights")
    assert kernel.elements is not None
    np.testing.assert_allclose(kernel.elements, expected, rtol=1e-4)
    mixed = [one for one in found if one.elements is None]
    assert mixed
    assert all(one.role == "activations" and one.trace > 0 for one in mixed)


def test_directions_are_added_until_errors_are_small() -> None:
    _, data, graph, placement = build("depthwise", 4)
    options: dict[str, Any] = {"kernels": ["0"], "values": ["1"], "probes": 2}
    loose = estimate_traces(graph, placement, [[data]], tolerance=10.0, **options)
    middle = estimate_traces(graph, placement, [[data]], tolerance=0.05, **options)
    assert loose.probes == 2
    assert 2 < middle.probes <= 12
    assert not loose.notes
    assert not middle.unconverged
    short = estimate_traces(graph, placement, [[data]], tolerance=1e-6, most_probes=5, **options)
    assert short.probes == 5
    (note,) = short.notes
    for one in short.unconverged:
        assert f"{one.name} ({one.role}" in note
    assert short.unconverged


def test_later_directions_go_on_where_earlier_ones_ended() -> None:
    _, data, graph, placement = build("conv", 3)
    once = estimate_traces(graph, placement, [[data]], probes=4)
    steps = estimate_traces(graph, placement, [[data]], probes=2, tolerance=1e-9)
    assert steps.probes == once.probes == 4
    for one, other in zip(once, steps, strict=True):
        assert one.trace == pytest.approx(other.trace, rel=1e-6)


def bits_of(found: HessianTraces) -> list[bytes]:
    return [
        b"".join(np.asarray(part).tobytes() for part in (one.trace, one.probe_error, one.elements, one.channels))
        for one in found
    ]


def test_the_same_bits_on_one_and_two_threads_and_whatever_the_batches() -> None:
    _, data, graph, placement = build("residual", 6)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for parts in (1, 6):
                batches = [[part] for part in data.split(parts)]
                found.append(bits_of(estimate_traces(graph, placement, batches, probes=2, most_probes=2)))
    finally:
        torch.set_num_threads(before)
    assert all(one == found[0] for one in found)
    other = bits_of(estimate_traces(graph, placement, [[data]], probes=2, most_probes=2, seed=1))
    assert other != found[0]


def test_the_network_and_the_data_stay_as_they_are() -> None:
    model, data, graph, placement = build("shared", 2)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    done: list[int] = []
    estimate_traces(graph, placement, [[data]], probes=2, most_probes=2, show=done.append)
    assert done == [2, 4]
    assert not data.requires_grad
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert parameter.grad is None
        assert torch.equal(parameter, old)


class Root(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act, self.head = nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.linear(x)).sqrt())


def test_gradients_that_are_not_finite_name_the_layer() -> None:
    torch.manual_seed(0)
    data = torch.randn(8, 3)
    graph = detent.capture(Root().eval(), data)
    with pytest.raises(CalibrationError, match=r"NaN or infinity here(.|\n)*where: act"):
        estimate_traces(graph, place(graph, detent.load_target("default")), [[data]], values=["act"], kernels=[])


def test_outputs_that_are_not_finite_name_the_output() -> None:
    _, data, graph, placement = build("linear", 2)
    with pytest.raises(CalibrationError, match=r"output holds NaN(.|\n)*where: 2"):
        estimate_traces(graph, placement, [[data * float("nan")]])
    graph = detent.capture(nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU()).eval(), torch.ones(2, 3))
    with pytest.raises(CalibrationError, match="zero for all samples"):
        estimate_traces(graph, place(graph, detent.load_target("default")), [[torch.zeros(2, 3)]])


class Argmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).argmax(-1)


def test_outputs_without_a_gradient() -> None:
    graph = detent.capture(Argmax().eval(), torch.randn(2, 3))
    with pytest.raises(ConfigError, match="no output of the network carries a gradient"):
        estimate_traces(graph, place(graph, detent.load_target("default")), [[torch.randn(2, 3)]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probes": 1}, "`probes`"),
        ({"probes": 2.0}, "`probes`"),
        ({"most_probes": 3}, "`most_probes`"),
        ({"tolerance": 0.0}, "`tolerance`"),
        ({"tolerance": float("nan")}, "`tolerance`"),
        ({"seed": -1}, "`seed`"),
        ({"loss": "fischer"}, "did you mean 'fisher'"),
        ({"kernels": ["9"]}, "unknown layer with a kernel '9'"),
        ({"values": ["9"]}, "unknown layer '9'"),
        ({"values": [], "kernels": []}, "no kernel and no activation"),
    ],
    ids=str,
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    _, data, graph, placement = build("linear", 2)
    with pytest.raises(ConfigError, match=message):
        estimate_traces(graph, placement, [[data]], **options)
    with pytest.raises(ConfigError, match="no batches"):
        estimate_traces(graph, placement, [])


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_all_directions_are_an_orthogonal_basis(size: int) -> None:
    parts = [draw(size, 0, size // 2, [1, 2]), draw(size, size // 2, size, [1, 2])]
    whole = np.concatenate(parts).astype(np.float64)
    np.testing.assert_allclose(whole.T @ whole / size, np.eye(size), atol=1e-6)
