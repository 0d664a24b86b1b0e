"""The problem of mixed precision: slots with candidate widths, what each costs, and limits on what all use together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detent.errors import ConfigError

__all__ = ["Problem", "Product", "Row", "Slot"]

Array = npt.NDArray[np.float64]
Product = tuple[int, int, Array]
"""Two slots, and the amount of each pair of their candidates, `[n_a, n_b]`."""
_FINEST: Final = 10
"""Amounts are tried as multiples of 1, 1/2, and so on to this power."""


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A tensor, or several that share one width, and the widths it may have.

    Args:
        name: what messages call it.
        widths: candidate code widths in bits, each once.

    Raises:
        ConfigError: no name, or widths that are not distinct positive whole numbers.
    """

    name: str
    widths: tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(f"a slot needs a name, got {self.name!r}")
        where = f"slot {self.name!r}"
        if not isinstance(self.widths, (tuple, list)) or not self.widths:
            raise ConfigError(f"widths must be a tuple of one width or more, got {self.widths!r}", where=where)
        widths = tuple(_whole(width, "a width", where) for width in self.widths)
        if min(widths) < 1 or len(set(widths)) < len(widths):
            raise ConfigError(f"widths must be positive and distinct, got {widths}", where=where)
        object.__setattr__(self, "widths", widths)


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """A resource of which an assignment must not use more than a limit.

    Its amount is `constant`, plus `linear[s][a_s]` for each slot s named, plus `amounts[a_i, a_j]` for each product.

    Args:
        name: what messages call it, e.g. `"weight bytes"`.
        linear: the amount of each candidate, by slot; not negative.
        products: amounts that depend on two slots, e.g. bit-operations; not negative.
        constant: what is used in any case.
        limit: the greatest amount allowed; infinity only measures the amount.

    Raises:
        ConfigError: an amount is not a finite number or is negative, or the limit is NaN.
    """

    name: str
    linear: Mapping[int, Array] = field(default_factory=dict)
    products: tuple[Product, ...] = ()
    constant: float = 0.0
    limit: float

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(f"a row needs a name, got {self.name!r}")
        where = f"row {self.name!r}"
        if not isinstance(self.linear, Mapping):
            raise ConfigError("linear must map slots to amounts", where=where)
        linear = {
            _whole(slot, "a slot", where): _amounts(amounts, 1, f"linear amounts of slot {slot}", where)
            for slot, amounts in self.linear.items()
        }
        object.__setattr__(self, "linear", MappingProxyType(linear))
        object.__setattr__(self, "products", tuple(_product(product, where) for product in self.products))
        object.__setattr__(self, "constant", _number(self.constant, "constant", where))
        limit = _real(self.limit, "limit", where)
        if math.isnan(limit) or limit == -math.inf:
            raise ConfigError(f"limit must be a number or infinity, got {limit!r}", where=where)
        object.__setattr__(self, "limit", limit)

    @cached_property
    def attainable_limit(self) -> tuple[float, bool]:
        """The greatest amount within the limit that the row can have, and whether sums of its amounts are exact.

        Amounts that are whole in some unit `2^-k`, as bytes and eighths of them are, have sums that are, so a limit
        between two of them is the lower one. Sums of others are rounded, and the limit stays.
        """
        tables = [*self.linear.values(), *(amounts for _, _, amounts in self.products)]
        values = np.concatenate([[self.constant], *(table.ravel() for table in tables)])
        for unit in (2.0**-k for k in range(_FINEST + 1)):
            scaled = values / unit
            if np.all(scaled == np.rint(scaled)):
                if math.isfinite(self.limit) and np.abs(scaled).sum() + abs(self.limit / unit) < 2.0**53:
                    return math.floor(self.limit / unit) * unit, True
                break
        return self.limit, False


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """Which width each slot gets: the least output error within the limits of all rows.

    Args:
        slots: what is assigned.
        costs: the expected squared output error of each candidate alone, `[n_candidates]` per slot, not negative.
        rows: the limits.
        factors: `[n_candidates, K]` per slot, the output change of each candidate along K probes. With them the error
            of an assignment a can be taken as `|sum_s factors[s][a_s]|^2 / K`, which knows how the changes of slots
            add up or cancel; `|factors[s][c]|^2 / K` is about `costs[s][c]`.
        fixed: slots that are decided, and the index of their candidate.

    Raises:
        ConfigError: something has a wrong shape, is not a finite number, is negative or does not exist.
    """

    slots: tuple[Slot, ...]
    costs: tuple[Array, ...]
    rows: tuple[Row, ...] = ()
    factors: tuple[Array, ...] | None = None
    fixed: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        slots = tuple(self.slots)
        if not slots or not all(isinstance(slot, Slot) for slot in slots):
            raise ConfigError("slots must hold one Slot or more")
        _distinct([slot.name for slot in slots], "slots")
        object.__setattr__(self, "slots", slots)
        object.__setattr__(self, "costs", self._checked_costs())
        object.__setattr__(self, "rows", self._checked_rows())
        object.__setattr__(self, "factors", self._checked_factors())
        object.__setattr__(self, "fixed", MappingProxyType(self._checked_fixed()))

    @property
    def counts(self) -> tuple[int, ...]:
        """How many candidates each slot has."""
        return tuple(len(slot.widths) for slot in self.slots)

    def choices(self, slot: int) -> tuple[int, ...]:
        """The candidates of a slot that may be chosen."""
        return (self.fixed[slot],) if slot in self.fixed else tuple(range(self.counts[slot]))

    def _checked_costs(self) -> tuple[Array, ...]:
        _per_slot(self.costs, len(self.slots), "costs")
        checked = []
        for slot, given in zip(self.slots, self.costs, strict=True):
            costs = _amounts(given, 1, "costs", f"slot {slot.name!r}")
            _require_shape(costs, (len(slot.widths),), "costs", f"slot {slot.name!r}")
            checked.append(costs)
        return tuple(checked)

    def _checked_rows(self) -> tuple[Row, ...]:
        rows = tuple(self.rows)
        if not all(isinstance(row, Row) for row in rows):
            raise ConfigError("rows must hold Row only")
        _distinct([row.name for row in rows], "rows")
        for row in rows:
            where = f"row {row.name!r}"
            for slot, amounts in row.linear.items():
                self._require_slot(slot, where)
                _require_shape(amounts, (self.counts[slot],), f"linear amounts of {self.slots[slot].name!r}", where)
            for a, b, amounts in row.products:
                self._require_slot(a, where)
                self._require_slot(b, where)
                names = f"{self.slots[a].name!r} and {self.slots[b].name!r}"
                _require_shape(amounts, (self.counts[a], self.counts[b]), f"products of {names}", where)
        return rows

    def _checked_factors(self) -> tuple[Array, ...] | None:
        if self.factors is None:
            return None
        _per_slot(self.factors, len(self.slots), "factors")
        checked: list[Array] = []
        for slot, given in zip(self.slots, self.factors, strict=True):
            where = f"slot {slot.name!r}"
            factors = _array(given, 2, "factors", where)
            probes = factors.shape[1] if not checked else checked[0].shape[1]
            if probes == 0:
                raise ConfigError("factors need one probe or more", where=where)
            _require_shape(factors, (len(slot.widths), probes), "factors", where)
            checked.append(factors)
        return tuple(checked)

    def _checked_fixed(self) -> dict[int, int]:
        if not isinstance(self.fixed, Mapping):
            raise ConfigError("fixed must map slots to candidates")
        checked = {}
        for given, candidate in self.fixed.items():
            slot = _whole(given, "a slot", "fixed")
            self._require_slot(slot, "fixed")
            where = f"fixed, slot {self.slots[slot].name!r}"
            checked[slot] = _whole(candidate, "a candidate", where)
            if not 0 <= checked[slot] < self.counts[slot]:
                raise ConfigError(f"candidate {candidate} is outside 0..{self.counts[slot] - 1}", where=where)
        return checked

    def _require_slot(self, slot: int, where: str) -> None:
        if not 0 <= slot < len(self.slots):
            raise ConfigError(f"slot {slot} is outside 0..{len(self.slots) - 1}", where=where)


def _product(product: Any, where: str) -> Product:
    if not isinstance(product, Sequence) or len(product) != 3:
        raise ConfigError("a product is two slots and their amounts", where=where)
    a, b = (_whole(slot, "a slot", where) for slot in product[:2])
    if a == b:
        raise ConfigError(f"a product needs two different slots, got {a} twice", where=where, remedy="use linear")
    return a, b, _amounts(product[2], 2, f"products of slots {a} and {b}", where)


def _per_slot(given: Any, count: int, what: str) -> None:
    if isinstance(given, np.ndarray) or not isinstance(given, Sequence):
        raise ConfigError(f"{what} must be a tuple of one array per slot, got {type(given).__name__}")
    if len(given) != count:
        raise ConfigError(f"{what} must hold one array per slot: {count} slots, got {len(given)}")


def _amounts(given: Any, axes: int, what: str, where: str) -> Array:
    array = _array(given, axes, what, where)
    if np.any(array < 0):
        raise ConfigError(f"{what} must not be negative, got {array.min():g}", where=where)
    return array


def _array(given: Any, axes: int, what: str, where: str) -> Array:
    """A read-only copy in float64: what is checked here stays as it is."""
    raw = np.asarray(given)
    if raw.dtype.kind not in "fiu":
        raise ConfigError(f"{what} must be numbers, got dtype {raw.dtype}", where=where)
    array = np.array(raw, dtype=np.float64, order="C")
    if array.ndim != axes:
        raise ConfigError(f"{what} must have {axes} axes, got shape {list(array.shape)}", where=where)
    if not np.all(np.isfinite(array)):
        raise ConfigError(f"{what} hold NaN or infinity", where=where)
    array.setflags(write=False)
    return array


def _require_shape(array: Array, shape: tuple[int, ...], what: str, where: str) -> None:
    if array.shape != shape:
        raise ConfigError(f"{what} must have shape {list(shape)}, got {list(array.shape)}", where=where)


def _whole(given: Any, what: str, where: str) -> int:
    if isinstance(given, bool) or not isinstance(given, (int, np.integer)):
        raise ConfigError(f"{what} must be a whole number, got {given!r}", where=where)
    return int(given)


def _real(given: Any, what: str, where: str) -> float:
    if isinstance(given, bool) or not isinstance(given, (int, float, np.integer, np.floating)):
        raise ConfigError(f"{what} must be a number, got {given!r}", where=where)
    return float(given)


def _number(given: Any, what: str, where: str) -> float:
    number = _real(given, what, where)
    if not math.isfinite(number):
        raise ConfigError(f"{what} must be finite, got {number!r}", where=where)
    return number


def _distinct(names: list[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ConfigError(f"{what} must have different names, {name!r} comes twice")
        seen.add(name)
