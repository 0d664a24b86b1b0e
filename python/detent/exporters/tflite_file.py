"""TensorFlow Lite files: tensors and operators as records, written with the bare flatbuffers builder.

Slots and numbers are those of the schema, version 3 (`tensorflow/lite/schema/schema.fbs`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detent.errors import ExportError
from detent.integer.code_grid import CodeGrid

__all__ = ["BUILTINS", "TYPES", "FlatFile", "Operator", "Tensor", "code_tensor", "require_flatbuffers"]

TYPES: Final = {"float32": 0, "int32": 2, "uint8": 3, "int64": 4, "int16": 7, "int8": 9, "int4": 17}
"""Element type to its number."""

_ALIGNMENT: Final = 16


@dataclass(frozen=True)
class Builtin:
    """A built-in operator.

    Args:
        code: its number.
        options: number of its table of options; 0 for none.
        slots: option to the slot it has in the table and how it is stored.
    """

    code: int
    options: int = 0
    slots: Mapping[str, tuple[int, str]] = field(default_factory=dict)


_CONV: Final = {
    "padding": (0, "Int8"),
    "stride_w": (1, "Int32"),
    "stride_h": (2, "Int32"),
    "activation": (3, "Int8"),
    "dilation_w": (4, "Int32"),
    "dilation_h": (5, "Int32"),
}
_TRANSPOSED: Final = {
    "padding": (0, "Int8"),
    "stride_w": (1, "Int32"),
    "stride_h": (2, "Int32"),
    "activation": (3, "Int8"),
}
_DEPTHWISE: Final = {
    "padding": (0, "Int8"),
    "stride_w": (1, "Int32"),
    "stride_h": (2, "Int32"),
    "multiplier": (3, "Int32"),
    "activation": (4, "Int8"),
    "dilation_w": (5, "Int32"),
    "dilation_h": (6, "Int32"),
}
_POOL: Final = {
    "padding": (0, "Int8"),
    "stride_w": (1, "Int32"),
    "stride_h": (2, "Int32"),
    "filter_w": (3, "Int32"),
    "filter_h": (4, "Int32"),
    "activation": (5, "Int8"),
}
_ACTIVATION: Final = {"activation": (0, "Int8")}

BUILTINS: Final = {
    "ADD": Builtin(0, 11, _ACTIVATION),
    "AVERAGE_POOL_2D": Builtin(1, 5, _POOL),
    "CONCATENATION": Builtin(2, 10, {"axis": (0, "Int32")}),
    "CONV_2D": Builtin(3, 1, _CONV),
    "DEPTHWISE_CONV_2D": Builtin(4, 2, _DEPTHWISE),
    "DEQUANTIZE": Builtin(6),
    "FULLY_CONNECTED": Builtin(9, 8, {**_ACTIVATION, "keep_num_dims": (2, "Bool")}),
    "GATHER": Builtin(36, 23, {"axis": (0, "Int32")}),
    "HARD_SWISH": Builtin(117),
    "LEAKY_RELU": Builtin(98, 75, {"alpha": (0, "Float32")}),
    "LOGISTIC": Builtin(14),
    "MAX_POOL_2D": Builtin(17, 5, _POOL),
    "MEAN": Builtin(40, 27, {"keep_dims": (0, "Bool")}),
    "MUL": Builtin(18, 21, _ACTIVATION),
    "PAD": Builtin(34, 22),
    "PADV2": Builtin(60, 43),
    "QUANTIZE": Builtin(114),
    "RELU": Builtin(19),
    "RESHAPE": Builtin(22, 17),
    "RESIZE_NEAREST_NEIGHBOR": Builtin(97, 74),
    "STRIDED_SLICE": Builtin(45, 32),
    "SUB": Builtin(41, 28, _ACTIVATION),
    "TANH": Builtin(28),
    "TRANSPOSE": Builtin(39, 26),
    "TRANSPOSE_CONV": Builtin(67, 49, _TRANSPOSED),
}
"""Operators that are written, by name."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tensor:
    """A tensor of the file.

    Args:
        name: as runtimes show it.
        shape: fixed.
        dtype: a key of `TYPES`.
        data: bytes of a stored one, or None.
        scales: float32 `[1]` or one for each entry of `axis`; None for values that are no codes.
        zero_points: int64 of the same shape.
        axis: of the channels with scales of their own.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: bytes | None = None
    scales: npt.NDArray[np.float32] | None = None
    zero_points: npt.NDArray[np.int64] | None = None
    axis: int = 0


def code_tensor(name: str, grid: CodeGrid, shape: tuple[int, ...]) -> Tensor:
    """A tensor of codes that is computed."""
    return Tensor(
        name=name,
        shape=shape,
        dtype=grid.dtype.name,
        scales=np.array([grid.scale], np.float32),
        zero_points=np.array([grid.zero_point], np.int64),
    )


@dataclass(frozen=True, kw_only=True)
class Operator:
    """A step of the file.

    Args:
        name: a key of `BUILTINS`.
        inputs: numbers of tensors.
        outputs: likewise.
        options: by name, see `BUILTINS`.
        version: of the operator, which says what it needs of a runtime.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1


@dataclass
class FlatFile:
    """A file in the making.

    Args:
        tensors: in order of their numbers.
        operators: in order of execution.
        inputs: numbers of tensors.
        outputs: likewise.
        metadata: name to bytes.
    """

    tensors: list[Tensor] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    metadata: dict[str, bytes] = field(default_factory=dict)

    def add(self, tensor: Tensor) -> int:
        """Take a tensor in and give its number."""
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def constant(self, name: str, values: Sequence[int]) -> int:
        """The number of a stored int32 tensor; one that has the same entries already serves."""
        return self.matrix(name, np.array(values, np.int32))

    def matrix(self, name: str, values: npt.NDArray[np.int32]) -> int:
        """Likewise, of any shape."""
        data = values.tobytes()
        for number, tensor in enumerate(self.tensors):
            if (tensor.dtype, tensor.shape, tensor.data) == ("int32", values.shape, data):
                return number
        return self.add(Tensor(name=name, shape=values.shape, dtype="int32", data=data))

    def to_bytes(self, description: str) -> bytes:
        """The finished file."""
        return _Writer(self).write(description)


def require_flatbuffers() -> Any:
    """Import the package of the `tflite` extra.

    Raises:
        ExportError: it is not installed.
    """
    try:
        return import_module("flatbuffers")
    except ImportError as error:
        raise ExportError(
            f"TensorFlow Lite files need the package 'flatbuffers': {error}", remedy='pip install "detent[tflite]"'
        ) from error


class _Writer:
    def __init__(self, file: FlatFile) -> None:
        self._file = file
        self._builder = require_flatbuffers().Builder(1024)

    def write(self, description: str) -> bytes:
        builder, file = self._builder, self._file
        # Buffer 0 is empty by convention: tensors that are computed have it.
        contents = [b"", *(tensor.data for tensor in file.tensors if tensor.data is not None)]
        first = len(contents)
        contents += file.metadata.values()
        buffers = self._tables([self._buffer(content) for content in contents])
        metadata = self._tables([self._metadata(name, first + place) for place, name in enumerate(file.metadata)])
        kinds = list(dict.fromkeys((operator.name, operator.version) for operator in file.operators))
        codes = self._tables([self._operator_code(*kind) for kind in kinds])
        graph = self._tables([self._subgraph(kinds)])
        text = builder.CreateString(description)
        builder.StartObject(8)
        builder.PrependUint32Slot(0, 3, 0)
        for slot, offset in ((1, codes), (2, graph), (3, text), (4, buffers), (6, metadata)):
            builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
        builder.Finish(builder.EndObject(), file_identifier=b"TFL3")
        return bytes(builder.Output())

    def _tables(self, offsets: list[int]) -> int:
        builder = self._builder
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return int(builder.EndVector())

    def _numbers(self, values: Sequence[int] | npt.NDArray[Any], dtype: type[np.generic]) -> int:
        return int(self._builder.CreateNumpyVector(np.asarray(values, dtype)))

    def _buffer(self, content: bytes) -> int:
        builder = self._builder
        data = 0
        if content:
            # Aligned, so that kernels read weights where they lie.
            builder.StartVector(1, len(content), _ALIGNMENT)
            builder.head -= len(content)
            builder.Bytes[builder.head : builder.head + len(content)] = content
            data = builder.EndVector()
        builder.StartObject(3)
        builder.PrependUOffsetTRelativeSlot(0, data, 0)
        return int(builder.EndObject())

    def _metadata(self, name: str, buffer: int) -> int:
        builder = self._builder
        text = builder.CreateString(name)
        builder.StartObject(2)
        builder.PrependUOffsetTRelativeSlot(0, text, 0)
        builder.PrependUint32Slot(1, buffer, 0)
        return int(builder.EndObject())

    def _operator_code(self, name: str, version: int) -> int:
        builder, code = self._builder, BUILTINS[name].code
        builder.StartObject(4)
        builder.PrependInt8Slot(0, min(code, 127), 0)
        builder.PrependInt32Slot(2, version, 1)
        builder.PrependInt32Slot(3, code, 0)
        return int(builder.EndObject())

    def _subgraph(self, kinds: list[tuple[str, int]]) -> int:
        builder, file = self._builder, self._file
        stored = [number for number, tensor in enumerate(file.tensors) if tensor.data is not None]
        buffers = {number: 1 + place for place, number in enumerate(stored)}
        tensors = self._tables([self._tensor(tensor, buffers.get(n, 0)) for n, tensor in enumerate(file.tensors)])
        operators = self._tables([self._operator(one, kinds.index((one.name, one.version))) for one in file.operators])
        inputs, outputs = self._numbers(file.inputs, np.int32), self._numbers(file.outputs, np.int32)
        name = builder.CreateString("main")
        builder.StartObject(5)
        for slot, offset in enumerate((tensors, inputs, outputs, operators, name)):
            builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
        return int(builder.EndObject())

    def _tensor(self, tensor: Tensor, buffer: int) -> int:
        builder = self._builder
        shape = self._numbers(tensor.shape, np.int32)
        name = builder.CreateString(tensor.name)
        grid = self._grid(tensor)
        builder.StartObject(9)
        builder.PrependUOffsetTRelativeSlot(0, shape, 0)
        builder.PrependInt8Slot(1, TYPES[tensor.dtype], 0)
        builder.PrependUint32Slot(2, buffer, 0)
        builder.PrependUOffsetTRelativeSlot(3, name, 0)
        builder.PrependUOffsetTRelativeSlot(4, grid, 0)
        builder.PrependBoolSlot(8, True, False)
        return int(builder.EndObject())

    def _grid(self, tensor: Tensor) -> int:
        if tensor.scales is None or tensor.zero_points is None:
            return 0
        builder = self._builder
        scales = self._numbers(tensor.scales, np.float32)
        zero_points = self._numbers(tensor.zero_points, np.int64)
        builder.StartObject(7)
        builder.PrependUOffsetTRelativeSlot(2, scales, 0)
        builder.PrependUOffsetTRelativeSlot(3, zero_points, 0)
        builder.PrependInt32Slot(6, tensor.axis, 0)
        return int(builder.EndObject())

    def _operator(self, operator: Operator, code: int) -> int:
        builder, builtin = self._builder, BUILTINS[operator.name]
        inputs, outputs = self._numbers(operator.inputs, np.int32), self._numbers(operator.outputs, np.int32)
        options = 0
        if builtin.options:
            builder.StartObject(1 + max((slot for slot, _ in builtin.slots.values()), default=0))
            for name, value in operator.options.items():
                slot, kind = builtin.slots[name]
                # A default that no value equals, so that every option is written down.
                getattr(builder, f"Prepend{kind}Slot")(slot, value, None)
            options = builder.EndObject()
        builder.StartObject(9)
        builder.PrependUint32Slot(0, code, 0)
        builder.PrependUOffsetTRelativeSlot(1, inputs, 0)
        builder.PrependUOffsetTRelativeSlot(2, outputs, 0)
        builder.PrependUint8Slot(3, builtin.options, 0)
        builder.PrependUOffsetTRelativeSlot(4, options, 0)
        return int(builder.EndObject())
