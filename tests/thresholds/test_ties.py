"""Tie-free steps: what they promise about every accumulator, and what follows for two runtimes."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import detent
from detent.exporters import verify_onnx
from detent.thresholds.ties import tie_free
from tests.statistics.networks import Residual, build, residual_graph, samples

LARGEST_CHANGE = 2.0**-12


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.floats(2.0**-24, 2.0**8))
def test_multipliers_move_a_little_and_have_odd_denominators(multiplier):
    found = float(tie_free([multiplier])[0])
    assert abs(found - multiplier) <= LARGEST_CHANGE * multiplier
    fraction = Fraction(found).limit_denominator(1 << 26)
    assert abs(float(fraction) - found) <= 2.0**-50 * found
    assert fraction.denominator % 2 == 1


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.floats(2.0**-11, 1.0), st.integers(1, 1 << 20))
def test_no_accumulator_is_near_a_tie(multiplier, start):
    accumulators = np.arange(start, start + 20_000, dtype=np.float64)
    codes = accumulators * float(tie_free([multiplier])[0])
    distance = np.abs(codes - np.floor(codes) - 0.5)
    assert distance.min() > 8e-5


def test_without_it_ties_are_common():
    codes = np.arange(1, 1 << 20, dtype=np.float64) * 0.00731
    assert np.abs(codes - np.floor(codes) - 0.5).min() < 1e-5


def plans(graph, target):
    stats = detent.calibrate(graph, samples(64), progress=False)
    before = detent.plan(graph, stats, target=target, tie_free=False)
    return before, detent.plan(graph, stats, target=target)


@pytest.mark.parametrize("target", ["imx500", "onnxruntime", "tflite", "tensorrt"])
def test_thresholds_of_a_plan(target):
    before, after = plans(residual_graph(), target)
    assert before.activations == after.activations
    changed = 0
    for layer, entry in after.weights.items():
        old, new = before.weights[layer].grid.scale.astype(float), entry.grid.scale.astype(float)
        assert np.all(np.abs(new - old) <= (LARGEST_CHANGE + 1e-7) * old)
        changed += int((new != old).sum())
    assert changed
    assert after.config == {}
    assert before.config == {"tie_free": False}


def test_every_layer_between_two_grids_is_tie_free():
    graph = residual_graph()
    _, plan = plans(graph, "onnxruntime")
    nodes = {node.name: node for node in graph.nodes()}
    # conv -> relu is fused, so the accumulator of the convolution meets the grid of the relu.
    for layer, source, output in (("conv", "x", "relu"), ("linear", None, "linear")):
        source = source or next(
            name for name in (graph.name_of(nodes[layer].data[0]), "add") if name in plan.activations
        )
        ratio = float(plan.activation_grid(source).scale[0]) / float(plan.activation_grid(output).scale[0])
        multiplier = plan.weights[layer].grid.scale.astype(float) * ratio
        codes = np.arange(1, 200_000)[:, None] * multiplier
        assert np.abs(codes - np.floor(codes) - 0.5).min() > 5e-5


class Deep(nn.Module):
    """Enough convolutions for rounding errors of one bit to spread."""

    def __init__(self):
        super().__init__()
        layers, channels = [], 3
        for width in (16, 24, 24, 32, 32, 16):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU6()]
            layers += [nn.Conv2d(width, width, 3, padding=1, groups=width), nn.ReLU()]
            channels = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels, 10)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


@pytest.mark.parametrize("target", ["imx500", "onnxruntime", "tflite"])
@pytest.mark.parametrize("bits", [8, 4])
def test_onnxruntime_gives_the_very_same_outputs(target, bits, tmp_path):
    if target != "imx500" and bits == 4:
        pytest.skip("the target has 8-bit kernels only")
    torch.manual_seed(3)
    model = Deep().eval()
    data = torch.randn(256, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    qmodel = detent.quantize(model, data, target=target, weights_bits=bits, progress=False)
    agreement = verify_onnx(detent.export(qmodel, tmp_path / "model.onnx"), qmodel, data)
    assert agreement.largest_steps == 0.0
    assert agreement.top1 == 1.0


def test_float_biases_sit_on_the_accumulators_steps():
    graph = residual_graph()
    stats = detent.calibrate(graph, samples(64), progress=False)
    plan = detent.plan(graph, stats, target="imx500")
    qmodel = detent.apply(graph, plan)
    steps = plan.activation_grid("x").scale.astype(float) * plan.weights["conv"].grid.scale.astype(float)
    (bias,) = (tensor for name, tensor in qmodel.state_dict().items() if name.endswith("conv.bias_rounded"))
    multiples = bias.double().numpy() / steps
    np.testing.assert_allclose(multiples, np.rint(multiples), atol=1e-3)
    original = build(Residual).conv.bias.detach().double().numpy() + plan.bias_corrections["conv"].shift
    assert np.all(np.abs(bias.double().numpy() - original) <= 0.5001 * steps)
