"""`Statistics`: what calibration saw of every value, exact, mergeable and independent of order.

The tensors of the file are the kernel's accumulator states, named `value/field` (see `records.tensor_file`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detent.errors import CalibrationError, FormatError
from detent.kernels.statistics import StatisticsAccumulator
from detent.records.files import write_atomically
from detent.records.moving import MovingMaximum
from detent.records.tensor_file import canonical_bytes, read_tensor_file, tensor_file

__all__ = ["Statistics", "TensorStatistics"]

_FORMAT: Final = "detent.statistics"
_VERSION: Final = 1
_REMEDY: Final = "collect the statistics again with detent.calibrate and save them with Statistics.save"

State = Mapping[str, npt.NDArray[Any]]
FloatVector = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class TensorStatistics:
    """What calibration saw of one value.

    Args:
        state: the accumulator's state, see `detent.kernels.statistics.StatisticsAccumulator`.
        constant: the value does not depend on the model's inputs, so it was counted once and not once per sample.

    Raises:
        ValueError: the state contradicts itself.
    """

    state: State
    constant: bool = False

    @classmethod
    def of(cls, accumulator: StatisticsAccumulator, *, constant: bool = False) -> TensorStatistics:
        """What `accumulator` has seen so far; it may go on."""
        statistics = cls.__new__(cls)
        # A state that was just taken needs neither copies nor checks.
        object.__setattr__(statistics, "state", accumulator.state())
        object.__setattr__(statistics, "constant", constant)
        object.__setattr__(statistics, "_accumulator", accumulator.copy())
        return statistics

    def __post_init__(self) -> None:
        frozen = {}
        for name, array in self.state.items():
            copy = np.array(array, order="C")
            copy.setflags(write=False)
            frozen[name] = copy
        object.__setattr__(self, "state", frozen)
        _ = self._accumulator  # a state that contradicts itself is refused here, not at first use

    @cached_property
    def _accumulator(self) -> StatisticsAccumulator:
        return StatisticsAccumulator.from_state(dict(self.state))

    @property
    def count(self) -> int:
        """Elements seen."""
        return self._accumulator.count

    @property
    def zeros(self) -> int:
        """Elements that are exactly zero (they are counted in their bin too)."""
        return self._accumulator.zeros

    @property
    def minimum(self) -> float:
        """Least value seen."""
        return float(self._accumulator.minimum)

    @property
    def maximum(self) -> float:
        """Greatest value seen."""
        return float(self._accumulator.maximum)

    @property
    def mean(self) -> float:
        """Mean over all elements, correctly rounded."""
        return float(self._accumulator.mean)

    @property
    def std(self) -> float:
        """Standard deviation over all elements."""
        return float(self._accumulator.std)

    @property
    def exponent(self) -> int:
        """The bin width is `2 ** exponent`."""
        return self._accumulator.exponent

    @property
    def width(self) -> float:
        """Bin width, a power of two."""
        return math.ldexp(1.0, self.exponent)

    @property
    def first_bin(self) -> int:
        """Index of the first bin; bin i covers `[(first_bin + i) * width, (first_bin + i + 1) * width)`."""
        return self._accumulator.first_bin

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """Elements per bin, int64 `[bins]`."""
        return np.asarray(self._accumulator.counts)

    @cached_property
    def channel_minimum(self) -> FloatVector | None:
        """Least value per channel, float32 `[channels]`; None for a value without a channel axis."""
        return None if self._accumulator.channel_axis is None else self._accumulator.channel_minimum

    @cached_property
    def channel_maximum(self) -> FloatVector | None:
        """Greatest value per channel, float32 `[channels]`; None for a value without a channel axis."""
        return None if self._accumulator.channel_axis is None else self._accumulator.channel_maximum

    @cached_property
    def channel_mean(self) -> npt.NDArray[np.float64] | None:
        """Mean per channel, float64 `[channels]`; None for a value without a channel axis."""
        return None if self._accumulator.channel_axis is None else self._accumulator.channel_mean

    def merge(self, other: TensorStatistics) -> TensorStatistics:
        """The statistics of both sets of samples together, exactly.

        Raises:
            ValueError: the two describe values of different kinds.
        """
        if self.constant or other.constant:
            if self != other:
                raise ValueError("a value that does not depend on the inputs differs between the two")
            return self
        both = self._accumulator.copy()
        both.merge(other._accumulator)
        return TensorStatistics.of(both)

    @classmethod
    def pool(cls, tensors: Iterable[TensorStatistics]) -> TensorStatistics:
        """The statistics of several values that share a grid, taken together; channels are not told apart.

        Raises:
            ValueError: there is no value.
        """
        states = [
            {name: array for name, array in tensor.state.items() if not name.startswith("channel_")}
            for tensor in tensors
        ]
        if not states:
            raise ValueError("there is no value to take together")
        pooled = StatisticsAccumulator()
        for state in states:
            pooled.merge(StatisticsAccumulator.from_state(state))
        return cls.of(pooled)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorStatistics):
            return NotImplemented
        return self.constant == other.constant and canonical_bytes(self.state) == canonical_bytes(other.state)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False, repr=False)
class Statistics(Mapping[str, TensorStatistics]):
    """The statistics of all observed values, in the order in which the graph computes them.

    Args:
        tensors: statistics by value name.
        samples: calibration samples seen.
        fingerprint: of the graph they belong to, see `Graph.fingerprint`.
        notes: non-fatal facts about the data and the run.
        moving: the moving maxima, where they were asked for.
    """

    tensors: Mapping[str, TensorStatistics]
    samples: int
    fingerprint: str
    notes: tuple[str, ...] = ()
    moving: MovingMaximum | None = None

    def __getitem__(self, name: str) -> TensorStatistics:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Statistics):
            return NotImplemented
        return self.to_bytes() == other.to_bytes()

    __hash__ = None  # type: ignore[assignment]

    def merge(self, other: Statistics) -> Statistics:
        """The statistics of both data sets together: the same bits as one run over all samples.

        Raises:
            CalibrationError: they belong to different graphs, hold different values, or hold moving maxima.
        """
        if self.moving is not None or other.moving is not None:
            raise CalibrationError(
                "a moving maximum depends on the order of all batches, so two of them do not make one",
                remedy="calibrate once with all the data, or merge statistics collected without `moving_maximum`",
            )
        if self.fingerprint != other.fingerprint:
            raise CalibrationError(
                "the statistics belong to different graphs",
                where=f"fingerprints {self.fingerprint[:12]} and {other.fingerprint[:12]}",
                remedy="merge statistics of the same captured model only",
            )
        if list(self) != list(other):
            different = sorted(set(self) ^ set(other))
            raise CalibrationError(
                "the statistics hold different values",
                where=", ".join(different[:5]) or "order of the values",
                remedy="calibrate both with the same `values`",
            )
        tensors = {}
        for name in self:
            try:
                tensors[name] = self[name].merge(other[name])
            except ValueError as error:
                raise CalibrationError(f"the statistics cannot be merged: {error}", where=name) from None
        notes = self.notes + tuple(note for note in other.notes if note not in self.notes)
        return Statistics(tensors, self.samples + other.samples, self.fingerprint, notes)

    def to_bytes(self, extra: Mapping[str, str] | None = None) -> bytes:
        """The file's content, the same bytes for the same statistics; `extra` entries travel along."""
        arrays = {f"{name}/{key}": array for name, tensor in self.items() for key, array in tensor.state.items()}
        meta = {
            "samples": self.samples,
            "fingerprint": self.fingerprint,
            "notes": list(self.notes),
            "values": [{"name": name, "constant": tensor.constant} for name, tensor in self.items()],
            "extra": dict(extra or {}),
        }
        if self.moving is not None:
            meta["moving_maximum"] = self.moving.to_dict()
        return tensor_file(_FORMAT, _VERSION, meta, arrays)

    def save(self, path: str | Path) -> None:
        """Write the statistics to `path`, completely or not at all.

        Raises:
            FormatError: the file cannot be written.
        """
        write_atomically(Path(path), self.to_bytes())

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read statistics written by `save`.

        Raises:
            FormatError: the file is missing, truncated, edited, or of another version.
        """
        return read_statistics(Path(path))[0]

    def __repr__(self) -> str:
        return f"Statistics({len(self.tensors)} values, {self.samples} samples)"

    def __str__(self) -> str:
        return summary_table(self)


def read_statistics(path: Path) -> tuple[Statistics, dict[str, str]]:
    """Read a statistics file and the `extra` entries that travelled along.

    Raises:
        FormatError: the file is missing, truncated, edited, or of another version.
    """
    meta, arrays = read_tensor_file(path, _FORMAT, _VERSION, _REMEDY)
    try:
        return _rebuild(meta, arrays), {str(key): str(value) for key, value in meta["extra"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"the statistics contradict themselves: {error}", where=str(path), remedy=_REMEDY) from None


def summary_table(statistics: Statistics) -> str:
    """One line per value: elements, range, moments, share of exact zeros, occupied bins."""
    wide = max([len("value"), *(len(name) for name in statistics)])
    titles = "  ".join(f"{title:>11}" for title in ("min", "max", "mean", "std"))
    head = f"{'value':<{wide}}  {'elements':>12}  {titles}  {'zeros':>6}  bins"
    lines = [f"statistics of {len(statistics)} values from {statistics.samples} samples", head]
    for name, tensor in statistics.items():
        share = f"{tensor.zeros / tensor.count:6.1%}" if tensor.count else f"{'-':>6}"
        figures = (tensor.minimum, tensor.maximum, tensor.mean, tensor.std) if tensor.count else (math.nan,) * 4
        numbers = "  ".join(f"{figure:>11.5g}" for figure in figures)
        lines.append(f"{name:<{wide}}  {tensor.count:>12}  {numbers}  {share}  {len(tensor.counts):>4}")
    lines += [f"note: {note}" for note in statistics.notes]
    return "\n".join(lines)


def _rebuild(meta: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> Statistics:
    states: dict[str, dict[str, npt.NDArray[Any]]] = {entry["name"]: {} for entry in meta["values"]}
    for key, array in arrays.items():
        name, _, part = key.rpartition("/")
        states[name][part] = array
    tensors = {
        entry["name"]: TensorStatistics(states[entry["name"]], constant=entry["constant"]) for entry in meta["values"]
    }
    moving = MovingMaximum.from_dict(meta["moving_maximum"]) if "moving_maximum" in meta else None
    return Statistics(tensors, int(meta["samples"]), str(meta["fingerprint"]), tuple(meta["notes"]), moving)
