"""Where grids go: one per value at most, none inside fused operations, shared where the target says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detent.graph import Graph, capture
from detent.graph.placement import Placement, place
from detent.targets import load_target


class Mixed(nn.Module):
    """Fusing, branches, concatenation, pooling, reshaping and an operator without a role."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.left = nn.Conv2d(4, 4, 1)
        self.right = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(8, 5)
        self.shift = nn.Parameter(torch.linspace(-1, 1, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        y = torch.cat([self.left(x), F.max_pool2d(self.right(x), 1)], 1)
        y = F.adaptive_avg_pool2d(y, 1).flatten(1)
        return torch.cumsum(self.head(y) + self.shift, 1)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return capture(Mixed().eval(), torch.randn(2, 3, 8, 8))


def placed(graph: Graph, target: str | Path) -> Placement:
    return place(graph, load_target(target))


def test_fused_and_preserving_values_have_no_grid_of_their_own(graph: Graph) -> None:
    points = placed(graph, "onnxruntime").activations
    assert "x" in points
    assert "relu" in points
    assert "first" not in points  # inside conv + relu
    assert "flatten" not in points  # lives on the grid of what it reshapes
    assert not any("max_pool" in value for value in points)


def test_kernels_know_their_users_and_inputs(graph: Graph) -> None:
    weights = placed(graph, "onnxruntime").weights
    assert list(weights) == ["first", "left", "right", "head"]
    assert weights["left"].inputs == ("relu",)
    assert weights["head"].axis == 0
    assert weights["first"].bias_bits == 32
    assert placed(graph, "imx500").weights["first"].bias_bits is None


def test_concatenation_shares_one_grid_where_the_target_asks(graph: Graph) -> None:
    tied = placed(graph, "tflite").activations
    assert tied["left"].same_as == "cat"
    assert tied["right"].same_as == "cat"  # through the max-pool
    assert set(tied["cat"].members) == {"left", "right", "cat"}
    free = placed(graph, "imx500").activations
    assert free["left"].same_as is None


def test_average_pool_keeps_its_inputs_grid_on_tflite(graph: Graph) -> None:
    pool = next(node.name for node in graph.nodes() if node.op is not None and node.op.name == "avg_pool")
    assert placed(graph, "tflite").activations[pool].same_as == "cat"
    assert placed(graph, "onnxruntime").activations[pool].same_as is None


def test_stored_operands_are_quantized_too(graph: Graph) -> None:
    point = placed(graph, "onnxruntime").activations["shift"]
    assert point.constant


def test_an_output_without_a_role_is_still_quantized_as_a_model_output(graph: Graph) -> None:
    assert graph.nodes()[-1].op is None
    assert graph.nodes()[-1].name in placed(graph, "onnxruntime").activations


def test_a_target_may_leave_operations_in_float(graph: Graph, tmp_path: Path) -> None:
    chip = {"schema_version": 1, "extends": "onnxruntime", "name": "chip", "version": "1", "description": "no cat"}
    chip["ops"] = {"cat": {"quantize_inputs": False, "output_grid": "none", "inputs_share_output_grid": False}}
    path = tmp_path / "chip.json"
    path.write_text(json.dumps(chip))
    points = placed(graph, path).activations
    # Nobody asks for the cat's grid but the pooling that reads it.
    assert "cat" in points
    assert points["left"].same_as is None


class Reused(nn.Module):
    """One kernel read by two calls, and a chain of concatenations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv(x)
        b = torch.cat([a, x], 1)
        return torch.cat([b, self.conv(a)], 1)


def test_shared_kernels_and_chained_concatenations() -> None:
    graph = capture(Reused().eval(), torch.randn(2, 4, 6, 6))
    points = placed(graph, "tflite")
    (weight,) = points.weights.values()
    assert weight.users == ("conv", "conv:1")
    assert weight.inputs == ("x", "conv")
    roots = {point.same_as or name for name, point in points.activations.items()}
    assert len(roots) == 1  # everything that is concatenated, directly or not, is one grid


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.sigmoid(x), x], 1)


def test_a_prescribed_grid_is_not_tied_and_a_note_says_so() -> None:
    graph = capture(Gate().eval(), torch.randn(2, 4))
    points = placed(graph, "tflite")
    assert points.activations["sigmoid"].same_as is None
    assert points.activations["x"].same_as == "cat"
    assert any("sigmoid" in note for note in points.notes)


class Prescribed(nn.Module):
    """Operators without a role feed a softmax and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.linear(x)
        return torch.softmax(torch.cumsum(y, 1), 1), torch.cat([torch.cumsum(x, 1), torch.cumsum(y, 1)], 1)


def test_what_binds_an_output_does_not_bind_the_inputs_of_the_operation() -> None:
    points = placed(capture(Prescribed().eval(), torch.randn(2, 4)), "tflite").activations
    assert points["softmax"].op_rule.fixed_outputs
    assert not points["cumsum"].op_rule.fixed_outputs
    assert [value for value, point in points.items() if point.same_as == "cat"] == ["cumsum:1", "cumsum:2"]
    assert points["linear"].same_as is None
