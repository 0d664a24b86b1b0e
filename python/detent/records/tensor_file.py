"""Records that hold arrays, as safetensors files with a digest: any later change is an error, not a wrong plan.

The file has one metadata entry, `detent`, holding JSON: safetensors writes several in arbitrary order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as parse_safetensors
from safetensors.numpy import save as format_safetensors

from detent.errors import FormatError

__all__ = ["canonical_bytes", "read_tensor_file", "tensor_file"]

_METADATA_KEY: Final = "detent"

Arrays = Mapping[str, npt.NDArray[Any]]


def tensor_file(kind: str, version: int, meta: Mapping[str, Any], arrays: Arrays) -> bytes:
    """The file's content, the same bytes for the same record.

    Args:
        kind: what the record is, `"detent.statistics"` for instance.
        version: of its format.
        meta: plain data beside the arrays.
        arrays: by name.
    """
    head = {"format": kind, "version": version, **meta}
    head["digest"] = _digest(head, arrays)
    stored = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    return format_safetensors(stored, metadata={_METADATA_KEY: json.dumps(head, sort_keys=True)})


def read_tensor_file(
    path: Path, kind: str, version: int, remedy: str
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """The plain data and the arrays of a file.

    Args:
        path: the file.
        kind: what it must be.
        version: the format version that can be read.
        remedy: how the user gets a good file.

    Raises:
        FormatError: the file is missing, truncated, edited, of another kind or of another version.
    """
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise FormatError(f"cannot read the file: {reason}", where=str(path)) from None
    noun = kind.rpartition(".")[2]
    try:
        arrays = parse_safetensors(raw)
        size = int.from_bytes(raw[:8], "little")
        meta = json.loads(json.loads(raw[8 : 8 + size])["__metadata__"][_METADATA_KEY])
        found_kind, found_version = meta["format"], meta["version"]
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(
            f"not a complete {noun} file ({type(error).__name__}: {error})", where=str(path), remedy=remedy
        ) from None
    if found_kind != kind:
        raise FormatError(f"the file holds {found_kind!r}, not {kind!r}", where=str(path), remedy=remedy)
    if found_version != version:
        raise FormatError(
            f"the file is of format version {found_version!r}, this detent reads version {version}",
            where=str(path),
            remedy=f"read it with the detent that wrote it, or {remedy}",
        )
    digest = meta.pop("digest", None)
    if digest != _digest(meta, arrays):
        raise FormatError("the file was changed after it was written", where=str(path), remedy=remedy)
    return meta, arrays


def _digest(meta: Mapping[str, Any], arrays: Arrays) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode() + b"\0" + canonical_bytes(arrays)).hexdigest()


def canonical_bytes(arrays: Arrays) -> bytes:
    """All that makes the arrays what they are, as bytes: comparing bits, not values, tells -0 from 0."""
    parts = []
    for name in sorted(arrays):
        array = arrays[name]
        parts.append(f"{name} {array.dtype.str} {array.shape}\0".encode() + array.tobytes())
    return b"".join(parts)
