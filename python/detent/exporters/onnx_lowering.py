"""Second half of the ONNX export: opaque quantizers become `QuantizeLinear` and `DequantizeLinear`.

Codes are stored in the narrowest ONNX type that holds them. `QuantizeLinear` saturates at the limits of its type, so an
activation grid with fewer codes than its type is preceded by a `Clip` to the real values of its lowest and highest
code: rounding a clipped value gives the same code as clipping the rounded one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detent.errors import ExportError
from detent.exporters.onnx_graph import OnnxGraph
from detent.exporters.onnx_tagging import Quantizer
from detent.exporters.onnx_torch import DOMAIN

__all__ = ["LoweringRule", "attributes_of", "fold_weight_transposes", "lower_quantizers", "tag_of"]

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[Any]
LoweringRule = Callable[[OnnxGraph, Any, Quantizer], list[Any]]

_LIMITS: Final = {
    "int4": (-8, 7),
    "uint4": (0, 15),
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-32768, 32767),
    "uint16": (0, 65535),
    "int32": (-(2**31), 2**31 - 1),
}


def lower_quantizers(
    graph: OnnxGraph, quantizers: Sequence[Quantizer], rules: Mapping[str, LoweringRule] | None = None
) -> None:
    """Replace every opaque quantizer; each is found in `quantizers` by its tag.

    Args:
        graph: its quantizers are opaque.
        quantizers: what each of them is.
        rules: by operator, what makes the nodes in its place; None for `QuantizeLinear` and `DequantizeLinear`.

    Raises:
        ExportError: a quantizer that ONNX cannot express; the error names the value.
    """
    if rules is None:
        rules = {"FakeQuantize": _lower_activation, "Dequantize": _lower_weight, "LutDequantize": _lower_lut_weight}
    lowered: list[Any] = []
    for node in graph.nodes:
        if node.domain == DOMAIN:
            lowered.extend(rules[node.op_type](graph, node, quantizers[tag_of(node)]))
        else:
            lowered.append(node)
    graph.nodes = lowered


def tag_of(node: Any) -> int:
    """Number of an opaque quantizer in `Tagged.quantizers`."""
    return int(attributes_of(node)["tag"])


def fold_weight_transposes(graph: OnnxGraph) -> None:
    """Store a weight transposed where the graph would transpose it at run time, as in `MatMul(x, Transpose(W))`.

    Runtimes look for `DequantizeLinear` right before the operator; a `Transpose` in between hides the integer weight.
    """
    consumers: dict[str, list[Any]] = {}
    for node in graph.nodes:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    kept: list[Any] = []
    moved: dict[str, Any] = {}
    for node in graph.nodes:
        users = consumers.get(node.output[0], [])
        alone = len(users) == 1 and node.output[0] not in graph.outputs
        stored = node.domain == DOMAIN and node.op_type in ("Dequantize", "LutDequantize")
        if stored and alone and users[0].op_type == "Transpose":
            moved[users[0].output[0]] = _transposed(graph, node, attributes_of(users[0])["perm"], users[0].output[0])
        elif node.output[0] in moved:
            kept.append(moved[node.output[0]])
        else:
            kept.append(node)
    graph.nodes = kept
    graph.drop_unused()


def _transposed(graph: OnnxGraph, node: Any, perm: list[int], output: str) -> Any:
    from onnx import helper

    codes = graph.array(node.input[0])
    assert codes is not None
    attributes = attributes_of(node)
    if "axis" in attributes:
        axis = attributes["axis"] % codes.ndim
        if attributes.get("group_size") is not None:
            attributes["group_axis"] = perm.index(_group_axis(axis))
        attributes["axis"] = perm.index(axis)
    name = graph.constant(f"{node.input[0]}_transposed", np.transpose(codes, perm))
    return helper.make_node(node.op_type, [name, *node.input[1:]], [output], domain=DOMAIN, **attributes)


def _lower_activation(graph: OnnxGraph, node: Any, quantizer: Quantizer) -> list[Any]:
    """`[Clip ->] QuantizeLinear -> DequantizeLinear`, with scalars or with vectors `[C]` along an axis."""
    attributes = attributes_of(node)
    codes, axis = (attributes["qmin"], attributes["qmax"]), attributes.get("axis")
    if attributes.get("group_size") is not None:
        raise ExportError(
            "ONNX cannot quantize an activation per group: its block scales would have the batch's shape",
            where=quantizer.where,
            remedy="give this activation a per-tensor or per-channel grid",
        )
    scale, zero_point = _scale_and_zero_point(graph, node, quantizer, axis)
    storage = _storage_of(codes, ("uint8", "uint16") if codes[0] >= 0 else ("int8", "int16"), quantizer)
    source, stem = node.input[0], quantizer.name
    nodes, inside = _clip(graph, source, quantizer, axis, _real_limits(codes, storage, scale, zero_point))
    parameters = [graph.constant(f"{stem}_scale", scale), _zero_point(graph, stem, zero_point, storage)]
    quantized = graph.fresh(f"{stem}_quantized")
    nodes.append(
        graph.node("QuantizeLinear", [inside, *parameters], quantized, kind=_kind(storage), like=source, axis=axis)
    )
    nodes.append(
        graph.node("DequantizeLinear", [quantized, *parameters], node.output[0], kind=_kind("float"), axis=axis)
    )
    return nodes


def _real_limits(
    codes: tuple[int, int], storage: str, scale: FloatArray, zero_point: IntArray
) -> tuple[FloatArray | None, FloatArray | None]:
    """Real values of the lowest and highest code, None where the storage type saturates there by itself."""
    low, high = (
        ((np.int32(code) - zero_point).astype(np.float32) * scale).astype(np.float32) if code != limit else None
        for code, limit in zip(codes, _LIMITS[storage], strict=True)
    )
    return low, high


def _clip(
    graph: OnnxGraph,
    source: str,
    quantizer: Quantizer,
    axis: int | None,
    limits: tuple[FloatArray | None, FloatArray | None],
) -> tuple[list[Any], str]:
    """Nodes that clip `source` to `limits`, and the name of the result; `Clip` takes scalars, `Max`/`Min` vectors."""
    stem = quantizer.name
    if all(limit is None for limit in limits):
        return [], source
    if axis is None:
        names = [
            "" if limit is None else graph.constant(f"{stem}_{end}", limit)
            for end, limit in zip(("lowest", "highest"), limits, strict=True)
        ]
        clipped = graph.fresh(f"{stem}_clipped")
        inputs = [source, *names] if names[1] else [source, names[0]]
        return [graph.node("Clip", inputs, clipped, kind=_kind("float"), like=source)], clipped
    rank = graph.rank(source)
    if rank is None:
        raise ExportError("the rank of a value quantized per channel is unknown", where=quantizer.where)
    shape = [-1 if dim == axis % rank else 1 for dim in range(rank)]
    nodes = []
    for operator, end, limit in zip(("Max", "Min"), ("lowest", "highest"), limits, strict=True):
        if limit is not None:
            bound = graph.constant(f"{stem}_{end}", limit.reshape(shape))
            clipped = graph.fresh(f"{stem}_clipped")
            nodes.append(graph.node(operator, [source, bound], clipped, kind=_kind("float"), like=source))
            source = clipped
    return nodes, source


def _lower_weight(graph: OnnxGraph, node: Any, quantizer: Quantizer) -> list[Any]:
    """`DequantizeLinear` of integer codes, with a scalar scale, one per channel, or one per block."""
    attributes = attributes_of(node)
    axis, group_size = attributes.get("axis"), attributes.get("group_size")
    codes = _codes(graph, node, quantizer)
    axis = None if axis is None else axis % codes.ndim
    scale, zero_point = _scale_and_zero_point(graph, node, quantizer, axis)
    stem, block = quantizer.name, None
    if codes.dtype == np.int32:
        # Runtimes accept int32 codes (biases) only around zero.
        codes, zero_point = _centered(codes, zero_point, axis, quantizer), np.zeros_like(zero_point)
    storage = _weight_storage(codes, zero_point, quantizer)
    if axis is not None and group_size is not None:
        group_axis = attributes.get("group_axis", _group_axis(axis))
        scale = _per_block(scale, codes.shape, axis, group_axis)
        zero_point = _per_block(zero_point, codes.shape, axis, group_axis)
        axis, block = group_axis, group_size
    inputs = [
        graph.constant(f"{stem}_codes", codes, kind=_kind(storage), share=True),
        graph.constant(f"{stem}_scale", scale, share=scale.ndim > 0),
    ]
    if storage != "int32":
        inputs.append(_zero_point(graph, stem, zero_point, storage))
    return [graph.node("DequantizeLinear", inputs, node.output[0], kind=_kind("float"), axis=axis, block_size=block)]


def _lower_lut_weight(graph: OnnxGraph, node: Any, quantizer: Quantizer) -> list[Any]:
    """`DequantizeLinear(Gather(table, codes))`: codes keep their width, and integer kernels take the int8 values.

    A codebook of other numbers than int8 ones becomes `Mul(Gather(table, codes), scale)`.
    """
    attributes = attributes_of(node)
    axis = attributes.get("axis")
    if attributes.get("group_size") is not None:
        raise ExportError(
            "ONNX has no compact form of a codebook with scales per group",
            where=quantizer.where,
            remedy="give this layer a codebook per channel, or a symmetric grid per group",
        )
    codes, scale, table = _codes(graph, node, quantizer), graph.array(node.input[1]), graph.array(node.input[2])
    if scale is None or table is None:
        raise ExportError("scale or codebook of a weight is computed", where=quantizer.where)
    axis = None if axis is None else axis % codes.ndim
    whole = bool(np.all((np.rint(table) == table) & (table >= -128) & (table <= 127)))
    stem, integer = quantizer.name, _kind("int32")
    entries, kind = (table.astype(np.int8), _kind("int8")) if whole else (table, _kind("float"))
    storage = _weight_storage(codes, np.zeros(1, np.int32), quantizer)
    stored = graph.constant(f"{stem}_codes", codes, kind=_kind(storage), share=True)
    codebook = graph.constant(f"{stem}_table", entries.reshape(-1), share=True)
    index, entry = graph.fresh(f"{stem}_index"), graph.fresh(f"{stem}_entry")
    nodes = [graph.node("Cast", [stored], index, kind=integer, to=integer)]
    if table.ndim == 2:
        # One codebook after the other: a channel's codes count from where its own begins.
        first = np.arange(len(table), dtype=np.int32) * table.shape[1]
        begin = graph.constant(f"{stem}_begin", _along(first, axis, codes.ndim), share=True)
        place, index = index, graph.fresh(f"{stem}_place")
        nodes.append(graph.node("Add", [place, begin], index, kind=integer))
    nodes.append(graph.node("Gather", [codebook, index], entry, kind=kind))
    real, output = _kind("float"), node.output[0]
    if not whole:
        steps = graph.constant(f"{stem}_scale", _along(scale, axis, codes.ndim), share=True)
        return [*nodes, graph.node("Mul", [entry, steps], output, kind=real)]
    steps = graph.constant(f"{stem}_scale", scale.reshape(()) if axis is None else scale, share=axis is not None)
    zero = _zero_point(graph, stem, np.zeros(() if axis is None else scale.shape, np.int32), "int8")
    return [*nodes, graph.node("DequantizeLinear", [entry, steps, zero], output, kind=real, axis=axis)]


def attributes_of(node: Any) -> dict[str, Any]:
    """Attributes of a node, by name."""
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _codes(graph: OnnxGraph, node: Any, quantizer: Quantizer) -> IntArray:
    codes = graph.array(node.input[0])
    if codes is None:
        raise ExportError("the codes of a weight are computed, not stored", where=quantizer.where)
    return codes


def _scale_and_zero_point(
    graph: OnnxGraph, node: Any, quantizer: Quantizer, axis: int | None
) -> tuple[FloatArray, IntArray]:
    """Float32 scale and int32 zero point, both `[]` for a per-tensor grid, else `[n]`."""
    scale, zero_point = graph.array(node.input[1]), graph.array(node.input[2])
    if scale is None or zero_point is None:
        raise ExportError("scale or zero point of a quantizer is computed", where=quantizer.where)
    if axis is None:
        return scale.reshape(()), zero_point.reshape(())
    return scale, np.broadcast_to(zero_point, scale.shape)


def _storage_of(codes: tuple[int, int], candidates: tuple[str, ...], quantizer: Quantizer) -> str:
    for storage in candidates:
        if _LIMITS[storage][0] <= codes[0] and codes[1] <= _LIMITS[storage][1]:
            return storage
    raise ExportError(
        f"no ONNX type holds codes {codes[0]}..{codes[1]}", where=quantizer.where, remedy="use at most 16 bits"
    )


def _weight_storage(codes: IntArray, zero_point: IntArray, quantizer: Quantizer) -> str:
    """Type of the initializer: that of the tensor, or its 4-bit form where the grid has at most 4 bits."""
    storage = str(codes.dtype)
    if quantizer.bits is not None and quantizer.bits <= 4 and storage in ("int8", "uint8"):
        narrow = storage.replace("8", "4")
        low, high = _LIMITS[narrow]
        if all(values.min(initial=0) >= low and values.max(initial=0) <= high for values in (codes, zero_point)):
            return narrow
        raise ExportError(
            f"codes of a {quantizer.bits}-bit grid lie outside {low}..{high}",
            where=quantizer.where,
            remedy="apply the plan again: codes and plan disagree",
        )
    if storage not in _LIMITS:
        raise ExportError(f"no ONNX type for codes stored as {storage}", where=quantizer.where)
    return storage


def _along(vector: npt.NDArray[Any], axis: int | None, rank: int) -> npt.NDArray[Any]:
    """One entry a channel, shaped to broadcast against a tensor of that rank; a number without an axis."""
    return vector.reshape([-1 if dim == axis else 1 for dim in range(rank)] if axis is not None else [])


def _centered(codes: IntArray, zero_point: IntArray, axis: int | None, quantizer: Quantizer) -> IntArray:
    wide: IntArray = codes.astype(np.int64) - _along(zero_point.astype(np.int64), axis, codes.ndim)
    low, high = _LIMITS["int32"]
    if wide.size and (wide.min() < low or wide.max() > high):
        raise ExportError("32-bit codes minus their zero point leave 32 bits", where=quantizer.where)
    return wide.astype(np.int32)


def _group_axis(axis: int) -> int:
    """The axis groups run along: the input axis of a kernel whose channels are on `axis`."""
    return 1 if axis == 0 else 0


def _per_block(values: npt.NDArray[Any], shape: tuple[int, ...], axis: int, group_axis: int) -> npt.NDArray[Any]:
    """Values `[channels * groups]`, channel first, as ONNX wants them: `shape` with groups along `group_axis`."""
    groups = values.size // shape[axis]
    grid = values.reshape(shape[axis], groups)
    if group_axis < axis:
        grid = grid.T
    blocks = tuple(groups if dim == group_axis else size for dim, size in enumerate(shape))
    view = [size if dim in (axis, group_axis) else 1 for dim, size in enumerate(blocks)]
    return np.broadcast_to(grid.reshape(view), blocks)


def _zero_point(graph: OnnxGraph, stem: str, zero_point: IntArray, storage: str) -> str:
    """Initializer of the codes' own type, which fixes that type; equal ones are shared and named by their value."""
    values = zero_point.astype(storage.replace("int4", "int8"))
    same = not values.ndim or bool(np.all(values == values.flat[0]))
    size = "x".join(map(str, values.shape))
    name = f"zero_point_{storage}_{values.flat[0]}" + (f"_{size}" if size else "") if same else f"{stem}_zero_point"
    return graph.constant(name.replace("-", "minus_"), values, kind=_kind(storage), share=same)


def _kind(storage: str) -> int:
    from onnx import TensorProto

    return int(getattr(TensorProto, storage.upper()))
