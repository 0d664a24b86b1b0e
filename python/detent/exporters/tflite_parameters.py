"""Parameters of an application inside a TensorFlow Lite file.

They are written twice: as JSON, and as the flatbuffer dictionary that Silicon Labs' MLTK reads on its devices (metadata
`SL_PARAMSv1`, schema `dictionary.fbs` of `tflite_model_parameters`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from detent.errors import ConfigError
from detent.exporters.tflite_file import require_flatbuffers

__all__ = ["Value", "check_parameters", "to_dictionary", "to_json"]

Value = bool | int | float | str | list[str] | list[int] | list[float]

_SCHEMA_VERSION: Final = 1
_NUMBERS: Final = {"bool": (1, "Bool"), "int32": (6, "Int32"), "int64": (8, "Int64"), "float": (10, "Float32")}
"""Type to its number in the union and how the builder stores it."""
_TEXT, _TEXTS, _WHOLES, _REALS = 12, 13, 14, 15
_REMEDY: Final = "use numbers, texts, true and false, or lists of one kind of these"


def check_parameters(parameters: Mapping[str, Any]) -> dict[str, Value]:
    """Parameters with plain Python values.

    Raises:
        ConfigError: a name that is no text, or a value of another kind; numbers that 64 or, in lists, 32 bits do not
            hold.
    """
    found: dict[str, Value] = {}
    for name, value in parameters.items():
        if not isinstance(name, str) or not name or "\0" in name:
            raise ConfigError(f"the name of a parameter is a text, not {name!r}")
        found[name] = _plain(name, value.tolist() if isinstance(value, np.ndarray | np.generic) else value)
    return found


def _plain(name: str, value: Any) -> Value:
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return value
    if isinstance(value, float) and abs(value) <= float(np.finfo(np.float32).max):
        return value
    if isinstance(value, list | tuple):
        if all(isinstance(one, str) for one in value):
            return [str(one) for one in value]
        numbers = [one for one in value if isinstance(one, int | float) and not isinstance(one, bool)]
        if len(numbers) == len(value):
            if all(isinstance(one, int) and -(2**31) <= one < 2**31 for one in numbers):
                return [int(one) for one in numbers]
            if all(abs(one) <= float(np.finfo(np.float32).max) for one in numbers):
                return [float(one) for one in numbers]
    raise ConfigError(f"the parameter {name!r} cannot be stored: {value!r}", remedy=_REMEDY)


def to_json(parameters: Mapping[str, Value]) -> bytes:
    """Parameters as JSON text."""
    return json.dumps(parameters, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def to_dictionary(parameters: Mapping[str, Value]) -> bytes:
    """Parameters as MLTK's flatbuffer dictionary."""
    builder = require_flatbuffers().Builder(256)
    entries = []
    for name, value in parameters.items():
        key = builder.CreateString(name)
        kind, offset = _value(builder, value)
        builder.StartObject(3)
        builder.PrependUOffsetTRelativeSlot(0, key, 0)
        builder.PrependUint8Slot(1, kind, 0)
        builder.PrependUOffsetTRelativeSlot(2, offset, 0)
        entries.append(builder.EndObject())
    listed = _offsets(builder, entries)
    builder.StartObject(2)
    builder.PrependUint8Slot(0, _SCHEMA_VERSION, 0)
    builder.PrependUOffsetTRelativeSlot(1, listed, 0)
    builder.Finish(builder.EndObject())
    return bytes(builder.Output())


def _offsets(builder: Any, offsets: list[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _value(builder: Any, value: Value) -> tuple[int, int]:
    """The number of the value's type, and where it lies."""
    if isinstance(value, str):
        return _TEXT, _table(builder, builder.CreateString(value))
    if isinstance(value, list):
        if all(isinstance(one, str) for one in value):
            return _TEXTS, _table(builder, _offsets(builder, [builder.CreateString(one) for one in value]))
        whole = all(isinstance(one, int) for one in value)
        numbers = np.array(value, np.int32 if whole else np.float32)
        return _WHOLES if whole else _REALS, _table(builder, builder.CreateNumpyVector(numbers))
    if isinstance(value, bool):
        kind, how = _NUMBERS["bool"]
    elif isinstance(value, int):
        kind, how = _NUMBERS["int32" if -(2**31) <= value < 2**31 else "int64"]
    else:
        kind, how = _NUMBERS["float"]
    builder.StartObject(1)
    getattr(builder, f"Prepend{how}Slot")(0, value, None)
    return kind, builder.EndObject()


def _table(builder: Any, offset: int) -> int:
    builder.StartObject(1)
    builder.PrependUOffsetTRelativeSlot(0, offset, 0)
    return int(builder.EndObject())
