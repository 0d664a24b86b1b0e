"""The graph editor: names stay unique and reach into the bodies of control-flow nodes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from detent.exporters.onnx_graph import OnnxGraph


def branching_model() -> onnx.ModelProto:
    """`If(flag)` whose branches read `x` and an initializer from outside."""
    branches = [
        helper.make_graph(
            [helper.make_node(operator, ["x", "step"], [f"{operator}_out"])],
            operator,
            [],
            [helper.make_tensor_value_info(f"{operator}_out", TensorProto.FLOAT, [2])],
        )
        for operator in ("Add", "Mul")
    ]
    choose = helper.make_node("If", ["flag"], ["y"], then_branch=branches[0], else_branch=branches[1])
    graph = helper.make_graph(
        [choose],
        "branching",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        [helper.make_tensor("step", TensorProto.FLOAT, [2], [1.0, 2.0]), helper.make_tensor("idle", 1, [1], [0.0])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_renaming_reaches_into_branches() -> None:
    model = branching_model()
    graph = OnnxGraph(model)
    graph.rename({"x": "image", "step": "offset", "Add_out": "sum", "y": "result"})
    graph.write_back()
    onnx.checker.check_model(model, full_check=True)
    assert [tensor.name for tensor in model.graph.initializer] == ["offset"]  # used in the branches only
    assert list(model.graph.node[0].attribute[0].g.node[0].input) == ["image", "offset"]


def test_constants_are_shared_by_content_and_named_once() -> None:
    graph = OnnxGraph(branching_model())
    first = graph.constant("kernel", np.ones(3, np.int8), share=True)
    assert graph.constant("other", np.ones(3, np.int8), share=True) == first == "kernel"
    assert graph.constant("kernel", np.ones(3, np.uint8), share=True) == "kernel_1"
    assert graph.fresh("Mul_out") == "Mul_out_1"


def test_four_bit_constants_are_packed_low_nibble_first() -> None:
    graph = OnnxGraph(branching_model())
    name = graph.constant("codes", np.array([[1, -2, 3]], np.int8), kind=TensorProto.INT4)
    tensor = graph.initializers[name]
    assert tensor.raw_data == bytes([0xE1, 0x03])
    assert list(tensor.dims) == [1, 3]
    assert onnx.numpy_helper.to_array(tensor).astype(np.int8).tolist() == [[1, -2, 3]]
