"""What Qualcomm's HTP takes of a QDQ file: the cases are those that were tried on the emulator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from tests.exporters.hand_quantized import codebook, keep_float, mixed, quantize_by_hand, symmetric, uniform
from torch import nn
from torch.nn import functional

from detent.errors import ExportError
from detent.exporters import export_onnx
from detent.exporters.onnx_graph import OnnxGraph
from detent.exporters.onnx_qnn import check_qnn, prepare_qnn
from detent.records.grid import Grid


class Layers(nn.Module):
    """Two convolutions with a function between."""

    def __init__(self, between: Any = torch.relu) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 4, 3)
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.between(self.first(x)))


class Columns(nn.Module):
    """A linear layer on three axes: a product and a sum in ONNX."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def images() -> torch.Tensor:
    return torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def graph_of(
    path: Path, model: nn.Module, example: Any, batch: int | None = 1, **options: Any
) -> tuple[OnnxGraph, Any]:
    torch.manual_seed(0)
    qmodel = quantize_by_hand(model, example, **options)
    return OnnxGraph(onnx.load(export_onnx(qmodel, path / "model.onnx", batch=batch))), qmodel


FUSED = {"first": keep_float}
SYMMETRIC = symmetric(narrow_range=False)
TAKEN: dict[str, dict[str, Any]] = {
    "usual": {"activations": mixed(uniform(), FUSED)},
    "4-bit kernels": {"activations": mixed(uniform(), FUSED), "weights": symmetric(4, axis=0)},
    "signed": {"activations": mixed(uniform(signed=True), FUSED)},
    "a ReLU of its own on symmetric codes": {"activations": SYMMETRIC},
    "codebook": {"weights": codebook(4, axis=0), "biases": False},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "symmetric codes behind a fused ReLU": (
        {"activations": mixed(SYMMETRIC, FUSED)},
        r"(?s)a Relu behind a kernel.*relu .*test_onnx_qnn\.py:\d+",
    ),
    "7-bit codes": (
        {"activations": mixed(uniform(), {"relu": uniform(7), **FUSED})},
        r"(?s)gives a value in float.*first\.weight",
    ),
    "int16 codes": ({"activations": uniform(16, signed=True)}, "int16 activations"),
    "two widths": ({"activations": mixed(uniform(), {"second": uniform(16)})}, r"between uint8 and uint16"),
    "steps for channels": (
        {"activations": mixed(uniform(), {"relu": uniform(axis=1)}), "biases": False},
        r"(?s)a step for each channel.*relu",
    ),
    "16-bit kernels": ({"weights": symmetric(16, axis=0)}, r"(?s)int16 weights.*first\.weight.*test_onnx_qnn\.py:\d+"),
    "uint4 kernels": ({"weights": uniform(4, axis=0)}, r"(?s)uint4 weights.*first\.weight"),
    "4 bits with one step": ({"weights": symmetric(4)}, r"(?s)4-bit weights with one step.*first\.weight"),
    "zero points for channels": ({"weights": uniform(axis=0)}, r"(?s)a zero point for each channel.*first\.weight"),
    "groups": ({"weights": symmetric(8, axis=0, group_size=1)}, r"(?s)steps for groups.*first\.weight"),
    "a float input": (
        {"activations": mixed(uniform(), {"x": keep_float}), "biases": False},
        r"(?s)reads a value in float.*first\.weight",
    ),
    "a float output": (
        {"activations": mixed(uniform(), {"second": keep_float})},
        r"(?s)gives a value in float.*second\.weight",
    ),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_the_htp_takes(case: str, tmp_path: Path) -> None:
    assert check_qnn(*graph_of(tmp_path, Layers(), images(), **TAKEN[case])) == []


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_does_not_take_is_refused_by_layer(case: str, tmp_path: Path) -> None:
    options, message = REFUSED[case]
    graph, qmodel = graph_of(tmp_path, Layers(), images(), **options)
    with pytest.raises(ExportError, match=message) as caught:
        check_qnn(graph, qmodel)
    assert caught.value.where
    assert caught.value.remedy


def test_sixteen_bits_are_noted(tmp_path: Path) -> None:
    (note,) = check_qnn(*graph_of(tmp_path, Layers(), images(), activations=uniform(16)))
    assert "16-bit activations" in note


def test_batch_of_any_size(tmp_path: Path) -> None:
    graph, qmodel = graph_of(tmp_path, Layers(), images(), batch=None)
    with pytest.raises(ExportError, match=r"(?s)a batch of any size.*x.*batch=1"):
        check_qnn(graph, qmodel)


def test_two_bit_codes(tmp_path: Path) -> None:
    graph, qmodel = graph_of(tmp_path, Layers(), images(), weights=symmetric(4, axis=0))
    zeros = next(node.input[2] for node in graph.nodes if node.input and node.input[0] == "first.weight_codes")
    graph.initializers[zeros] = helper.make_tensor(zeros, TensorProto.INT2, [8], [0] * 8)
    with pytest.raises(ExportError, match=r"(?s)computes something else with 2-bit codes.*first\.weight"):
        check_qnn(graph, qmodel)


@pytest.mark.parametrize("upper", [6.0, 6.5])
def test_relu6_needs_a_grid_that_ends_with_it(upper: float, tmp_path: Path) -> None:
    grid = Grid(kind="uniform", bits=8, signed=False, lower=[0.0], upper=[upper])
    activations = mixed(uniform(), {"relu6": lambda _: grid, **FUSED})
    graph, qmodel = graph_of(tmp_path, Layers(functional.relu6), images(), activations=activations)
    if upper == 6.0:
        assert check_qnn(graph, qmodel) == []
    else:
        with pytest.raises(ExportError, match=r"(?s)a Clip behind a kernel.*relu6"):
            check_qnn(graph, qmodel)


def test_relu6_of_its_own_on_symmetric_codes_is_computed_wrongly(tmp_path: Path) -> None:
    graph, qmodel = graph_of(tmp_path, Layers(functional.relu6), images(), activations=SYMMETRIC)
    with pytest.raises(ExportError, match=r"(?s)computes something else where a Clip.*relu6"):
        check_qnn(graph, qmodel)


def test_a_gelu_is_one_operator_from_opset_20_on(tmp_path: Path) -> None:
    torch.manual_seed(0)
    qmodel = quantize_by_hand(Layers(functional.gelu), images())
    old = OnnxGraph(onnx.load(export_onnx(qmodel, tmp_path / "old.onnx", batch=1)))
    with pytest.raises(ExportError, match=r"(?s)a GELU in parts.*gelu.*opset=20"):
        check_qnn(old, qmodel)
    assert check_qnn(OnnxGraph(onnx.load(export_onnx(qmodel, tmp_path / "new.onnx", batch=1, opset=20))), qmodel) == []


def test_a_bias_behind_a_product_belongs_to_the_layer(tmp_path: Path) -> None:
    graph, qmodel = graph_of(tmp_path, Columns(), torch.randn(8, 5, 32))
    assert {"MatMul", "Add"} <= {node.op_type for node in graph.nodes}
    assert check_qnn(graph, qmodel) == []


def test_moved_values_get_quantizers_that_change_nothing(tmp_path: Path) -> None:
    def grown(x: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(functional.pad(functional.max_pool2d(x, 2), (1, 1, 1, 1)), scale_factor=2.0)

    graph, qmodel = graph_of(tmp_path, Layers(grown), images())
    before = graph.proto.SerializeToString()
    count = sum(node.op_type == "QuantizeLinear" for node in graph.nodes)
    prepare_qnn(graph, qmodel)
    graph.write_back()
    onnx.checker.check_model(graph.proto, full_check=True)
    assert sum(node.op_type == "QuantizeLinear" for node in graph.nodes) == count + 3
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    feeds = {"x": images()[:1].numpy()}
    one, other = (
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for content in (before, graph.proto.SerializeToString())
    )
    assert np.array_equal(one, other)
