"""Scores of kernels behind shifted values are what the quantized network does: the bias takes back what it must."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import detent
from detent.graph.policy import place_as_asked
from detent.graph.shifts import COMPENSATED
from detent.sensitivity import score_by_measuring, score_by_probes
from tests.mixed_targets import write_target


class Network(nn.Module):
    """SiLU before a grouped convolution, a transposed one, which is not shifted for, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2, bias=False)
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        act = nn.functional.silu
        return self.head(act(self.up(act(self.grouped(act(self.stem(x)))))).mean((2, 3)))


def only(plan: detent.QuantPlan, layer: str) -> detent.QuantPlan:
    """The plan with one kernel quantized."""
    nothing: dict[str, Any] = {"grid": None, "error": None, "metric": None}
    return replace(
        plan,
        weights={
            name: entry if name == layer else replace(entry, **nothing, gain=None, bias_bits=None)
            for name, entry in plan.weights.items()
        },
        activations={name: replace(entry, **nothing, same_as=None) for name, entry in plan.activations.items()},
        bias_corrections={name: one for name, one in plan.bias_corrections.items() if name == layer},
    )


@pytest.mark.parametrize("correction", ["none", "analytic"])
def test_kernels_that_read_shifted_values(tmp_path: Path, correction: str) -> None:
    torch.manual_seed(0)
    model, data = Network().eval(), 4 * torch.randn(8, 3, 5, 5)
    with torch.no_grad():
        model.grouped.weight *= 6  # so that its output is large against the negative tail
    target = write_target(tmp_path, (8, 4), (8,))
    graph = detent.capture(model, data[:2])
    seen = detent.calibrate(graph, data, progress=False)
    graph = detent.transform(graph, seen, target=target, shift_negative=True, shift_negative_ratio=1.0)
    reading = {node.name for node in graph.nodes() if COMPENSATED in node.node.meta}
    assert {"grouped", "head"} <= reading
    stats = detent.calibrate(graph, data, progress=False, channels=True)
    options: dict[str, Any] = {"target": target, "bias_correction": correction, "gain_correction": "none"}
    plans = [detent.plan(graph, stats, weights_bits=bits, **options) for bits in (8, 4)]
    placement = place_as_asked(graph, detent.load_target(target))
    measured = score_by_measuring(graph, placement, plans, [[data]], points="outputs")
    probed = score_by_probes(graph, placement, plans, [[data]], probes=5)
    with torch.no_grad():
        wanted = graph.module(data)
        for layer in reading:
            for plan, bits in zip(plans, (8, 4), strict=True):
                change = detent.apply(graph, only(plan, layer))(data) - wanted
                true = float(change.double().square().sum() / wanted.double().square().sum())
                np.testing.assert_allclose(measured.find(layer, "weights").score(bits), true, rtol=1e-3)
                np.testing.assert_allclose(probed.find(layer, "weights").score(bits), true, rtol=0.25 * 8 / bits)
