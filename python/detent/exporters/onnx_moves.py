"""Operators of an ONNX graph that move entries of a tensor: what they give lies on the grid of what they take."""

from __future__ import annotations

from typing import Any, Final

from detent.exporters.onnx_graph import OnnxGraph
from detent.exporters.onnx_io import MOVING
from detent.exporters.onnx_lowering import attributes_of

__all__ = ["moved_values", "quantize_moved"]

_MOVING: Final = (*MOVING, "MaxPool", "DepthToSpace", "SpaceToDepth", "Split")


def moved_values(graph: OnnxGraph, node: Any) -> list[str]:
    """The results of a node that hold entries of its first operand and nothing else but zeros; none if it computes."""
    attributes = attributes_of(node)
    if node.op_type == "Pad" and attributes.get("mode", b"constant") == b"constant":
        fill = graph.array(node.input[2]) if len(node.input) > 2 and node.input[2] else 0.0
        return list(node.output) if fill is not None and not float(fill) else []
    if node.op_type == "Pad" or (node.op_type == "Resize" and attributes.get("mode", b"nearest") == b"nearest"):
        return list(node.output)
    if node.op_type not in _MOVING:
        return []
    return [node.output[0]] if node.op_type == "MaxPool" else list(node.output)


def quantize_moved(graph: OnnxGraph) -> None:
    """Put a quantizer behind every operator that moves entries of a dequantized activation, with the same grid.

    It changes no number, and lets runtimes that look for quantizers on both sides of an operator move codes.
    """
    makers = {name: node for node in graph.nodes for name in node.output}
    nodes: list[Any] = []
    for node in graph.nodes:
        nodes.append(node)
        last = makers.get(node.input[0]) if node.input else None
        quantizer = makers.get(last.input[0]) if last is not None and last.op_type == "DequantizeLinear" else None
        if last is None or quantizer is None or quantizer.op_type != "QuantizeLinear":
            continue
        for name in moved_values(graph, node):
            readers = [one for one in graph.all_nodes() if name in one.input]
            if name not in graph.outputs and all(one.op_type == "QuantizeLinear" for one in readers):
                continue
            moved = graph.fresh(f"{name}_moved")
            codes = graph.fresh(f"{moved}_quantized")
            real, kind = graph.kind_of("float"), graph.kind_of(graph.dtype(last.input[2]))
            axis = attributes_of(last).get("axis")
            graph.describe(moved, like=name, kind=real)
            node.output[list(node.output).index(name)] = moved
            pair = (
                graph.node("QuantizeLinear", [moved, *last.input[1:]], codes, kind=kind, like=moved, axis=axis),
                graph.node("DequantizeLinear", [codes, *last.input[1:]], name, kind=real, axis=axis),
            )
            nodes += pair
            makers |= {moved: node, codes: pair[0], name: pair[1]}
    graph.nodes = nodes
