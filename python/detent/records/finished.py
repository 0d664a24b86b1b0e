"""Finished parts of long work on disk, so that what is interrupted continues instead of starting again.

Parts are done one by one, and what is kept are the figures of each; work that continues puts together the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt
import torch

from detent.errors import CalibrationError, FormatError
from detent.records.files import check_writable, write_atomically
from detent.records.tensor_file import read_tensor_file, tensor_file

__all__ = ["FinishedParts", "digest_of_data", "digest_of_texts"]

_VERSION: Final = 1
_AFRESH: Final = "give another `checkpoint` path to start afresh"

Arrays = dict[str, npt.NDArray[Any]]


class FinishedParts:
    """The figures of the parts that are done, in order; written to a file after each, if there is one.

    Args:
        doing: the work, as an error calls it: `"scoring"`, for instance.
        path: the file; one that exists is read, and its parts are taken as done. None keeps nothing.
        of: what the work depends on, by what an error calls it: a fingerprint or digest of the model, the data and so
            on.

    Raises:
        CalibrationError: the file belongs to work on something else.
        FormatError: the file is damaged or of another kind, or cannot be written.
    """

    def __init__(self, doing: str = "work", path: Path | None = None, of: Mapping[str, str] | None = None) -> None:
        self._doing, self._path = doing, path
        self._of = dict(of or {})
        self._parts: list[Arrays] = []
        if path is not None:
            check_writable(path)
            if path.exists():
                self._parts = self._read(path)

    @property
    def kept(self) -> bool:
        """Whether they are written to a file."""
        return self._path is not None

    @property
    def parts(self) -> tuple[Arrays, ...]:
        """The figures of each part by name."""
        return tuple(self._parts)

    def add(self, figures: Mapping[str, npt.NDArray[Any]]) -> None:
        """One more part is done.

        Raises:
            FormatError: the file cannot be written; it stays as it was.
        """
        if self._path is None:
            return
        self._parts.append(dict(figures))
        arrays = {f"{place}.{name}": part for place, one in enumerate(self._parts) for name, part in one.items()}
        meta = {"of": self._of, "parts": len(self._parts)}
        write_atomically(self._path, tensor_file(f"detent.{self._doing}", _VERSION, meta, arrays))

    def _read(self, path: Path) -> list[Arrays]:
        remedy = f"go on with the same model, data and options, or {_AFRESH}"
        meta, arrays = read_tensor_file(path, f"detent.{self._doing}", _VERSION, _AFRESH)
        try:
            then, count = dict(meta["of"]), int(meta["parts"])
        except (KeyError, TypeError, ValueError):
            raise FormatError("the file does not say what it belongs to", where=str(path), remedy=remedy) from None
        for what, now in self._of.items():
            if then.get(what) != now:
                raise CalibrationError(
                    f"the file belongs to a {self._doing} with another {what}", where=str(path), remedy=remedy
                )
        found: list[Arrays] = [{} for _ in range(count)]
        for name, array in arrays.items():
            place, _, rest = name.partition(".")
            found[int(place)][rest] = array
        return found


def digest_of_texts(texts: Iterable[str]) -> str:
    """A hash of texts in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        raw = text.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


def digest_of_data(batches: Sequence[Sequence[torch.Tensor]]) -> str:
    """A hash of batches: their shapes, types and every bit."""
    digest = hashlib.blake2b(digest_size=16)
    for batch in batches:
        for tensor in batch:
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\0".encode())
            digest.update(tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
