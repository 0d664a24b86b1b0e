"""`HessianTraces`: how sharply the loss bends in every element of kernels and activations, with standard errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detent._registry import unknown_name
from detent.errors import ConfigError, FormatError
from detent.records.files import write_atomically
from detent.records.hessians import HessianScores
from detent.records.sensitivity import Role
from detent.records.statistics import Statistics, TensorStatistics
from detent.records.tensor_file import read_tensor_file, tensor_file

__all__ = ["BinScores", "HessianTraces", "TensorTrace"]

_FORMAT: Final = "detent.traces"
_VERSION: Final = 1
_REMEDY: Final = "estimate the traces again"
_FLOOR: Final = 1e-3
"""Least score of an element, in parts of the mean. Few directions, or samples that leave a channel at rest, estimate
zero for elements that do matter on other samples; a search that took it at its word would clip them at no cost."""

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
_SCALARS: Final = ("name", "role", "size", "members")
_FIGURES: Final = ("trace", "probe_error", "sample_error")
_FIELDS: Final = ("method", "samples", "probes", "tolerance", "fingerprint", "notes")


@dataclass(frozen=True, kw_only=True, eq=False)
class BinScores:
    """Diagonal entries of an activation by the elements' values, in bins anchored at zero and `2 ** exponent` wide.

    Args:
        exponent: of the width.
        first_bin: index of the first bin, as in `TensorStatistics`.
        sums: of the entries of the elements in each bin, over all samples, float64 `[bins]`.
        counts: of these elements, float64 `[bins]`.
    """

    exponent: int
    first_bin: int
    sums: Doubles
    counts: Doubles

    def __post_init__(self) -> None:
        if self.sums.ndim != 1 or self.sums.shape != self.counts.shape or not len(self.sums):
            raise ConfigError("bins need a sum and a count each")

    @property
    def centres(self) -> Doubles:
        """The value in the middle of each bin, float64 `[bins]`."""
        places = np.arange(len(self.sums), dtype=np.float64)
        found: Doubles = (self.first_bin + places + 0.5) * 2.0**self.exponent
        return found

    def over(self, observed: TensorStatistics) -> tuple[Doubles, Doubles]:
        """Sums and counts in the bins of a histogram, float64 `[its bins]`; what lies outside of it is left out.

        Raises:
            ConfigError: its bins are finer.
        """
        merged = observed.exponent - self.exponent
        if merged < 0:
            raise ConfigError(
                "the histogram has finer bins than the traces were estimated with",
                remedy="estimate the traces with these statistics",
            )
        place = (np.arange(self.first_bin, self.first_bin + len(self.sums)) >> merged) - observed.first_bin
        bins = len(observed.counts)
        inside = (place >= 0) & (place < bins)
        parts = (np.bincount(place[inside], part[inside], bins) for part in (self.sums, self.counts))
        sums, counts = (part.astype(np.float64) for part in parts)
        return sums, counts


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorTrace:
    """The Hessian of one kernel or activation: its diagonal and its trace.

    Args:
        name: of the layer with the kernel, or of the value.
        role: whether it is a kernel or an activation.
        size: elements, of an activation those of one sample.
        trace: sum of the diagonal, mean over samples.
        probe_error: standard error of the trace that more directions would reduce; 0 once there are as many as outputs.
        sample_error: standard error that more samples would reduce, with that of the directions in it; NaN for one.
        channels: sums of the diagonal over output channels, float64 `[channels]`, empty without a channel axis.
        elements: the diagonal, float32, in the shape of the kernel, or of one sample as
            `BatchLayout.samples_first` lays it out; None for an activation in which samples are mixed.
        members: of an activation that decides a grid, the values whose histograms decide it.
        bins: of an activation, the diagonal by value; None unless statistics were given.
    """

    name: str
    role: Role
    size: int
    trace: float
    probe_error: float
    sample_error: float
    channels: Doubles
    elements: Floats | None
    members: tuple[str, ...] = ()
    bins: BinScores | None = None

    def __post_init__(self) -> None:
        if not np.isfinite(self.trace) or self.trace < 0:
            raise ConfigError("a trace must be finite and not negative", where=self.name)
        if self.elements is None and self.role == "weights":
            raise ConfigError("a kernel needs the diagonal of its elements", where=self.name)
        if self.elements is not None and self.elements.size != self.size:
            raise ConfigError(f"{self.elements.size} elements for a tensor of {self.size}", where=self.name)

    @property
    def mean(self) -> float:
        """The mean of the diagonal."""
        return self.trace / self.size

    @property
    def relative_error(self) -> float:
        """The error of the directions in parts of the trace; 0 for a trace of 0."""
        return self.probe_error / self.trace if self.trace > 0 else 0.0


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class HessianTraces:
    """The Hessians of the kernels and activations of a network.

    Args:
        tensors: kernels, then activations, each in execution order.
        method: how they were estimated.
        samples: images seen.
        probes: directions of the outputs for each.
        tolerance: relative error of the directions that was wanted.
        fingerprint: of the graph.
        notes: non-fatal facts, as which traces did not converge.
    """

    tensors: tuple[TensorTrace, ...]
    method: str
    samples: int
    probes: int
    tolerance: float
    fingerprint: str
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[TensorTrace]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def find(self, name: str, role: Role) -> TensorTrace:
        """The trace of a kernel or an activation.

        Raises:
            ConfigError: there is none of that name.
        """
        for tensor in self.tensors:
            if (tensor.name, tensor.role) == (name, role):
                return tensor
        raise unknown_name(f"trace among the {role}", name, [one.name for one in self.tensors if one.role == role])

    @property
    def unconverged(self) -> tuple[TensorTrace, ...]:
        """Those whose error is above the tolerance."""
        return tuple(one for one in self.tensors if not one.relative_error <= self.tolerance)

    @property
    def has_bins(self) -> bool:
        """Whether activations were told apart by value, so that they can be scored."""
        return any(one.bins is not None for one in self.tensors)

    def scores(self, stats: Statistics | None = None) -> HessianScores:
        """Scores for the metric `"hmse"`: of all kernels, and with statistics of all activations that decide a grid.

        Entries are at least a small part of the tensor's mean, and a tensor that nothing depends on has equal ones.
        Bins in which the samples had no element get what their neighbours have.

        Args:
            stats: histograms whose bins are to be scored, of the same network.

        Raises:
            ConfigError: the statistics belong to another network or lack a value, or the traces were estimated without
                histograms.
        """
        if stats is not None and stats.fingerprint != self.fingerprint:
            raise ConfigError("the statistics belong to another network than the traces")
        kernels = {
            one.name: _floored(one.elements)
            for one in self.tensors
            if one.elements is not None and one.role == "weights"
        }
        if stats is None:
            return HessianScores(weights=kernels)
        owners = [one for one in self.tensors if one.role == "activations" and one.members]
        return HessianScores(weights=kernels, activations={one.name: self._by_bin(one, stats) for one in owners})

    def _by_bin(self, owner: TensorTrace, stats: Statistics) -> Doubles:
        known = {one.name: one.bins for one in self.tensors if one.role == "activations"}
        bins = [known[name] for name in owner.members if name in known] or [owner.bins]
        missing = [name for name in owner.members if name not in stats]
        if missing:
            raise ConfigError("the statistics hold nothing about this value", where=missing[0])
        observed = TensorStatistics.pool(stats[name] for name in owner.members)
        sums, counts = np.zeros(len(observed.counts)), np.zeros(len(observed.counts))
        for one in bins:
            if one is None:
                raise ConfigError(
                    "its elements were not told apart by value",
                    where=owner.name,
                    remedy="estimate the traces with stats=...",
                )
            more = one.over(observed)
            sums += more[0]
            counts += more[1]
        seen = np.flatnonzero(counts > 0)
        if not len(seen):
            return np.ones(len(counts))
        filled = np.interp(np.arange(len(counts)), seen, sums[seen] / counts[seen])
        return np.maximum(filled, _FLOOR * sums.sum() / counts.sum()) if sums.any() else np.ones(len(counts))

    def save(self, path: str | Path) -> None:
        """Write a safetensors file.

        Raises:
            FormatError: the file cannot be written.
        """
        arrays: dict[str, npt.NDArray[Any]] = {}
        entries: list[dict[str, Any]] = []
        for place, one in enumerate(self.tensors):
            arrays[f"{place}.figures"] = np.array([getattr(one, name) for name in _FIGURES])
            arrays[f"{place}.channels"] = one.channels
            if one.elements is not None:
                arrays[f"{place}.elements"] = one.elements
            entry: dict[str, Any] = {name: getattr(one, name) for name in _SCALARS}
            if one.bins is not None:
                arrays |= {f"{place}.sums": one.bins.sums, f"{place}.counts": one.bins.counts}
                entry["bins"] = [one.bins.exponent, one.bins.first_bin]
            entries.append(entry)
        meta = {"tensors": entries, **{name: getattr(self, name) for name in _FIELDS}}
        write_atomically(Path(path), tensor_file(_FORMAT, _VERSION, meta, arrays))

    @classmethod
    def load(cls, path: str | Path) -> HessianTraces:
        """Read a file written by `save`.

        Raises:
            FormatError: the file is missing, damaged, of another kind or of another version.
        """
        meta, arrays = read_tensor_file(Path(path), _FORMAT, _VERSION, _REMEDY)
        try:
            tensors = tuple(_tensor(entry, arrays, place) for place, entry in enumerate(meta["tensors"]))
            fields = {name: meta[name] for name in _FIELDS}
            return cls(tensors=tensors, **{**fields, "notes": tuple(fields["notes"])})
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{path} holds no Hessian traces: {error}", remedy=_REMEDY) from None

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("tensor", "role", "elements", "trace", "mean", "of probes", "of samples")]
        for one in self.tensors:
            errors = (error / one.trace if one.trace > 0 else 0.0 for error in (one.probe_error, one.sample_error))
            figures = (f"{one.trace:.4g}", f"{one.mean:.4g}", *(f"{error:.1%}" for error in errors))
            rows.append((one.name, one.role, str(one.size), *figures))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([repr(self), *lines, *(f"note: {note}" for note in self.notes)])

    def __repr__(self) -> str:
        return (
            f"HessianTraces({len(self.tensors)} tensors by {self.method}, {self.samples} samples, {self.probes} probes)"
        )


def _floored(diagonal: Floats) -> Floats:
    mean = float(diagonal.mean(dtype=np.float64))
    floored: Floats = np.maximum(diagonal / mean, _FLOOR).astype(np.float32) if mean > 0 else np.ones_like(diagonal)
    return floored


def _tensor(entry: dict[str, Any], arrays: dict[str, npt.NDArray[Any]], place: int) -> TensorTrace:
    trace, probe_error, sample_error = map(float, arrays[f"{place}.figures"])
    bins = None
    if "bins" in entry:
        exponent, first_bin = entry["bins"]
        parts = {part: arrays[f"{place}.{part}"] for part in ("sums", "counts")}
        bins = BinScores(exponent=exponent, first_bin=first_bin, **parts)
    return TensorTrace(
        name=entry["name"],
        role=entry["role"],
        size=entry["size"],
        trace=trace,
        probe_error=probe_error,
        sample_error=sample_error,
        channels=arrays[f"{place}.channels"],
        elements=arrays.get(f"{place}.elements"),
        members=tuple(entry["members"]),
        bins=bins,
    )
