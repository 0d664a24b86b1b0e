"""Thresholds by the output's error: never worse than those for the weights alone, near the best."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import detent
from detent.graph.patches import kernel_rows
from detent.records.grid_values import round_scaled, scaled

KERNELS_ALONE = {"gain_correction": "none", "bias_correction": "none"}


def layer_and_data(kind: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    # Correlated inputs with a few strong directions, as activations have: that is where the two errors differ.
    mix = torch.randn(8, 8) @ torch.diag(torch.tensor([4.0, 2, 1, 0.5, 0.2, 0.1, 0.1, 0.1]))
    data = torch.einsum("nchw,dc->ndhw", torch.randn(64, 8, 6, 6), mix).relu()
    layers = {
        "conv": nn.Conv2d(8, 12, 3, padding=1),
        "depthwise": nn.Conv2d(8, 8, 3, groups=8),
        "transposed": nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2),
        "linear": nn.Sequential(nn.Flatten(), nn.Linear(8 * 36, 5)),
    }
    return layers[kind].eval(), data


def losses(graph: detent.Graph, moments: detent.InputMoments, name: str, grid: detent.Grid) -> np.ndarray:
    layer = graph.find(name)
    assert layer.weight is not None
    kernel = graph.tensor(layer.weight).detach().numpy()
    error = kernel_rows(layer, grid.round(kernel)) - kernel_rows(layer, kernel)
    found = moments.forms([name], central=False).of(error, error)
    return found.sum(axis=0) if layer.kind == "conv_transposed" else found.reshape(-1)


@pytest.mark.parametrize("kind", ["conv", "depthwise", "transposed", "linear"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_no_channel_loses_more_and_the_layer_less(kind: str, bits: int) -> None:
    model, data = layer_and_data(kind)
    graph = detent.capture(model, data[:2])
    stats, moments = detent.calibrate(graph, data, progress=False), detent.collect_moments(graph, data)
    options = {"weights_bits": bits, "tie_free": False, **KERNELS_ALONE}
    plain = detent.plan(graph, stats, weights_metric="mse", **options)
    suited = detent.plan(graph, stats, moments=moments, weights_metric="output", **options)
    ((name, entry),) = suited.weights.items()
    assert entry.metric == "output"
    assert entry.grid is not None
    before = losses(graph, moments, name, plain.weights[name].grid)
    after = losses(graph, moments, name, entry.grid)
    assert np.all(after <= before * (1 + 1e-9))
    assert entry.error == pytest.approx(after.mean(), rel=1e-6)
    if bits == 8:
        return  # there the thresholds for the weights are about as good
    assert after.sum() < 0.95 * before.sum()
    # Against a denser search: at more bits the error is rough in the threshold, and luck finds a little more.
    factors = np.linspace(0.5, 1.6, 150)
    dense = np.stack([losses(graph, moments, name, scaled(plain.weights[name].grid, f)) for f in factors])
    assert after.sum() <= (1.03 if bits == 2 else 1.25) * dense.min(axis=0).sum()


def test_the_output_of_the_network_loses_less() -> None:
    model, data = layer_and_data("conv")
    graph = detent.capture(model, data[:2])
    stats, moments = detent.calibrate(graph, data, progress=False), detent.collect_moments(graph, data)
    lost = {}
    for metric in ("mse", "output"):
        options = {"weights_bits": 3, "activation_bits": 16, "weights_metric": metric, **KERNELS_ALONE}
        plan = detent.plan(graph, stats, moments=moments, **options)
        with torch.no_grad():
            lost[metric] = float((detent.apply(graph, plan)(data) - model(data)).square().mean())
    assert lost["output"] < 0.98 * lost["mse"]


def test_powers_of_two_stay_so(tmp_path) -> None:
    model, data = layer_and_data("conv")
    graph = detent.capture(model, data[:2])
    stats, moments = detent.calibrate(graph, data, progress=False), detent.collect_moments(graph, data)
    target = detent.load_target("default")
    kernels = target.rule("conv").weights
    assert kernels is not None
    rule = target.rule("conv").model_copy(update={"weights": kernels.model_copy(update={"kind": "power_of_two"})})
    path = tmp_path / "t.json"
    path.write_text(target.model_copy(update={"ops": {"conv": rule}, "name": "pow2"}).model_dump_json())
    plain = detent.plan(graph, stats, target=path, weights_bits=3, bias_correction="none")
    suited = detent.plan(
        graph,
        stats,
        target=path,
        weights_bits=3,
        moments=moments,
        weights_metric="output",
        gain_correction="second_moment",
    )
    ((name, entry),) = suited.weights.items()
    assert entry.grid is not None
    assert set(np.frexp(entry.grid.threshold)[0]) == {0.5}
    assert entry.gain is None
    assert any("powers of two" in note for note in suited.notes)
    assert (
        losses(graph, moments, name, entry.grid).sum() <= losses(graph, moments, name, plain.weights[name].grid).sum()
    )


@pytest.mark.parametrize("scope", ["tensor", "channel"])
def test_codebooks_with_powers_of_two_keep_them(scope: str) -> None:
    model, data = layer_and_data("conv")
    graph = detent.capture(model, data[:2])
    stats, moments = detent.calibrate(graph, data, progress=False), detent.collect_moments(graph, data)
    options = {"weights_bits": 4, "codebook_scope": scope, "moments": moments}
    plan = detent.plan(graph, stats, weights_grid="lut_power_of_two", **options)
    ((name, entry),) = plan.weights.items()
    assert entry.metric == "output"
    assert set(np.frexp(entry.grid.threshold)[0]) == {0.5}
    assert entry.gain is None
    assert any("powers of two" in note for note in plan.notes)
    free = detent.plan(graph, stats, weights_grid="lut", **options).weights[name]
    assert set(np.frexp(free.grid.threshold)[0]) != {0.5}
    assert free.gain is not None


@pytest.mark.parametrize("kind", ["conv", "transposed", "linear"])
@pytest.mark.parametrize(
    "options",
    [{}, {"weights_grid": "lut"}, {"weights_grid": "lut", "codebook_scope": "channel"}, {"weights_group_size": 2}],
    ids=str,
)
def test_kernels_rounded_on_several_multiples_at_once(kind: str, options: dict) -> None:
    model, data = layer_and_data(kind)
    graph = detent.capture(model, data[:2])
    stats = detent.calibrate(graph, data, progress=False)
    ((name, entry),) = detent.plan(graph, stats, weights_bits=3, **options).weights.items()
    kernel = graph.tensor(graph.find(name).weight).detach().numpy()
    channels = kernel.shape[entry.grid.axis]
    factors = np.random.default_rng(0).uniform(0.5, 2, (4, channels))
    found = round_scaled(entry.grid, kernel, factors)
    assert found.shape == (4, *kernel.shape)
    for one, row in zip(found, factors, strict=True):
        assert np.array_equal(one, scaled(entry.grid, row).round(kernel))


def test_a_kernel_with_one_step_rounded_on_several_multiples() -> None:
    grid = detent.Grid(kind="uniform", bits=4, signed=True, lower=-1.0, upper=2.0)
    values = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    factors = np.array([[0.5], [1.0], [1.7]])
    found = round_scaled(grid, values, factors)
    for one, (factor,) in zip(found, factors, strict=True):
        assert np.array_equal(one, scaled(grid, factor).round(values))


def test_groups_of_a_channel_move_together() -> None:
    model, data = layer_and_data("conv")
    graph = detent.capture(model, data[:2])
    grid = detent.plan(graph, detent.calibrate(graph, data, progress=False)).weights["conv2d"].grid
    assert grid is not None
    grouped = replace(grid, group_size=4, threshold=np.repeat(grid.threshold, 2))
    moved = scaled(grouped, np.arange(1, 13))
    assert np.array_equal(moved.threshold, np.repeat(grid.threshold * np.arange(1, 13, dtype=np.float32), 2))
