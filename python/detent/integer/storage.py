"""Integer programs as files: operations as plain data, their arrays beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detent.errors import FormatError
from detent.integer.code_grid import CodeGrid
from detent.integer.operations import (
    Concatenate,
    Convolution,
    LinearLayer,
    Move,
    Operation,
    Product,
    QuantizeInput,
    Sum,
    Table,
)
from detent.integer.windows import Average, MaximumPool, Window

__all__ = ["described", "restored"]

_KINDS: Final[dict[str, type[Operation]]] = {
    "average": Average,
    "concatenate": Concatenate,
    "convolution": Convolution,
    "linear": LinearLayer,
    "maximum_pool": MaximumPool,
    "move": Move,
    "product": Product,
    "quantize_input": QuantizeInput,
    "sum": Sum,
    "table": Table,
}
_WORDS: Final = {kind: word for word, kind in _KINDS.items()}

Arrays = dict[str, npt.NDArray[Any]]


def described(operations: tuple[Operation, ...]) -> tuple[list[dict[str, Any]], Arrays]:
    """Operations as plain data, and the arrays these name."""
    arrays: Arrays = {}
    found = []
    for place, operation in enumerate(operations):
        entry: dict[str, Any] = {"kind": _WORDS[type(operation)]}
        for item in fields(operation):
            value = getattr(operation, item.name)
            if isinstance(value, np.ndarray):
                key = f"{place}.{item.name}"
                arrays[key], entry[item.name] = value, {"array": key}
            else:
                entry[item.name] = _plain(value)
        found.append(entry)
    return found, arrays


def restored(entries: list[dict[str, Any]], arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[Operation, ...]:
    """Operations from such data.

    Raises:
        FormatError: an operation that this version does not know, or an entry that is not complete.
    """
    found = []
    for entry in entries:
        kind = entry.get("kind")
        if kind not in _KINDS:
            raise FormatError(f"this detent knows no operation {kind!r}", remedy="load it with the one that wrote it")
        given = {name: _object(value, arrays) for name, value in entry.items() if name != "kind"}
        try:
            found.append(_KINDS[kind](**given))
        except TypeError as error:
            raise FormatError(f"an operation {kind!r} is not complete: {error}") from None
    return tuple(found)


def _plain(value: Any) -> Any:
    if isinstance(value, CodeGrid):
        return {"grid": asdict(value)}
    if isinstance(value, Window):
        return {"window": {name: list(numbers) for name, numbers in asdict(value).items()}}
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def _object(value: Any, arrays: Mapping[str, npt.NDArray[Any]]) -> Any:
    if isinstance(value, list):
        return tuple(_object(one, arrays) for one in value)
    if not isinstance(value, Mapping):
        return value
    ((word, content),) = value.items()
    if word == "array":
        return arrays[content]
    if word == "grid":
        return CodeGrid(**content)
    return Window(**{name: tuple(numbers) for name, numbers in content.items()})
