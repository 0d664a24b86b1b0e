"""Files that are complete or not there: how every record is written and read."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path
from typing import Final

from detent.errors import FormatError

__all__ = ["check_writable", "read_text", "write_atomically"]

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
    temporary: str | None = None
    try:
        _refuse_existing(path)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)  # mkstemp gives 0600; a user expects an ordinary file
        Path(temporary).replace(path)
        temporary = None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise _unwritable(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()


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
