"""Reading `.pt2` files without running what is in them."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any, Final

import torch
from torch.export import ExportedProgram

from detent.errors import FormatError
from detent.graph.quiet import quiet_torch

__all__ = ["load_program"]

_CODE: Final = ("aotinductor/", "custom_obj_", "opaque_obj_", "executorch/")
"""Parts of archive paths that mean compiled code or pickled objects."""


def load_program(path: str | os.PathLike[str]) -> ExportedProgram:
    """Load a program written by `torch.export.save`.

    `torch.export.load` falls back to full unpickling for parts it cannot read safely. So the archive is checked first:
    every pickled member must load as plain tensors (`weights_only`), and compiled code or custom objects are refused.

    Raises:
        FormatError: no such file, a damaged one, one that needs unpickling, or one torch cannot read.
    """
    source = Path(path)
    try:
        content = source.read_bytes()
    except OSError as error:
        raise FormatError(
            f"cannot read the model file: {error.strerror}", where=str(source), remedy="give the path of a .pt2 file"
        ) from error
    # The bytes that were checked are the bytes that are loaded.
    _check_archive(content, source)
    try:
        with quiet_torch():
            program = torch.export.load(io.BytesIO(content))
    except Exception as error:
        raise FormatError(
            f"torch {torch.__version__} cannot read the exported program: {type(error).__name__}: {error}",
            where=str(source),
            remedy="write the file again with torch.export.save, with the installed version of torch",
        ) from error
    return program


def _check_archive(content: bytes, source: Path) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"bad checksum of {damaged}")
            for name in archive.namelist():
                _check_member(archive, name, source)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError) as error:
        raise FormatError(
            f"not a whole .pt2 archive: {error}",
            where=str(source),
            remedy="the file is truncated or edited: write it again with torch.export.save",
        ) from error


def _check_member(archive: zipfile.ZipFile, name: str, source: Path) -> None:
    if any(part in name for part in _CODE):
        raise _unsafe(f"the archive holds compiled code or a custom object ({name})", source)
    if name.endswith("_config.json") and _declares_pickle(json.loads(archive.read(name))):
        raise _unsafe(f"the archive holds pickled tensors ({name})", source)
    if name.endswith(".pt") and archive.getinfo(name).file_size:
        try:
            torch.load(io.BytesIO(archive.read(name)), weights_only=True)
        except Exception as error:
            raise _unsafe(f"a member of the archive is not plain tensors ({name})", source) from error


def _declares_pickle(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value.get("use_pickle")) or any(map(_declares_pickle, value.values()))
    return isinstance(value, list) and any(map(_declares_pickle, value))


def _unsafe(what: str, source: Path) -> FormatError:
    return FormatError(
        f"{what}, and detent never unpickles objects",
        where=str(source),
        remedy="capture the module itself, or pass the ExportedProgram if you trust the file",
    )
