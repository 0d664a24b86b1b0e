"""Partial statistics on disk, so that an interrupted calibration continues instead of starting again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from detent.errors import CalibrationError
from detent.records.files import write_atomically
from detent.records.statistics import Statistics, read_statistics

__all__ = ["Checkpoint", "read_checkpoint"]

_BATCH_SIZE: Final = "batch_size"
_DIGEST: Final = "data_digest"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A statistics file that also says what is needed to continue.

    Args:
        statistics: the samples counted so far.
        batch_size: internal batch; another one would round differently.
        data_digest: hash of the samples counted so far, to recognize the same data in the same order.
    """

    statistics: Statistics
    batch_size: int
    data_digest: str

    def save(self, path: Path) -> None:
        """Write the checkpoint, completely or not at all.

        Raises:
            FormatError: the file cannot be written.
        """
        extra = {_BATCH_SIZE: str(self.batch_size), _DIGEST: self.data_digest}
        write_atomically(path, self.statistics.to_bytes(extra))


def read_checkpoint(path: Path, *, fingerprint: str, names: list[str], batch_size: int) -> Checkpoint | None:
    """The checkpoint at `path`, or None if there is no file yet.

    Args:
        path: the resume file.
        fingerprint: of the graph that is about to be calibrated.
        names: the values that are about to be observed.
        batch_size: internal batch of this run.

    Raises:
        CalibrationError: the file belongs to another model or other options.
        FormatError: the file is truncated, edited, or of another version.
    """
    if not path.exists():
        return None
    statistics, extra = read_statistics(path)
    remedy = "calibrate with the same model and options, or give another `resume` path to start afresh"
    if _DIGEST not in extra:
        raise CalibrationError(
            "the file holds finished statistics, not an interrupted calibration",
            where=str(path),
            remedy="give another `resume` path; statistics of more samples are added with Statistics.merge",
        )
    for what, then, now in (
        ("model", statistics.fingerprint, fingerprint),
        ("set of values", list(statistics), names),
        ("batch size", extra[_BATCH_SIZE], str(batch_size)),
    ):
        if then != now:
            raise CalibrationError(f"the file belongs to another {what}", where=str(path), remedy=remedy)
    return Checkpoint(statistics=statistics, batch_size=batch_size, data_digest=extra[_DIGEST])
