"""Grids that options of the activations decide, in ONNX: onnxruntime finds the same codes."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from tests.graph.test_sharing import Dense
from tests.thresholds.test_channel_limits import Mobile

import detent
from detent.exporters import verify_onnx, verify_onnx_values


def images() -> torch.Tensor:
    return torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("target", ["default", "imx500"])
def test_shared_concatenations_agree(target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    qmodel = detent.quantize(Dense().eval(), images(), target=target, concat_threshold_update=True, progress=False)
    path = detent.export(qmodel, tmp_path / "shared.onnx").path
    for optimize in (False, True):
        assert verify_onnx(path, qmodel, images(), optimize=optimize).largest_steps == 0
    values = {value.name: value for value in verify_onnx_values(path, qmodel, images())}
    assert values["cat"].off_fraction == values["cat:1"].off_fraction == 0
    graph = onnx.load(path).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    names = [name for name in ("relu", "right", "cat", "sigmoid", "cat:1") if f"{name}_scale" in stored]
    assert len(names) == 5
    assert len({float(stored[f"{name}_scale"]) for name in names}) == 1


def test_moving_maxima_agree(tmp_path: Path) -> None:
    torch.manual_seed(0)
    qmodel = detent.quantize(
        Dense().eval(), images().split(8), target="imx500", activation_metric="moving_maximum", progress=False
    )
    path = detent.export(qmodel, tmp_path / "moving.onnx").path
    assert verify_onnx(path, qmodel, images()).largest_steps == 0


@pytest.mark.parametrize("bits", [8, 4, 16])
def test_steps_for_each_channel_agree(bits: int, tmp_path: Path) -> None:
    torch.manual_seed(2)
    x = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(6))
    qmodel = detent.quantize(Mobile().eval(), x, activation_per_channel=True, activation_bits=bits, progress=False)
    path = detent.export(qmodel, tmp_path / "channels.onnx").path
    for optimize in (False, True):
        assert verify_onnx(path, qmodel, x, optimize=optimize).largest_steps == 0
    values = verify_onnx_values(path, qmodel, x)
    # One step of 16 bits is within the rounding of a float sum.
    assert max(value.largest_steps for value in values) <= (1 if bits == 16 else 0)
    graph = onnx.load(path).graph
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    axes = {attribute.i for node in quantizers for attribute in node.attribute if attribute.name == "axis"}
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for name, channels in (("relu", 8), ("silu", 16), ("mul", 8)):
        assert stored[f"{name}_scale"].shape == (channels,)
    assert axes == {1}
