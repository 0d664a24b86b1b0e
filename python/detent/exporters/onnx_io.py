"""Element types of an ONNX file's inputs and outputs: float32, or the integer codes of their grids.

With float32 an input begins with `QuantizeLinear` and an output ends with `DequantizeLinear`. With an integer type
these are left out: whoever runs the file hands over and receives codes, whose scale and zero point the file's metadata
give under `detent.io`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

import numpy as np
import numpy.typing as npt

from detent._registry import unknown_name
from detent.errors import ExportError
from detent.exporters.onnx_graph import OnnxGraph
from detent.targets import IoType

__all__ = [
    "MOVING",
    "IoChoice",
    "check_io_type",
    "decode_outputs",
    "encode_inputs",
    "resolve_io_types",
    "set_io_types",
]

IoChoice = str | Mapping[str, str] | None
"""One element type for all inputs (or outputs), types by name, or None for the model's own."""

_TYPES: Final[tuple[str, ...]] = get_args(IoType)
MOVING: Final = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Gather", "Expand")
"""Operators that move entries of their first operand and are defined for integers of 8 and 16 bits."""


@dataclass(frozen=True, kw_only=True)
class _Codes:
    """The integer codes of an input or output, as the nodes of the file describe them.

    Args:
        nodes: for an input, the nodes up to and with `QuantizeLinear`; for an output, those from behind
            `DequantizeLinear` to the output, in the order of execution.
        value: name of the codes.
        dtype: their type.
        scale: step.
        zero_point: code of real zero.
        limits: lowest and highest code.
    """

    nodes: tuple[Any, ...]
    value: str
    dtype: str
    scale: float
    zero_point: int
    limits: tuple[int, int]


def check_io_type(kind: str | None, what: str) -> None:
    """Refuse an element type that no file can have; None stands for the model's own.

    Raises:
        ConfigError: an unknown type of the `what`, `"input"` or `"output"`.
    """
    if kind is not None and kind not in _TYPES:
        raise unknown_name(f"{what} type", kind, _TYPES)


def resolve_io_types(choice: IoChoice, names: Sequence[str], default: str, what: str) -> dict[str, str]:
    """The element type of each of the named inputs or outputs.

    Args:
        choice: what the user chose.
        names: all float inputs, or all outputs.
        default: type of those that are not chosen.
        what: `"input"` or `"output"`, for errors.

    Raises:
        ConfigError: an unknown type or name.
    """
    chosen = dict(choice) if isinstance(choice, Mapping) else dict.fromkeys(names, choice or default)
    for name, kind in chosen.items():
        if name not in names:
            raise unknown_name(f"float {what}", name, names)
        check_io_type(kind, what)
    return {name: chosen.get(name, default) for name in names}


def set_io_types(graph: OnnxGraph, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> dict[str, Any]:
    """Let inputs and outputs of a lowered graph be integers where such a type is chosen.

    Args:
        graph: its quantizers are `QuantizeLinear` and `DequantizeLinear` already.
        inputs: type of each float input.
        outputs: type of each output.

    Returns:
        What a consumer must know of each: its type here, and type, step and zero point of its codes if it has a grid.

    Raises:
        ExportError: a value is not on a grid, or on one with codes of another type; the error names what is possible.
    """
    ends: dict[str, dict[str, Any]] = {"inputs": {}, "outputs": {}}
    for side, chosen, find in (("inputs", inputs, _find_input), ("outputs", outputs, _find_output)):
        for name, dtype in chosen.items():
            found = find(graph, name)
            _check_type(name, dtype, found)
            ends[side][name] = {"dtype": dtype} | ({} if isinstance(found, str) else _in_words(found))
    # An output first: the walk back from it ends at quantizers that inputs would lose.
    for rewrite, chosen in ((_emit_codes, outputs), (_take_codes, inputs)):
        for name, dtype in chosen.items():
            if dtype != "float32":
                rewrite(graph, name)
    return ends


def encode_inputs(session: Any, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Float inputs as the codes a file with integer inputs takes; inputs it takes in float as they are.

    Args:
        session: an onnxruntime session of a file that detent wrote.
        feeds: float32 arrays by input name.
    """
    known = _metadata(session).get("inputs", {})
    return {name: _encode(value, known.get(name, {"dtype": "float32"})) for name, value in feeds.items()}


def decode_outputs(session: Any, values: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """The real values of a session's outputs, which may be codes."""
    known = _metadata(session).get("outputs", {})
    names = [output.name for output in session.get_outputs()]
    return [_decode(value, known.get(name, {"dtype": "float32"})) for name, value in zip(names, values, strict=True)]


def _metadata(session: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(session.get_modelmeta().custom_metadata_map.get("detent.io", "{}"))
    return data


def _encode(value: npt.NDArray[Any], end: Mapping[str, Any]) -> npt.NDArray[Any]:
    if end["dtype"] == "float32":
        return value
    low, high = end["codes"]
    codes = np.rint(value / np.float32(end["scale"])) + end["zero_point"]
    clipped: npt.NDArray[Any] = np.clip(codes, low, high).astype(end["dtype"])
    return clipped


def _decode(value: npt.NDArray[Any], end: Mapping[str, Any]) -> npt.NDArray[Any]:
    if end["dtype"] == "float32":
        return value
    real: npt.NDArray[Any] = (value.astype(np.int32) - end["zero_point"]).astype(np.float32) * np.float32(end["scale"])
    return real


def _in_words(codes: _Codes) -> dict[str, Any]:
    # The shortest decimal that reads back as the same float32.
    scale = float(np.format_float_scientific(np.float32(codes.scale), unique=True))
    return {
        "codes_dtype": codes.dtype,
        "scale": scale,
        "zero_point": codes.zero_point,
        "codes": list(codes.limits),
    }


def _check_type(name: str, dtype: str, found: _Codes | str) -> None:
    if dtype == "float32":
        return
    if isinstance(found, str):
        raise ExportError(
            f"{name!r} cannot be {dtype}: {found}", where=name, remedy="allowed: float32; or give this value a grid"
        )
    if found.dtype != dtype:
        low, high = found.limits
        raise ExportError(
            f"{name!r} cannot be {dtype}: its grid has {found.dtype} codes {low}..{high}, step {found.scale:g}, zero "
            f"point {found.zero_point}",
            where=name,
            remedy=f"allowed: float32, {found.dtype}",
        )


def _find_input(graph: OnnxGraph, name: str) -> _Codes | str:
    """The codes an input is turned into; why there are none, in words, if its floats are needed."""
    nodes: list[Any] = []
    value = name
    while True:
        # The shape of the codes is that of the real values.
        readers = [node for node in graph.all_nodes() if value in node.input and node.op_type != "Shape"]
        if value in graph.outputs or len(readers) != 1 or readers[0].op_type not in ("Clip", "QuantizeLinear"):
            kinds = sorted({node.op_type for node in readers} | ({"the output"} if value in graph.outputs else set()))
            return f"it is read in float by {', '.join(kinds) or 'nothing'}"
        nodes += readers
        value = readers[0].output[0]
        if readers[0].op_type == "QuantizeLinear":
            return _read_codes(graph, tuple(nodes), readers[0], value)


def _find_output(graph: OnnxGraph, name: str) -> _Codes | str:
    """The codes an output is made of; why there are none, in words, if it is computed in float."""
    makers = {made: node for node in graph.nodes for made in node.output}
    nodes: list[Any] = []
    value = name
    while value in makers and makers[value].op_type in MOVING:
        nodes.append(makers[value])
        value = makers[value].input[0]
    last = makers.get(value)
    if last is None or last.op_type != "DequantizeLinear":
        return f"it is computed in float by {last.op_type}" if last is not None else "it is an input in float"
    quantizer = makers.get(last.input[0])
    if quantizer is None or quantizer.op_type != "QuantizeLinear":
        return "it is a stored tensor"
    return _read_codes(graph, tuple(reversed(nodes)), quantizer, last.input[0])


def _read_codes(graph: OnnxGraph, nodes: tuple[Any, ...], quantizer: Any, value: str) -> _Codes | str:
    scale, zero_point = graph.array(quantizer.input[1]), graph.array(quantizer.input[2])
    assert scale is not None
    assert zero_point is not None
    if scale.ndim:
        return "its grid has a step for each channel"
    dtype, step, zero = str(zero_point.dtype), float(scale), int(zero_point)
    info = np.iinfo(zero_point.dtype)
    limits = [int(info.min), int(info.max)]
    clip = next((node for node in graph.nodes if node.output[0] == quantizer.input[0] and node.op_type == "Clip"), None)
    for index, bound in enumerate(() if clip is None else clip.input[1:]):
        real = graph.array(bound) if bound else None
        if real is not None:
            limits[index] = round(float(real) / step) + zero
    return _Codes(nodes=nodes, value=value, dtype=dtype, scale=step, zero_point=zero, limits=(limits[0], limits[1]))


def _take_codes(graph: OnnxGraph, name: str) -> None:
    """Make the codes of an input the input, and drop what made them."""
    from onnx import helper

    codes = _find_input(graph, name)
    assert isinstance(codes, _Codes)
    graph.nodes = [node for node in graph.nodes if not any(node is gone for gone in codes.nodes)]
    if codes.value in graph.outputs:
        graph.nodes.insert(0, helper.make_node("Identity", [name], [codes.value]))
    else:
        graph.rename({codes.value: name})
    graph.retype(name, codes.dtype)


def _emit_codes(graph: OnnxGraph, name: str) -> None:
    """Make the codes of an output the output, moved as their real values were."""
    codes = _find_output(graph, name)
    assert isinstance(codes, _Codes)
    end = graph.fresh(f"{name}_dequantized")
    graph.rename({name: end})
    if codes.nodes:
        value = codes.value
        for node in codes.nodes:
            moved = type(node)()
            moved.CopyFrom(node)
            last = node is codes.nodes[-1]
            moved.input[0], moved.output[0] = value, name if last else graph.fresh(f"{node.output[0]}_codes")
            value = moved.output[0]
            graph.nodes.append(moved)
    else:
        graph.rename({codes.value: name})
    graph.replace_output(end, name)
    graph.retype(name, codes.dtype)
    graph.drop_unread_nodes()
