"""`ExportReport`: what was written, and what a user should know about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from detent.errors import ExportError, FormatError
from detent.records.files import check_writable, write_all_atomically, write_atomically

__all__ = ["ExportReport", "require_writable", "write_file", "write_files"]


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """A finished export; wherever a path is asked for, it stands for the file.

    Args:
        path: the file.
        format: name of the format.
        bytes: size of the file.
        operators: how many of each operator the file has, by the format's own names.
        rounding: how accumulators become codes in the runtimes that read the file: a rule of
            `detent.kernels.requantize`, or None where the file leaves it open.
        companions: files written beside it, which belong to it.
        notes: non-fatal facts a user should know.
    """

    path: Path
    format: str
    bytes: int
    operators: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    rounding: str | None = None
    companions: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(self.operators.items()))
        beside = "".join(f", {one.name}" for one in self.companions)
        lines = [f"{self.path}{beside}: {self.format}, {self.bytes} bytes"]
        lines += [f"operators: {counts}"] if counts else []
        lines += [f"rounding: {self.rounding}"] if self.rounding else []
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def require_writable(path: Path) -> None:
    """Make sure that a file can be made at `path`, before any work.

    Raises:
        ExportError: it cannot.
    """
    if not path.parent.is_dir():
        raise ExportError(
            "the folder does not exist", where=str(path.parent), remedy="create it, or choose another path"
        )
    try:
        check_writable(path)
    except FormatError as error:
        raise ExportError(error.what, where=error.where, remedy=error.remedy) from error


def write_file(path: Path, data: bytes) -> None:
    """Write a file that is complete or not there.

    Raises:
        ExportError: it cannot be written.
    """
    try:
        write_atomically(path, data)
    except FormatError as error:
        raise ExportError(error.what, where=error.where, remedy=error.remedy) from error


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write files that belong together, all of them or none; the first refers to the others.

    Raises:
        ExportError: one of them cannot be written.
    """
    try:
        write_all_atomically(contents)
    except FormatError as error:
        raise ExportError(error.what, where=error.where, remedy=error.remedy) from error
