"""Analytic bias correction: exact where the statistics say everything, refused or noted where they do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import detent
from detent.errors import ConfigError
from detent.records.correction import BiasCorrection
from detent.records.plan import QuantPlan

COARSE = {"target": "imx500", "weights_bits": 2}


def corrected(model, data, **options):
    graph = detent.capture(model, data[:2])
    stats = detent.calibrate(graph, data, progress=False)
    return graph, detent.plan(graph, stats, bias_correction="analytic", **{**COARSE, **options})


def means(model, data, axis=1):
    with torch.no_grad():
        y = model(data).double()
    return y.mean(dim=[i for i in range(y.dim()) if i != axis])


def kernel_only(graph, plan):
    """The network with quantized kernels, float activations."""
    floats = dict.fromkeys(plan.activations, "float")
    data = plan.to_json()
    import json

    record = json.loads(data)
    record["activations"] = floats
    return detent.apply(graph, QuantPlan.from_json(json.dumps(record)))


CASES = {
    "linear": (lambda: nn.Linear(12, 7), (256, 12), 1),
    "linear without bias": (lambda: nn.Linear(12, 7, bias=False), (256, 12), 1),
    "conv": (lambda: nn.Conv2d(6, 8, 3), (64, 6, 9, 9), 1),
    "grouped": (lambda: nn.Conv2d(6, 8, 1, groups=2, bias=False), (64, 6, 5, 5), 1),
    "depthwise conv": (lambda: nn.Conv2d(6, 12, 3, groups=6), (64, 6, 5, 5), 1),
    "conv1d": (lambda: nn.Conv1d(6, 8, 1), (64, 6, 20), 1),
    "transposed": (lambda: nn.ConvTranspose2d(6, 8, 2, stride=2), (64, 6, 5, 5), 1),
    "transposed, grouped": (lambda: nn.ConvTranspose2d(6, 8, 2, stride=2, groups=2), (64, 6, 5, 5), 1),
}


@pytest.mark.parametrize("name", CASES)
def test_the_mean_of_the_output_is_that_of_the_float_layer(name):
    make, shape, axis = CASES[name]
    torch.manual_seed(1)
    layer = make()
    data = torch.randn(*shape, generator=torch.Generator().manual_seed(2)) + 1.5
    if name.endswith("conv"):  # without padding, every tap sees almost the same mean
        data = data.mean(dim=(2, 3), keepdim=True).expand(*shape).contiguous()
    model = nn.Sequential(layer).eval()
    graph, plan = corrected(model, data)
    wanted = means(model, data, axis)
    got = means(kernel_only(graph, plan), data, axis)
    (correction,) = plan.bias_corrections.values()
    assert np.abs(correction.shift).max() > 1e-3
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "model",
    [nn.Sequential(nn.Linear(12, 7)), nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 7))],
    ids=["network's input", "another layer's output"],
)
def test_means_of_tokens_are_those_of_their_last_axis(model):
    torch.manual_seed(1)
    data = torch.randn(64, 12, 12) + torch.arange(12.0)
    graph, plan = corrected(model.eval(), data)
    assert len(plan.bias_corrections) == len(model)
    first = next(iter(plan.bias_corrections))
    one = replace(plan, bias_corrections={first: plan.bias_corrections[first]})
    if len(model) == 1:
        torch.testing.assert_close(means(kernel_only(graph, one), data, 2), means(model, data, 2), rtol=1e-4, atol=1e-4)


def test_a_classifier_behind_a_flattened_map_is_corrected():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 7)).eval()
    data = torch.rand(64, 3, 4, 4)
    graph, plan = corrected(model, data)
    torch.testing.assert_close(means(kernel_only(graph, plan), data), means(model, data), rtol=1e-4, atol=1e-4)


def test_moments_serve_where_the_statistics_have_no_means():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=2)).eval()
    data = torch.rand(64, 4, 4, 4)
    graph = detent.capture(model, data[:2])
    stats = detent.calibrate(graph, data, progress=False, channels=False)
    moments = detent.collect_moments(graph, data)
    options = {"bias_correction": "analytic", "weights_metric": "mse", "gain_correction": "none", **COARSE}
    plan = detent.plan(graph, stats, moments=moments, **options)
    wanted = means(model, data)
    assert (means(kernel_only(graph, replace(plan, bias_corrections={})), data) - wanted).abs().max() > 1e-2
    torch.testing.assert_close(means(kernel_only(graph, plan), data), wanted, rtol=1e-6, atol=1e-6)


def test_padding_is_seen_where_there_are_moments():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 8, 5, padding=2)]
    model, data = nn.Sequential(*layers).eval(), torch.rand(64, 3, 4, 4) + 2
    graph = detent.capture(model, data[:2])
    stats = detent.calibrate(graph, data, progress=False)
    moments = detent.collect_moments(graph, data, progress=False)
    wanted = model(data).detach()
    lost = {}
    for name, given, correction in (
        ("none", None, "none"),
        ("means", None, "analytic"),
        ("moments", moments, "analytic"),
    ):
        options = {"weights_metric": "mse", "gain_correction": "none", "weights_bits": 4}
        plan = detent.plan(graph, stats, bias_correction=correction, moments=given, **options)
        lost[name] = float((detent.apply(graph, plan)(data) - wanted).square().mean())
    # Most of a patch of these layers is padding.
    assert lost["moments"] < 0.6 * lost["means"]
    assert lost["moments"] < 0.85 * lost["none"]


def test_a_layer_without_means_is_named():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    data = torch.randn(32, 4)
    graph = detent.capture(model, data[:2])
    stats = detent.calibrate(graph, data, progress=False, channels=False)
    plan = detent.plan(graph, stats, bias_correction="analytic", **COARSE)
    assert not plan.bias_corrections
    assert sum("nothing holds the means" in note for note in plan.notes) == 2


def test_plans_keep_corrections():
    torch.manual_seed(1)
    data = torch.randn(64, 12)
    graph, plan = corrected(nn.Sequential(nn.Linear(12, 7)).eval(), data)
    again = QuantPlan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()
    y = detent.apply(graph, plan)(data)
    assert torch.equal(detent.apply(graph, again)(data), y)
    assert not torch.equal(detent.apply(graph, corrected_away(plan))(data), y)


def corrected_away(plan):
    return replace(plan, bias_corrections={})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"nowhere": {"shift": [0.0]}}, "layer in `bias_corrections`"),
        ({"linear": {"shift": [0.0, 1.0]}}, "7 output channels, its bias correction 2"),
        ({"linear": {"shift": []}}, "finite numbers, one per output channel"),
        ({"linear": {"shift": "0"}}, "list of numbers"),
        ({"linear": {"shift": [float("nan")] * 7}}, "finite numbers"),
        ({"linear": {"shifts": [0.0] * 7}}, "shifts"),
        ({"linear": 3}, "an object"),
    ],
)
def test_edits_that_make_no_sense(edit, message):
    import json

    torch.manual_seed(1)
    data = torch.randn(64, 12)
    graph, plan = corrected(nn.Sequential(nn.Linear(12, 7)).eval(), data)
    (name,) = plan.bias_corrections
    record = json.loads(plan.to_json())
    record["bias_corrections"] = {name if key == "linear" else key: value for key, value in edit.items()}
    with pytest.raises(ConfigError, match=message):
        detent.apply(graph, QuantPlan.from_json(json.dumps(record)))


def test_numbers_survive_as_float32():
    shift = np.array([1 / 3, 1e-30, -2.5e10], np.float32)
    again = BiasCorrection.from_dict(BiasCorrection(shift=shift, method="analytic").to_dict(), "layer")
    assert np.array_equal(again.shift, shift)


def test_trainable_models_train_the_corrected_bias():
    torch.manual_seed(1)
    data = torch.randn(64, 12)
    graph, plan = corrected(nn.Sequential(nn.Linear(12, 7)).eval(), data)
    qmodel = detent.apply(graph, plan, trainable=True)
    qmodel(data).sum().backward()
    trained = [name for name, parameter in qmodel.named_parameters() if parameter.grad is not None]
    assert any("bias" in name for name in trained)
