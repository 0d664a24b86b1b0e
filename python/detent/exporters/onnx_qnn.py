"""The rules of Qualcomm's HTP for QDQ files, as QNN's execution provider of onnxruntime runs them.

Whatever the provider does not take falls to the CPU, or stops the session where that is forbidden; a few forms it takes
and computes something else. Both are refused here. The rules were found on the emulator of onnxruntime-qnn.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detent.errors import ExportError
from detent.exporters.onnx_graph import OnnxGraph
from detent.exporters.onnx_lowering import attributes_of
from detent.exporters.onnx_moves import moved_values, quantize_moved
from detent.exporters.onnx_tagging import tag_quantizers
from detent.exporters.subject import ExportableModel

__all__ = ["check_qnn", "prepare_qnn"]

_KERNELS: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_CLAMPS: Final = ("Relu", "Clip")
_QDQ: Final = ("QuantizeLinear", "DequantizeLinear")


def prepare_qnn(graph: OnnxGraph, qmodel: ExportableModel) -> list[str]:
    """Put a graph in the QDQ form into the form HTP computes on codes throughout; arguments as those of `check_qnn`.

    Returns:
        What a user should know of it.

    Raises:
        ExportError: HTP does not take it.
    """
    quantize_moved(graph)
    return check_qnn(graph, qmodel)


def check_qnn(graph: OnnxGraph, qmodel: ExportableModel) -> list[str]:
    """Refuse what HTP does not take, or takes and computes something else.

    Args:
        graph: in the QDQ form.
        qmodel: the model it is made of.

    Returns:
        What a user should know of what it takes.

    Raises:
        ExportError: the first value that breaks a rule, by its layer and the user's source line.
    """
    view = _View(graph, {one.name: one.where for one in tag_quantizers(qmodel).quantizers})
    _check_shapes(graph)
    for node in graph.nodes:
        if node.op_type == "DequantizeLinear" and node.input[0] in graph.initializers:
            _check_stored(view.numbers(node))
        elif node.op_type in _QDQ and (node.op_type == "QuantizeLinear" or node.input[0] in graph.inputs):
            _check_value(view.numbers(node))
    for node in graph.nodes:
        if node.op_type in _KERNELS:
            _check_kernel(view, node)
        if node.op_type == "Clip":
            _check_clip(view, node)
        if node.op_type == "Erf":
            _check_gelu(view, node)
        if node.op_type not in _QDQ:
            _check_types(view, node)
    return _notes(view)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Numbers:
    """What a `QuantizeLinear` or `DequantizeLinear` is given, and the place of its value."""

    where: str
    dtype: str
    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[Any]
    block: int | None

    @property
    def limits(self) -> tuple[int, int]:
        """Lowest and highest code, of 8 or 16 bits."""
        info = np.iinfo(self.dtype)
        return int(info.min), int(info.max)


class _View:
    """Who makes and who reads each value."""

    def __init__(self, graph: OnnxGraph, places: dict[str, str]) -> None:
        self.graph = graph
        self._places = places

    @cached_property
    def makers(self) -> dict[str, Any]:
        return {name: node for node in self.graph.nodes for name in node.output}

    @cached_property
    def readers(self) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for node in self.graph.all_nodes():
            for name in node.input:
                found.setdefault(name, []).append(node)
        return found

    def numbers(self, node: Any) -> _Numbers:
        """Of a `QuantizeLinear` or `DequantizeLinear`."""
        codes = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
        name = codes.removesuffix("_quantized").removesuffix("_codes")
        scale = self.graph.array(node.input[1])
        zero_point = self.graph.array(node.input[2]) if len(node.input) > 2 else np.zeros((), np.int32)
        assert scale is not None
        assert zero_point is not None
        return _Numbers(
            where=self._places.get(name, name),
            dtype=self.graph.dtype(node.input[2]) if len(node.input) > 2 else "int32",
            scale=scale,
            zero_point=zero_point.astype(np.int32),
            block=attributes_of(node).get("block_size") or None,
        )

    def source(self, name: str) -> Any | None:
        """The `DequantizeLinear` a value comes from, directly or moved; None if it is computed in float."""
        maker = self.makers.get(name)
        while maker is not None and name in moved_values(self.graph, maker):
            name = maker.input[0]
            maker = self.makers.get(name)
        return maker if maker is not None and maker.op_type == "DequantizeLinear" else None

    def is_stored(self, node: Any) -> bool:
        """Whether the codes of a `DequantizeLinear` are in the file, not computed."""
        maker = self.makers.get(node.input[0])
        return node.input[0] not in self.graph.inputs and (maker is None or maker.op_type != "QuantizeLinear")

    def goal(self, name: str) -> tuple[Any | None, Any | None]:
        """The `QuantizeLinear` a value goes to, by itself or with a bias and through a clamp; and that clamp."""
        reader, clamp = self._reader(name), None
        if reader is not None and reader.op_type == "Add" and self._adds_a_bias(reader, name):
            reader = self._reader(reader.output[0])
        if reader is not None and reader.op_type in _CLAMPS:
            reader, clamp = self._reader(reader.output[0]), reader
        return (reader if reader is not None and reader.op_type == "QuantizeLinear" else None), clamp

    def _reader(self, name: str) -> Any | None:
        """The one node that reads a value; None if there are several, or it is an output."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.graph.outputs else None

    def _adds_a_bias(self, node: Any, name: str) -> bool:
        other = node.input[1] if node.input[0] == name else node.input[0]
        maker = self.makers.get(other)
        stored = maker is not None and maker.op_type == "DequantizeLinear" and self.is_stored(maker)
        return stored or other in self.graph.initializers

    def grids_of(self, node: Any) -> list[_Numbers]:
        """Grids of the computed values that an operator reads and gives."""
        sources = [self.source(name) for name in node.input]
        found = [one for one in sources if one is not None and not self.is_stored(one)]
        found += [goal for name in node.output if (goal := self.goal(name)[0]) is not None]
        return [self.numbers(one) for one in found]


def _refused(what: str, where: str, remedy: str) -> ExportError:
    return ExportError(f"Qualcomm's HTP does not take {what}", where=where, remedy=remedy)


def _check_shapes(graph: OnnxGraph) -> None:
    for name in graph.inputs:
        if None in (graph.shape(name) or []):
            raise _refused("a batch of any size", name, "export with batch=1, or another number of samples")


def _check_stored(found: _Numbers) -> None:
    if found.dtype == "int32":
        return
    per_channel = found.scale.size > 1
    if found.dtype in ("int2", "uint2"):
        raise ExportError(
            "Qualcomm's HTP computes something else with 2-bit codes",
            where=found.where,
            remedy="store them in 4 bits",
        )
    if found.dtype not in ("int4", "int8", "uint8"):
        raise _refused(f"{found.dtype} weights", found.where, "use signed weights of 4 or 8 bits for this layer")
    if found.block is not None:
        raise _refused("weights with steps for groups", found.where, "use a step for each channel")
    if per_channel and (found.dtype == "uint8" or bool(np.any(found.zero_point))):
        raise _refused(
            "weights with a zero point for each channel", found.where, "use a symmetric grid, or one step for all"
        )
    if found.dtype == "int4" and not found.scale.ndim:
        raise _refused("4-bit weights with one step", found.where, "use a step for each channel, or 8 bits")


def _check_value(found: _Numbers) -> None:
    if found.dtype not in ("uint8", "int8", "uint16"):
        raise _refused(f"{found.dtype} activations", found.where, "use unsigned codes of 8 or 16 bits, as target qnn")
    if found.scale.ndim:
        raise _refused("activations with a step for each channel", found.where, "give this value one step")


def _check_kernel(view: _View, node: Any) -> None:
    """A layer with integer weights reads and gives codes, and a clamp behind it is that of its output's limits."""
    weight = view.makers.get(node.input[1])
    if weight is None or weight.op_type != "DequantizeLinear" or not view.is_stored(weight):
        return
    where = view.numbers(weight).where
    quantizer, clamp = view.goal(node.output[0])
    if view.source(node.input[0]) is None or quantizer is None:
        side = "gives" if quantizer is None else "reads"
        remedy = "quantize its input and output, or keep its weights in float"
        raise _refused(f"a layer with integer weights that {side} a value in float", where, remedy)
    found = view.numbers(quantizer)
    if clamp is not None and not _is_within(view, clamp, found):
        raise _refused(
            f"a {clamp.op_type} behind a kernel, unless all codes of its value are within its limits",
            found.where,
            "use unsigned codes that end where it clamps, as target qnn",
        )


def _check_clip(view: _View, node: Any) -> None:
    quantizer, _ = view.goal(node.output[0])
    if quantizer is None or view.source(node.input[0]) is None:
        return
    found = view.numbers(quantizer)
    if found.dtype == "int8" and not np.any(found.zero_point) and not _is_within(view, node, found):
        raise ExportError(
            "Qualcomm's HTP computes something else where a Clip gives symmetric int8 codes",
            where=found.where,
            remedy="use unsigned codes here, as target qnn",
        )


def _check_gelu(view: _View, node: Any) -> None:
    """The operators that a GELU is made of do not compile between 8-bit codes; as one operator they do."""
    pending = list(node.output)
    while pending:
        for reader in view.readers.get(pending.pop(), ()):
            if reader.op_type != "QuantizeLinear":
                pending += reader.output
            elif view.numbers(reader).dtype != "uint16":
                raise _refused("a GELU in parts", view.numbers(reader).where, "export with opset=20 or newer")


def _is_within(view: _View, clamp: Any, found: _Numbers) -> bool:
    """Whether every code of the grid stands for a value that the clamp lets pass."""
    bounds: list[float] = [0.0 if clamp.op_type == "Relu" else -np.inf, np.inf]
    for end, name in enumerate(clamp.input[1:] if clamp.op_type == "Clip" else ()):
        limit = view.graph.array(name) if name else None
        if limit is not None:
            bounds[end] = float(limit)
    low, high = (np.rint(bound / float(found.scale)) + float(found.zero_point) for bound in bounds)
    return bool(low <= found.limits[0] and found.limits[1] <= high)


def _check_types(view: _View, node: Any) -> None:
    grids = view.grids_of(node)
    for found in grids[1:]:
        if found.dtype != grids[0].dtype:
            raise _refused(
                f"an operator, {node.op_type}, between {grids[0].dtype} and {found.dtype}",
                f"{grids[0].where}; {found.where}",
                "use one width and one signedness for all activations",
            )


def _notes(view: _View) -> list[str]:
    values = [view.numbers(node) for node in view.graph.nodes if node.op_type == "QuantizeLinear"]
    notes = []
    if any(found.dtype == "uint16" for found in values):
        notes.append("16-bit activations: HTP's sums are not exact to one of 65536 steps")
    return notes
