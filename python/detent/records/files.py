"""Files that are complete or not there: how every record is written and read."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from detent.errors import FormatError

__all__ = ["check_writable", "read_text", "write_all_atomically", "write_atomically"]

_REMEDY: Final = "check that the folder exists, is writable and has room; nothing was left half-written"


def check_writable(path: Path) -> None:
    """Make sure that a file can be made at `path`, before work begins whose result shall go there.

    Raises:
        FormatError: it cannot, or `path` is a folder or a device.
    """
    try:
        _refuse_existing(path)
        with tempfile.TemporaryFile(prefix=f".{path.name}.", dir=path.parent):
            pass
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise _unwritable(path, error) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to a temporary file beside `path` and move it into place.

    A full disk, a missing or read-only folder or an interruption leaves an existing file as it was and nothing new.

    Raises:
        FormatError: the file cannot be written.
    """
    try:
        temporary = _write_beside(path, data)
        try:
            temporary.replace(path)
        finally:
            _remove(temporary)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise _unwritable(path, error) from error


def write_all_atomically(contents: Mapping[Path, bytes]) -> None:
    """Write several files that belong together: all of them, or none.

    The first is the one that refers to the others. It is moved into place last, and an existing one is moved away
    first, so that wherever it is, the others are those it was written with.

    Raises:
        FormatError: one of them cannot be written; all are as they were.
    """
    temporaries: dict[Path, Path] = {}
    path = next(iter(contents))
    try:
        for path, data in contents.items():
            temporaries[path] = _write_beside(path, data)
        try:
            for path in contents:
                if path.exists():
                    path.replace(_old(temporaries[path]))
            for path in reversed(list(contents)):
                temporaries[path].replace(path)
        except BaseException:
            for one, temporary in temporaries.items():
                _put_back(one, temporary)
            raise
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error
    finally:
        for temporary in temporaries.values():
            _remove(temporary)
            _remove(_old(temporary))


def _old(temporary: Path) -> Path:
    """Where the file lies meanwhile that a temporary one shall replace."""
    return temporary.with_name(f"{temporary.name}.old")


def _put_back(path: Path, temporary: Path) -> None:
    """Undo what has been moved for one file."""
    if _old(temporary).exists():
        _old(temporary).replace(path)
    elif not temporary.exists():
        path.unlink()


def _write_beside(path: Path, data: bytes) -> Path:
    """Write a temporary file in the folder of `path`, on disk when this returns."""
    _refuse_existing(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp gives 0600; a user expects an ordinary file
    except BaseException:
        _remove(temporary)
        raise
    return temporary


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _refuse_existing(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if path.exists() and not path.is_file():
        # Moving a file there would replace a device such as /dev/stdout.
        raise OSError(errno.EINVAL, "it is not an ordinary file")


def _unwritable(path: Path, error: OSError | ValueError) -> FormatError:
    reason = getattr(error, "strerror", None) or str(error)
    return FormatError(f"cannot write the file: {reason}", where=str(path), remedy=_REMEDY)


def read_text(path: Path) -> str:
    """Read a UTF-8 text file.

    Raises:
        FormatError: the file is missing, unreadable or not text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise FormatError(f"cannot read the file: {error.strerror or error}", where=str(path)) from None
    except UnicodeDecodeError:
        raise FormatError("the file is not UTF-8 text", where=str(path)) from None
    except ValueError as error:  # a zero byte in the path
        raise FormatError(f"cannot read the file: {error}", where=str(path)) from None
