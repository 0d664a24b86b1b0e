"""Fusing patterns."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detent.graph import capture, fused_groups
from detent.transforms import fold_batch_norm
from tests.models import MODELS, build


def names(graph: object, patterns: list[list[str]]) -> list[list[str]]:
    return [[node.name for node in group] for group in fused_groups(graph, patterns)]  # type: ignore[arg-type]


def test_chains_after_folding() -> None:
    graph = fold_batch_norm(capture(build("conv_chain"), MODELS["conv_chain"].inputs(2)))
    assert names(graph, [["conv", "activation"]]) == [["features.0", "features.2"], ["features.4", "features.6"]]
    assert names(graph, [["conv", "relu6"]]) == [["features.4", "features.6"]]
    assert names(graph, [["conv2d", "relu"], ["conv", "relu", "pool"]]) == [
        ["features.0", "features.2", "features.3"],
    ]


def test_the_add_of_a_residual_takes_its_activation() -> None:
    graph = fold_batch_norm(capture(build("residual"), MODELS["residual"].inputs(2)))
    assert names(graph, [["conv", "relu"], ["add", "relu"]]) == [["conv1", "relu"], ["add", "relu:1"]]


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        z = self.conv(F.relu(y))
        return F.relu(z) + y.mean(), z


def test_a_value_read_elsewhere_or_returned_is_not_hidden() -> None:
    graph = capture(Shared(), torch.randn(2, 3, 8, 8))
    assert names(graph, [["conv", "relu"]]) == []


def test_no_patterns_no_groups() -> None:
    graph = capture(build("residual"), MODELS["residual"].inputs(2))
    assert names(graph, []) == names(graph, [["conv"]]) == []
