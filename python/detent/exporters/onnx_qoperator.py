"""ONNX files in the QOperator form: operators that take and give codes, for runtimes without an optimizer.

The QDQ graph is rewritten: DQ - operator - Q becomes the operator on codes (`onnx_integer_forms`), and moves of values
become moves of codes. Results are those of the QDQ file in the integer kernels of onnxruntime, whatever it optimizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from detent.errors import ExportError
from detent.exporters.onnx_dialects import note_float_kernels
from detent.exporters.onnx_graph import OnnxGraph
from detent.exporters.onnx_integer_forms import FORMS, MICROSOFT, Codes, Wanted
from detent.exporters.onnx_io import IoChoice
from detent.exporters.onnx_lowering import attributes_of
from detent.exporters.onnx_qdq import build_qdq, finish_onnx
from detent.exporters.onnx_quantized import QdqGraph
from detent.exporters.onnx_tagging import Quantizer
from detent.exporters.report import ExportReport
from detent.exporters.subject import ExportableModel

__all__ = ["export_qoperator"]

_RESHAPES: Final = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
_MOVES: Final = (*_RESHAPES, "Transpose", "Slice", "Split", "Gather", "Expand", "Tile", "DepthToSpace", "SpaceToDepth")
_QDQ: Final = ("QuantizeLinear", "DequantizeLinear")


def export_qoperator(
    qmodel: ExportableModel,
    path: str | Path,
    *,
    strict: bool = False,
    opset: int | None = None,
    inputs: IoChoice = None,
    outputs: IoChoice = None,
) -> ExportReport:
    """Write a quantized model as ONNX with operators on codes, some of them of onnxruntime's domain `com.microsoft`.

    Kernels of 4 bits are stored in 8, since these operators take no others. What has no such operator stays between
    `DequantizeLinear` and `QuantizeLinear`, and the notes of the report name it.

    Args:
        qmodel: a `QuantizedModel`.
        path: file to write; it is complete or not there.
        strict: refuse a model with values that are computed in float.
        opset: as in `export_onnx`.
        inputs: as in `export_onnx`.
        outputs: as in `export_onnx`.

    Raises:
        ConfigError: an unknown element type or name.
        ExportError: as `export_onnx`; or, if `strict`, a value has no operator on codes.
    """
    path = Path(path)
    found = build_qdq(qmodel, path, opset=opset, inputs=inputs, outputs=outputs)

    def rewrite(qdq: QdqGraph) -> list[str]:
        remaining = _Rewriting(qdq).run()
        if strict and remaining:
            names = ", ".join(remaining)
            raise ExportError(
                f"{len(remaining)} values have no operator on codes for their grids: {names}",
                where=next(iter(remaining.values())),
                remedy="leave out `strict` to compute them in float, or write the format 'onnx'",
            )
        notes = [f"in float, between codes: {name}" for name in remaining]
        return [*notes, *_widened(qdq.graph), *note_float_kernels(qdq.graph)]

    domains = {MICROSOFT: 1}
    return finish_onnx(found, path, format="qoperator", rounding="float", notes=(), rewrite=rewrite, domains=domains)


def _widened(graph: OnnxGraph) -> list[str]:
    count = sum(name.endswith("_codes_8bit") for node in graph.nodes for name in node.input)
    return [f"kernels of 4 bits are stored in 8: {count} of them"] if count else []


class _Rewriting:
    """Goes through the nodes in order of execution, and knows the codes of every real value that has some."""

    def __init__(self, qdq: QdqGraph) -> None:
        self._graph = qdq.graph
        self._codes: dict[str, Codes] = {}
        self._makers = {name: node for node in qdq.graph.nodes for name in node.output}
        # Quantizers by the name of their codes; a grid at an output may have lost its DequantizeLinear.
        self._quantizers: dict[str, Quantizer] = {
            node.input[0]: qdq.quantizers[node.output[0]]
            for node in qdq.graph.nodes
            if node.op_type == "DequantizeLinear" and node.output[0] in qdq.quantizers
        }

    def run(self) -> dict[str, str]:
        """Rewrite; returns what is still computed in float, with the place of each."""
        nodes: list[Any] = []
        for node in self._graph.nodes:
            if node.op_type == "DequantizeLinear":
                self._codes[node.output[0]] = self._read(node)
                nodes.append(node)
            elif node.op_type == "QuantizeLinear":
                nodes.extend(self._settle(node) or [node])
            else:
                nodes.extend(self._move(node) or [node])
        self._graph.nodes = nodes
        self._graph.drop_unread_nodes()
        return dict(self._remaining())

    def _read(self, node: Any) -> Codes:
        """The codes and the grid that a `DequantizeLinear` or, for its result, a `QuantizeLinear` names."""
        numbers = node.op_type == "DequantizeLinear"
        name, zero = node.input[0] if numbers else node.output[0], node.input[2] if len(node.input) > 2 else ""
        steps = self._graph.array(node.input[1])
        assert steps is not None
        zeros = self._graph.array(zero) if zero else np.zeros(steps.shape, np.int32)
        assert zeros is not None
        maker = self._makers.get(name)
        looked_up = maker is not None and maker.op_type == "Gather" and maker.input[0] in self._graph.initializers
        axis = attributes_of(node).get("axis", 1) if steps.ndim else None
        return Codes(
            name=name,
            scale=node.input[1],
            zero_point=zero,
            dtype=self._graph.dtype(zero or name),
            steps=steps,
            zeros=zeros,
            axis=axis,
            stored=numbers and (name in self._graph.initializers or looked_up),
        )

    def _settle(self, quantize: Any) -> list[Any] | None:
        """Nodes that make the codes of a `QuantizeLinear` from codes; None if it must stay."""
        result = self._read(quantize)
        if not result.is_activation:
            return None
        info = np.iinfo(result.dtype)
        low, high, value = int(info.min), int(info.max), quantize.input[0]
        while value not in self._codes and value in self._makers:
            limits = self._limits(self._makers[value], result)
            if limits is None:
                break
            low, high = (min(max(end, low), high) for end in limits)
            value = self._makers[value].input[0]
        clamped = (low, high) != (info.min, info.max)
        made = self._graph.fresh(f"{result.name}_unclamped") if clamped else result.name
        nodes = self._made(value, _renamed(result, made))
        if nodes is None or not clamped:
            return nodes
        kind = self._graph.kind_of(result.dtype)
        ends = [
            self._graph.constant(
                f"{result.dtype}_{code}".replace("-", "minus_"), np.array(code, result.dtype), share=True
            )
            for code in (low, high)
        ]
        return [*nodes, self._graph.node("Clip", [made, *ends], result.name, kind=kind, like=value)]

    def _made(self, value: str, result: Codes) -> list[Any] | None:
        if value in self._codes:
            before = self._codes[value]
            if not before.is_activation or not before.same_grid(result):
                return None
            kind = self._graph.kind_of(result.dtype)
            return [self._graph.node("Identity", [before.name], result.name, kind=kind, like=value)]
        node = self._makers.get(value)
        if node is None or node.op_type not in FORMS:
            return None
        wanted = Wanted(
            graph=self._graph,
            node=node,
            inputs=tuple(self._codes.get(name) for name in node.input),
            result=result,
            makers=self._makers,
            codes=self._codes,
        )
        return FORMS[node.op_type](wanted)

    def _limits(self, node: Any, result: Codes) -> tuple[int, int] | None:
        """Codes of the limits of a clamp; None if the node is none, or its limits are computed."""
        if node.op_type not in ("Relu", "Clip"):
            return None
        info = np.iinfo(result.dtype)
        bounds: list[Any] = [np.float32(0.0), None]
        if node.op_type == "Clip":
            bounds = [self._graph.array(name) if name else None for name in (*node.input[1:], "", "")[:2]]
            if any(name and bound is None for name, bound in zip(node.input[1:], bounds, strict=False)):
                return None
        codes = [
            end
            if bound is None
            else int(np.clip(np.rint(bound / result.steps) + int(result.zeros), info.min, info.max))
            for bound, end in zip(bounds, (info.min, info.max), strict=True)
        ]
        return int(codes[0]), int(codes[1])

    def _move(self, node: Any) -> list[Any] | None:
        """The same move of codes, with a `DequantizeLinear` behind it for who reads real values."""
        codes = self._codes.get(node.input[0]) if node.input else None
        if codes is None or not codes.is_activation or not self._moves_codes(node):
            return None
        moved = type(node)()
        moved.CopyFrom(node)
        moved.input[0] = codes.name
        if node.op_type == "Pad":
            filling = [codes.zero_point] if attributes_of(node).get("mode", b"constant") == b"constant" else []
            rest = list(node.input[3:])
            del moved.input[2:]
            moved.input.extend([*(filling or ([""] if rest else [])), *rest])
        nodes, kind = [moved], self._graph.kind_of(codes.dtype)
        for place, value in enumerate(node.output):
            name = self._graph.fresh(f"{value}_codes")
            moved.output[place] = name
            self._graph.describe(name, like=value, kind=kind)
            rearranged = node.op_type not in (*_RESHAPES, "MaxPool")
            self._codes[value] = _renamed(codes, name, rearranged=rearranged)
            real = self._graph.kind_of("float")
            nodes.append(self._graph.node("DequantizeLinear", [name, codes.scale, codes.zero_point], value, kind=real))
        return nodes

    def _moves_codes(self, node: Any) -> bool:
        attributes = attributes_of(node)
        if node.op_type == "Pad":
            filling = self._graph.array(node.input[2]) if len(node.input) > 2 and node.input[2] else np.float32(0)
            return filling is not None and float(filling) == 0.0
        if node.op_type == "MaxPool":
            return len(node.output) == 1
        if node.op_type == "Resize":
            return bool(attributes.get("mode", b"nearest") == b"nearest")
        return node.op_type in _MOVES

    def _remaining(self) -> Iterator[tuple[str, str]]:
        """What is computed in float, as `layer (operators)`, with the place of each."""
        makers = {name: node for node in self._graph.nodes for name in node.output}
        ends = [(node.output[0], node.input[0]) for node in self._graph.nodes if node.op_type == "QuantizeLinear"]
        ends += [(name, name) for name in self._graph.outputs]
        for name, value in ends:
            operators = _float_operators(value, makers)
            if operators:
                quantizer = self._quantizers.get(name)
                stem = name if quantizer is None else quantizer.name
                yield f"{stem} ({', '.join(operators)})", stem if quantizer is None else quantizer.where


def _float_operators(value: str, makers: Mapping[str, Any]) -> list[str]:
    """Types of the operators between codes and a value, in order of execution."""
    found: list[str] = []
    pending, seen = [value], {value}
    while pending:
        node = makers.get(pending.pop())
        if node is None or node.op_type in _QDQ or node.op_type.startswith(("QLinear", "QGemm")):
            continue
        found.append(node.op_type)
        fresh = [name for name in node.input if name and name not in seen]
        seen.update(fresh)
        pending.extend(fresh)
    return found[::-1] if set(found) - {"Clip", "Identity"} else []


def _renamed(codes: Codes, name: str, *, rearranged: bool = False) -> Codes:
    return Codes(**{**vars(codes), "name": name, "rearranged": rearranged})
