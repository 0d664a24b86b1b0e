"""Sequential bias correction: means are those of float, what does not help is left out, data come in any form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import detent
from detent.corrections.sequential import _judge
from detent.errors import CalibrationError

OPTIONS = {"target": "imx500", "weights_bits": 2, "progress": False}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.middle = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.last = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = torch.relu(self.middle(x)) + x
        return self.last(x.mean((2, 3)))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(5)
    return Net().eval()


@pytest.fixture(scope="module")
def data():
    return torch.randn(256, 3, 8, 8, generator=torch.Generator().manual_seed(6)) + 0.5


def error(model, qmodel, data):
    with torch.no_grad():
        return float((model(data) - qmodel(data)).square().mean())


def test_it_brings_outputs_closer_to_float(model, data):
    plain = detent.quantize(model, data, bias_correction="none", **OPTIONS)
    sequential = detent.quantize(model, data, bias_correction="sequential", **OPTIONS)
    assert error(model, sequential, data) < 0.7 * error(model, plain, data)
    assert set(sequential.plan.bias_corrections) <= set(sequential.plan.weights)


def test_means_behind_corrected_predecessors(model, data):
    graph = detent.capture(model, data[:2])
    stats = detent.calibrate(graph, data, progress=False)
    plan = detent.plan(graph, stats, target="onnxruntime")
    corrected = detent.correct_biases(graph, plan, data, samples=256)
    qmodel = detent.apply(graph, corrected)
    with torch.no_grad():
        difference = (model(data[:192]) - qmodel(data[:192])).mean(dim=0)
    # The output is rounded to its own grid after the bias.
    assert difference.abs().max() < 0.6 * float(plan.activation_grid("last").scale[0])


def test_the_same_bits_again(model, data):
    first = detent.quantize(model, data, bias_correction="sequential", **OPTIONS).plan.to_json()
    assert detent.quantize(model, data, bias_correction="sequential", **OPTIONS).plan.to_json() == first


@pytest.mark.parametrize("form", ["array", "list", "generator", "callable"])
def test_data_of_any_form(model, data, form):
    want = detent.quantize(model, data, bias_correction="sequential", **OPTIONS).plan
    given = {
        "array": data.numpy(),
        "list": list(data.split(50)),
        "generator": (batch for batch in data.split(37)),
        "callable": lambda: iter(data.split(64)),
    }[form]
    got = detent.quantize(model, given, bias_correction="sequential", bias_correction_samples=256, **OPTIONS).plan
    assert got.bias_corrections == want.bias_corrections


def test_what_does_not_help_is_left_out_and_named(model, data):
    graph = detent.capture(model, data[:2])
    stats = detent.calibrate(graph, data, progress=False)
    plan = detent.plan(graph, stats, target="onnxruntime")
    # The samples that judge have another mean than those corrected for.
    tail = -data[:64] * 3
    corrected = detent.correct_biases(graph, plan, torch.cat([data[:192], tail]), samples=256)
    left_out = [layer for layer in plan.weights if layer not in corrected.bias_corrections]
    noted = [note for note in corrected.notes if "no better on held-out samples" in note]
    assert bool(left_out) == bool(noted)
    for layer in left_out:
        assert layer in noted[0]


@pytest.mark.parametrize(("held_out", "better"), [(1.0, True), (0.6, True), (-1.0, False), (0.4, False)])
def test_held_out_batches_judge(held_out, better):
    """A shift of 1 in the batches corrected for helps if the others are shifted by more than half of it."""
    found = [torch.zeros(4, 3, 2), torch.zeros(4, 3, 2)]
    wanted = [torch.ones(4, 3, 2), torch.full((4, 3, 2), held_out)]
    judged = _judge(wanted, found, axis=1, held_out=1)
    assert torch.equal(judged.shift, torch.ones(3))
    assert judged.better is better


def test_few_samples(model, data):
    graph = detent.capture(model, data[:2])
    plan = detent.plan(graph, detent.calibrate(graph, data, progress=False), target="imx500")
    assert detent.correct_biases(graph, plan, data[:2]).bias_corrections is not None
    with pytest.raises(CalibrationError, match="at least two"):
        detent.correct_biases(graph, plan, data[:1])
    with pytest.raises(CalibrationError, match="empty"):
        detent.correct_biases(graph, plan, [])


def test_fixed_batches(model, data):
    graph = detent.capture(model, data[:32], dynamic_batch=False)
    plan = detent.plan(graph, detent.calibrate(graph, data, progress=False), target="imx500", weights_bits=2)
    corrected = detent.correct_biases(graph, plan, data)
    assert corrected.bias_corrections
    assert all(np.isfinite(one.shift).all() for one in corrected.bias_corrections.values())
