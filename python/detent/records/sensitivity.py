"""`SensitivityTable`: what each candidate width of each tensor does to the outputs of the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from detent._registry import unknown_name
from detent.errors import ConfigError, FormatError
from detent.records.files import write_atomically
from detent.records.tensor_file import read_tensor_file, tensor_file

__all__ = ["Role", "SensitivityTable", "TensorSensitivity"]

_FORMAT: Final = "detent.sensitivity"
_VERSION: Final = 1

Role = Literal["weights", "activations"]
Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorSensitivity:
    """What the candidate widths of one tensor, or of several that share one, do to the outputs.

    Args:
        name: of the layer with the kernel, or of the first value.
        role: whether it is a kernel or an activation.
        members: the kernel's layer, or the values with a grid of their own that must have the same width.
        bits: the candidate widths, in descending order.
        scores: expected squared change of the outputs relative to their energy, float64 `[widths]`.
        errors: standard errors of the scores, float64 `[widths]`; NaN where one cannot be told.
        factors: float32 `[widths, n]`, the change along n directions and samples: its squares add up to the score, and
            the products of two tensors' factors to their interaction. Empty `[widths, 0]` if only scores are known.
    """

    name: str
    role: Role
    members: tuple[str, ...]
    bits: tuple[int, ...]
    scores: Doubles
    errors: Doubles
    factors: Floats

    def __post_init__(self) -> None:
        count = len(self.bits)
        shapes = (self.scores.shape, self.errors.shape, self.factors.shape[:1])
        if not count or shapes != ((count,),) * 3 or self.factors.ndim != 2:
            raise ConfigError("scores, their errors and factors are needed for each width", where=self.name)
        if not all(type(bits) is int for bits in self.bits) or list(self.bits) != sorted({*self.bits}, reverse=True):
            raise ConfigError(f"widths are whole numbers in descending order, got {self.bits}", where=self.name)
        if self.role not in get_args(Role):
            raise ConfigError(unknown_name("role", str(self.role), get_args(Role)).what, where=self.name)
        if not bool(np.isfinite(self.scores).all()) or bool((self.scores < 0).any()):
            raise ConfigError("scores must be finite and not negative", where=self.name)
        if not bool(np.isfinite(self.factors).all()):
            raise ConfigError("factors must be finite", where=self.name)

    def score(self, bits: int) -> float:
        """The score of a width.

        Raises:
            ConfigError: it is no candidate.
        """
        if bits not in self.bits:
            known = ", ".join(map(str, self.bits))
            raise ConfigError(f"{bits} bits were not scored; candidates are {known}", where=self.name)
        return float(self.scores[self.bits.index(bits)])

    def narrowed(self, places: Sequence[int]) -> TensorSensitivity:
        """The same with the candidates at these places only, in their order."""
        chosen = list(places)
        parts = {part: getattr(self, part)[chosen] for part in ("scores", "errors", "factors")}
        return replace(self, bits=tuple(self.bits[place] for place in chosen), **parts)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SensitivityTable:
    """The sensitivities of all tensors of a network.

    Args:
        tensors: in execution order, kernels and activations.
        method: how they were scored.
        samples: images seen.
        probes: directions of the outputs for each image; 0 for measured scores.
        fingerprint: of the graph.
    """

    tensors: tuple[TensorSensitivity, ...]
    method: str
    samples: int
    probes: int
    fingerprint: str

    def __post_init__(self) -> None:
        for name in ("samples", "probes"):
            count = getattr(self, name)
            if type(count) is not int or count < 0:
                raise ConfigError(f"`{name}` must be a whole number from 0, got {count!r}")
        if not isinstance(self.method, str) or not isinstance(self.fingerprint, str):
            raise ConfigError("`method` and `fingerprint` must be text")
        if len({tensor.factors.shape[1] for tensor in self.tensors}) > 1:
            raise ConfigError("all tensors must have as many factors", remedy="score them together")

    def __iter__(self) -> Iterator[TensorSensitivity]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def find(self, name: str, role: Role) -> TensorSensitivity:
        """The sensitivity of a kernel or an activation.

        Raises:
            ConfigError: there is none of that name.
        """
        for tensor in self.tensors:
            if (tensor.name, tensor.role) == (name, role):
                return tensor
        raise unknown_name(f"tensor among the {role}", name, [one.name for one in self.tensors if one.role == role])

    def gram(self) -> Doubles:
        """Products of the factors of all candidates, float64 `[candidates, candidates]`, in the order of `tensors`.

        Raises:
            ConfigError: only scores are known.
        """
        if any(tensor.factors.shape[1] == 0 for tensor in self.tensors):
            raise ConfigError(f"{self.method} scores have no factors", remedy="score by probes")
        factors = np.concatenate([tensor.factors for tensor in self.tensors]).astype(np.float64)
        gram: Doubles = factors @ factors.T
        return gram

    def save(self, path: str | Path) -> None:
        """Write a safetensors file.

        Raises:
            FormatError: the file cannot be written.
        """
        arrays: dict[str, npt.NDArray[Any]] = {}
        for place, one in enumerate(self.tensors):
            arrays |= {f"{place}.scores": one.scores, f"{place}.errors": one.errors, f"{place}.factors": one.factors}
        meta = {
            "tensors": [
                {"name": one.name, "role": one.role, "members": list(one.members), "bits": list(one.bits)}
                for one in self.tensors
            ],
            **{name: getattr(self, name) for name in ("method", "samples", "probes", "fingerprint")},
        }
        write_atomically(Path(path), tensor_file(_FORMAT, _VERSION, meta, arrays))

    @classmethod
    def load(cls, path: str | Path) -> SensitivityTable:
        """Read a file written by `save`.

        Raises:
            FormatError: the file is missing, damaged, of another kind or of another version.
        """
        meta, arrays = read_tensor_file(Path(path), _FORMAT, _VERSION, "score the network again")
        try:
            tensors = tuple(
                TensorSensitivity(
                    name=one["name"],
                    role=one["role"],
                    members=tuple(one["members"]),
                    bits=tuple(one["bits"]),
                    **{part: arrays[f"{place}.{part}"] for part in ("scores", "errors", "factors")},
                )
                for place, one in enumerate(meta["tensors"])
            )
            return cls(tensors=tensors, **{name: meta[name] for name in ("method", "samples", "probes", "fingerprint")})
        except (KeyError, TypeError, ConfigError) as error:
            raise FormatError(f"{path} holds no sensitivities: {error}", remedy="score the network again") from None

    def __str__(self) -> str:
        widths = sorted({bits for one in self.tensors for bits in one.bits}, reverse=True)
        rows = [("tensor", "role", "number", *(f"{bits} bits" for bits in widths))]
        numbers = count()
        for one in self.tensors:
            cells = (f"{one.score(bits):.3g}" if bits in one.bits else "" for bits in widths)
            # Those with a choice are numbered as `configuration_overwrite` lists them.
            rows.append((one.name, one.role, str(next(numbers)) if len(one.bits) > 1 else "", *cells))
        sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(size) for cell, size in zip(row, sizes, strict=True)).rstrip() for row in rows]
        return "\n".join([repr(self), *lines])

    def __repr__(self) -> str:
        return (
            f"SensitivityTable({len(self.tensors)} tensors by {self.method}, "
            f"{self.samples} samples, {self.probes} probes)"
        )
