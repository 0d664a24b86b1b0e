"""Capture: the graph computes what the model computes, whatever form model and inputs have."""

from __future__ import annotations

import torch
from torch import nn

from detent.graph import capture


def test_graph_computes_what_the_model_computes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    graph = capture(model.eval(), torch.randn(1, 3, 8, 8))
    assert [node.name for node in graph.nodes()] == ["input", "0", "1", "2"]
    x = torch.randn(5, 3, 8, 8)
    assert torch.equal(graph(x), model(x))
