"""What a QDQ graph holds on grids: every `DequantizeLinear` with its codes, its numbers and who reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from detent.exporters.onnx_graph import OnnxGraph
from detent.exporters.onnx_lowering import attributes_of
from detent.exporters.onnx_tagging import Quantizer
from detent.exporters.subject import ExportableModel

__all__ = ["QdqGraph", "QuantizedValue"]


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedValue:
    """A value on a grid.

    Args:
        name: detent's name.
        where: the name with the user's source line.
        dtype: type of the codes, e.g. `"uint8"` or `"int4"`.
        scale: steps, `[]`, one for each channel, or blocks.
        zero_point: codes of zero, shaped like the steps.
        axis: of channels or blocks; None for one step.
        block: entries that share a step along the axis; None without blocks.
        stored: the codes are in the file: a kernel or a bias, not an activation.
        listed: the codes are an initializer, or made by a `QuantizeLinear`; not looked up in a codebook.
        value: ONNX name of the real values.
        maker: the node whose result is quantized; None for stored codes and for inputs.
        readers: nodes that read the real values, each with the position of its input.
    """

    name: str
    where: str
    dtype: str
    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[Any]
    axis: int | None
    block: int | None
    stored: bool
    listed: bool
    value: str
    maker: Any
    readers: tuple[tuple[Any, int], ...]

    def read_by(self, *operators: str) -> list[tuple[Any, int]]:
        """The readers of these types."""
        return [(node, position) for node, position in self.readers if node.op_type in operators]


@dataclass(frozen=True, kw_only=True)
class QdqGraph:
    """A graph in the QDQ form, as dialects see it.

    Args:
        graph: with `QuantizeLinear` and `DequantizeLinear`, inputs and outputs in float32.
        quantizers: what each real value on a grid is, by its ONNX name.
        qmodel: the model it is made of.
    """

    graph: OnnxGraph
    quantizers: Mapping[str, Quantizer]
    qmodel: ExportableModel

    def values(self) -> list[QuantizedValue]:
        """All values on grids, in order of execution."""
        readers: dict[str, list[tuple[Any, int]]] = {}
        for node in self.graph.all_nodes():
            for position, name in enumerate(node.input):
                readers.setdefault(name, []).append((node, position))
        makers = {name: node for node in self.graph.nodes for name in node.output}
        return [
            self._value(node, makers, tuple(readers.get(node.output[0], ())))
            for node in self.graph.nodes
            if node.op_type == "DequantizeLinear"
        ]

    def _value(self, node: Any, makers: Mapping[str, Any], readers: tuple[tuple[Any, int], ...]) -> QuantizedValue:
        from onnx import TensorProto

        quantizer, attributes = self.quantizers[node.output[0]], attributes_of(node)
        scale = self.graph.array(node.input[1])
        assert scale is not None
        codes, zero = node.input[0], node.input[2] if len(node.input) > 2 else ""
        typed = self.graph.initializers.get(zero) or self.graph.initializers[codes]
        maker = makers.get(codes)
        quantize = maker if maker is not None and maker.op_type == "QuantizeLinear" else None
        blocked = scale.ndim > 1
        zero_point = self.graph.array(zero) if zero else None
        return QuantizedValue(
            name=quantizer.name,
            where=quantizer.where,
            dtype=TensorProto.DataType.Name(typed.data_type).lower(),
            scale=scale,
            zero_point=np.zeros_like(scale, np.int32) if zero_point is None else zero_point,
            axis=attributes.get("axis", 1) if scale.ndim else None,
            block=attributes.get("block_size") if blocked else None,
            stored=quantize is None,
            listed=quantize is not None or codes in self.graph.initializers,
            value=node.output[0],
            maker=None if quantize is None else makers.get(quantize.input[0]),
            readers=readers,
        )
