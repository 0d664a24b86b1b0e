"""Rounded kernels of layers that took in the mean of raw input compute what they would of centred input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import detent
from detent import Preprocessing
from detent.graph.shifts import COMPENSATED
from detent.records.plan import TensorPlan

PHOTO = Preprocessing(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), dtype="uint8")
GREY = Preprocessing(scale=1 / 255, mean=0.5, std=0.25, dtype="uint8")
FIRST: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(3, 6, 3),
    "padded": lambda: nn.Conv2d(3, 6, 3, padding=1),
    "depthwise_padded": lambda: nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=False),
    "flattened": lambda: nn.Sequential(nn.Flatten(), nn.Linear(243, 5)),
}


def raw_images(samples: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (samples, 3, 9, 9), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("record", [GREY, PHOTO], ids=["grey", "photo"])
@pytest.mark.parametrize("name", FIRST)
def test_rounded_kernels_see_centred_input(name: str, record: Preprocessing) -> None:
    torch.manual_seed(0)
    model, raw = FIRST[name](), raw_images()
    graph = detent.capture(model, raw, preprocessing=record)
    plan = detent.plan(graph, detent.calibrate(graph, raw, progress=False), weights_bits=3, bias_correction="none")
    (layer,) = plan.weights
    # Without grids on activations, what is left is the rounded kernel applied to the normalized input, and its bias.
    bare = replace(plan, activations={value: TensorPlan(grid=None) for value in plan.activations})
    kernel = graph.tensor(graph.find(layer).weight).detach().numpy()
    rounded = torch.from_numpy(plan.weights[layer].grid.round(kernel))
    prepared = torch.from_numpy(record.normalize(raw.numpy()))
    gain = torch.from_numpy(record.gain).float().expand(3)
    weight = next(module for module in model.modules() if hasattr(module, "weight")).weight
    if name == "flattened":
        rounded = rounded / gain.repeat_interleave(81)
    elif name == "depthwise_padded":
        rounded = rounded / gain.repeat_interleave(2).reshape(-1, 1, 1, 1)
    else:
        rounded = rounded / gain.reshape(1, -1, 1, 1)
    with torch.no_grad():
        weight.copy_(rounded)
        wanted, got = model(prepared), detent.apply(graph, bare)(raw)
    assert (wanted - got).abs().max() <= 1e-4 * wanted.abs().max()


def test_corrections_by_data_come_on_top() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3))
    raw = raw_images(32)
    graph = detent.capture(model, raw, preprocessing=PHOTO)
    statistics = detent.calibrate(graph, raw, progress=False, channels=True)
    with torch.no_grad():
        wanted = graph(raw).mean((0, 2, 3))

        def off(plan: detent.QuantPlan) -> float:
            return float((detent.apply(graph, plan)(raw).mean((0, 2, 3)) - wanted).abs().max())

        plain = detent.plan(graph, statistics, weights_bits=4, bias_correction="none")
        analytic = detent.plan(graph, statistics, weights_bits=4, bias_correction="analytic")
        assert off(detent.correct_biases(graph, plain, raw)) < 0.02 * float(wanted.abs().max())
        assert off(analytic) < off(plain)


def test_a_collapsed_first_layer_keeps_the_mean_it_took_in() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1))
    raw = raw_images()
    graph = detent.transform(detent.capture(model, raw, preprocessing=PHOTO), linear_collapsing=True)
    (layer,) = (node for node in graph.nodes() if node.weight is not None)
    np.testing.assert_allclose(layer.node.meta[COMPENSATED], np.array(PHOTO.mean) * 255)
