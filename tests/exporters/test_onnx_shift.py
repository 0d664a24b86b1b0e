"""Shifted activations in ONNX: the constant sits before the quantizer, the padding behind it, and runtimes agree."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

import detent
from detent.exporters import verify_onnx, verify_onnx_values


class Network(nn.Module):
    """SiLU read by a padded convolution, a sum and an average pool."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 5, padding=2, groups=2)
        self.last = nn.Linear(8 * 36, 5)
        self.pool = nn.AvgPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.silu(self.first(x))
        z = nn.functional.gelu(y - self.second(y))
        return self.last(self.pool(z).flatten(1))


def test_runtimes_agree_on_shifted_values(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Network().eval(), 2 * torch.randn(16, 3, 12, 12)
    qmodel = detent.quantize(model, [x], target="imx500", shift_negative=True, shift_negative_ratio=1.0, progress=False)
    shifted = [name for name in qmodel.plan.activations if name.endswith(".shifted")]
    assert shifted == ["silu.shifted", "gelu.shifted"]
    path = detent.export(qmodel, tmp_path / "shifted.onnx").path
    assert verify_onnx(path, qmodel, x).largest_steps <= 1.0
    assert {value.name for value in verify_onnx_values(path, qmodel, x)} >= set(shifted)
    graph = onnx.load(path).graph
    readers = {name: node.op_type for node in graph.node for name in node.input}
    makers = {name: node.op_type for node in graph.node for name in node.output}
    pads = [node for node in graph.node if node.op_type == "Pad"]
    assert len(pads) == 2
    for pad in pads:
        assert makers[pad.input[0]] == "DequantizeLinear"
        assert readers[pad.output[0]] in ("Conv", "AveragePool")
