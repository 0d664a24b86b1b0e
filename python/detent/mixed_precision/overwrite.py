"""Widths that the user gives in place of the solver: for all tensors with a choice, or for some by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from detent._registry import unknown_name
from detent.errors import ConfigError
from detent.records.sensitivity import Role, SensitivityTable

__all__ = ["Overwrite", "Tensor", "overwritten", "without_others"]

Overwrite = Sequence[int] | Mapping[str, int]
"""The index of the candidate of each tensor with a choice, 0 for the widest; or name to width in bits."""


class Tensor(Protocol):
    """A tensor with its candidate widths, the widest first."""

    @property
    def name(self) -> str: ...
    @property
    def role(self) -> Role: ...
    @property
    def members(self) -> tuple[str, ...]: ...
    @property
    def bits(self) -> tuple[int, ...]: ...


def overwritten(tensors: Sequence[Tensor], overwrite: Overwrite) -> list[int | None]:
    """The candidate each tensor is given, None for one that is left to the solver or has no choice.

    Args:
        tensors: with and without a choice, in the order of a `SensitivityTable`.
        overwrite: what the user gives. A name is that of a layer for its kernel or of a value; of a layer and a value
            of one name, the one that has a choice, or `"weights of NAME"` and `"activations of NAME"`.

    Raises:
        ConfigError: as many indices as there are tensors with a choice are needed; an unknown name, or one that two
            tensors have; an index or a width that is not offered.
    """
    if isinstance(overwrite, Mapping):
        return _by_name(tensors, overwrite)
    free = [place for place, one in enumerate(tensors) if len(one.bits) > 1]
    if len(overwrite) != len(free):
        raise _wrong(
            f"{len(free)} tensors have a choice of widths, and {len(overwrite)} indices are given",
            None,
            "give one for each tensor that detent.score numbers under the same budget, in its order",
        )
    found: list[int | None] = [None] * len(tensors)
    for number, (place, index) in enumerate(zip(free, overwrite, strict=True)):
        bits = tensors[place].bits
        if not 0 <= index < len(bits):
            listed = ", ".join(f"{at} for {width} bits" for at, width in enumerate(bits))
            raise _wrong(f"index {index} (number {number}) is none of {_words(tensors[place])}", None, f"give {listed}")
        found[place] = index
    return found


def without_others(table: SensitivityTable, chosen: Sequence[int | None]) -> SensitivityTable:
    """The table in which what is given is the only candidate."""
    kept = (one if at is None else one.narrowed([at]) for one, at in zip(table, chosen, strict=True))
    return replace(table, tensors=tuple(kept))


def _by_name(tensors: Sequence[Tensor], overwrite: Mapping[str, int]) -> list[int | None]:
    found: list[int | None] = [None] * len(tensors)
    for name, width in overwrite.items():
        place = _place(tensors, name)
        bits = tensors[place].bits
        if width not in bits:
            known = ", ".join(map(str, bits))
            raise _wrong(f"{width} bits are no candidate of {_words(tensors[place])}", name, f"choose among {known}")
        if found[place] not in (None, bits.index(width)):
            raise _wrong(f"{_words(tensors[place])} is given two widths", name, "values that share a width have one")
        found[place] = bits.index(width)
    return found


def _place(tensors: Sequence[Tensor], name: str) -> int:
    """Of the tensor that has the name."""
    names = [(member, *(f"{one.role} of {member}",)) for one in tensors for member in one.members]
    places = [place for place, one in enumerate(tensors) for _ in one.members]
    fitting = list(dict.fromkeys(place for place, own in zip(places, names, strict=True) if name in own))
    if len(fitting) > 1:
        fitting = [place for place in fitting if len(tensors[place].bits) > 1] or fitting[:1]
    if not fitting:
        known = unknown_name("tensor", name, [own[0] for own in names])
        raise _wrong(known.what, None, known.remedy)
    if len(fitting) > 1:
        both = " or ".join(repr(_words(tensors[place])) for place in fitting)
        raise _wrong("a layer and a value have this name, and both have a choice", name, f"write {both}")
    return fitting[0]


def _words(tensor: Tensor) -> str:
    return f"{tensor.role} of {tensor.name}"


def _wrong(what: str, where: str | None, remedy: str | None) -> ConfigError:
    place = "configuration_overwrite" if where is None else f"configuration_overwrite: {where}"
    return ConfigError(what, where=place, remedy=remedy)
