"""Opaque quantizers become the operators of the domain `mct_quantizers`.

Weights are stored as float32 values of their grids and quantized once more by whoever reads the file, which leaves them
as they are. A step is threshold / 2^(bits - 1) with signed codes, threshold / 2^bits with unsigned ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detent.errors import ExportError
from detent.exporters.onnx_graph import OnnxGraph
from detent.exporters.onnx_lowering import attributes_of, lower_quantizers
from detent.exporters.onnx_tagging import Quantizer
from detent.kernels.quantize import dequantize, lut_dequantize
from detent.records.grid import LUT_STEPS

__all__ = ["MCT_DOMAIN", "MCT_VERSION", "lower_to_mct"]

MCT_DOMAIN: Final = "mct_quantizers"
MCT_VERSION: Final = 1
"""Domain of the operators, and its version."""

_MADE_BY: Final = "detent"
"""Their attribute `mctq_version` is a text about who wrote them."""

_EPSILON: Final = 1e-8
"""Added to thresholds by readers of codebooks that divide by them."""


def lower_to_mct(graph: OnnxGraph, quantizers: Sequence[Quantizer]) -> None:
    """Replace every opaque quantizer of a model whose grids `check_grids` has passed.

    Raises:
        ExportError: a grid or a weight is computed, not stored; the error names the value.
    """
    rules = {"FakeQuantize": _lower_activation, "Dequantize": _lower_weight, "LutDequantize": _lower_codebook}
    lower_quantizers(graph, quantizers, rules)


def _lower_activation(graph: OnnxGraph, node: Any, quantizer: Quantizer) -> list[Any]:
    attributes = attributes_of(node)
    low, high = attributes["qmin"], attributes["qmax"]
    # A signed threshold is the lowest value turned round, an unsigned one is a step above the highest.
    steps = -low if low < 0 else high + 1
    made = _node(
        graph,
        "ActivationPOTQuantizer",
        [node.input[0]],
        node.output[0],
        num_bits=(high - low).bit_length(),
        signed=int(low < 0),
        threshold=float(_stored(graph, node.input[1], quantizer).reshape(())) * steps,
    )
    return [made]


def _lower_weight(graph: OnnxGraph, node: Any, quantizer: Quantizer) -> list[Any]:
    """A quantizer of the float values; a bias has none and is the values alone."""
    codes, scale, zero_point = (_stored(graph, name, quantizer) for name in node.input)
    axis = _axis(node, codes)
    values = dequantize(codes, scale, zero_point, axis=axis)
    if codes.dtype == np.int32:
        graph.rename({node.output[0]: graph.constant(quantizer.name, values)})
        return []
    assert quantizer.bits is not None
    thresholds = (scale.reshape(-1) * 2.0 ** (quantizer.bits - 1)).astype(np.float32)
    kind = "POT" if np.all(np.frexp(thresholds)[0] == 0.5) else "Symmetric"
    return [
        _node(
            graph,
            f"Weights{kind}Quantizer",
            [graph.constant(quantizer.name, values), graph.constant(f"{quantizer.name}_threshold", thresholds)],
            node.output[0],
            num_bits=quantizer.bits,
            signed=1,
            **_layout(axis),
        )
    ]


def _lower_codebook(graph: OnnxGraph, node: Any, quantizer: Quantizer) -> list[Any]:
    codes, scale, table = (_stored(graph, name, quantizer) for name in node.input)
    axis = _axis(node, codes)
    assert quantizer.bits is not None
    thresholds = (scale.reshape(-1) * LUT_STEPS).astype(np.float32)
    kind = "POT" if np.all(np.frexp(thresholds)[0] == 0.5) else "Symmetric"
    stem = quantizer.name
    values = lut_dequantize(codes, scale, table, axis=axis)
    inputs = [
        graph.constant(stem, values),
        graph.constant(f"{stem}_table", table.reshape(-1)),
        graph.constant(f"{stem}_threshold", thresholds),
    ]
    return [
        _node(
            graph,
            f"WeightsLUT{kind}Quantizer",
            inputs,
            node.output[0],
            num_bits=quantizer.bits,
            signed=1,
            input_rank=values.ndim,
            lut_values_bitwidth=LUT_STEPS.bit_length(),
            eps=_EPSILON,
            **_layout(axis),
        )
    ]


def _node(graph: OnnxGraph, operator: str, inputs: list[str], output: str, **attributes: Any) -> Any:
    from onnx import TensorProto

    return graph.node(
        operator, inputs, output, kind=TensorProto.FLOAT, domain=MCT_DOMAIN, mctq_version=_MADE_BY, **attributes
    )


def _layout(axis: int | None) -> dict[str, int]:
    return {"per_channel": int(axis is not None), "channel_axis": axis or 0}


def _axis(node: Any, codes: npt.NDArray[Any]) -> int | None:
    axis = attributes_of(node).get("axis")
    return None if axis is None else int(axis) % codes.ndim


def _stored(graph: OnnxGraph, name: str, quantizer: Quantizer) -> npt.NDArray[Any]:
    array = graph.array(name)
    if array is None:
        raise ExportError("scale, zero point, codebook or codes of a quantizer are computed", where=quantizer.where)
    return array
