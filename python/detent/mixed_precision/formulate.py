"""From sensitivities, resources and limits to the problem that the solver takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from detent.errors import ConfigError
from detent.mixed_precision.model import ResourceModel
from detent.mixed_precision.problem import Problem, Row, Slot
from detent.mixed_precision.slots import FLOAT_BITS
from detent.records.sensitivity import SensitivityTable
from detent.records.widths import Widths

__all__ = ["assignment_of", "formulate", "resource_of", "widths_of"]

Array = npt.NDArray[np.float64]

_SEPARATOR = " at "


def formulate(table: SensitivityTable, model: ResourceModel, limits: Mapping[str, float], settled: Widths) -> Problem:
    """Which width each tensor of a table gets: the least expected error within the limits.

    Args:
        table: candidates and what they cost; with factors for the objective with interactions.
        model: of the same network.
        limits: by resource: `weights`, `activations`, `total`, `bit_operations`, `latency`.
        settled: widths of tensors that the table lacks; what is in neither is float.
    """
    places = _Places(table, settled)
    rows: list[Row] = []
    weights = _Sum.of_weights(model, places)
    for name, limit in limits.items():
        if name == "weights":
            rows.append(weights.row(name, limit))
        elif name in ("activations", "total"):
            for cut in model.cuts:
                amount = _Sum(cut.fixed_bits / 8)
                for owner, count in cut.elements.items():
                    amount.add(places.activation(owner), lambda bits, count=count: count * bits / 8)  # type: ignore[misc]
                whole = amount.plus(weights) if name == "total" else amount
                rows.append(whole.row(f"{name}{_SEPARATOR}{cut.during or 'the inputs'}", limit))
        elif name == "bit_operations":
            rows.append(_bit_operations(model, places).row(name, limit))
        else:
            rows.append(_latency(model, places).row(name, limit))
    probes = max(table.probes * table.samples, 1)
    known = all(tensor.factors.shape[1] for tensor in table)
    return Problem(
        slots=tuple(Slot(name=f"{one.role} of {one.name}", widths=one.bits) for one in table),
        costs=tuple(one.scores for one in table),
        rows=tuple(rows),
        factors=tuple(one.factors.astype(np.float64) * probes**0.5 for one in table) if known else None,
    )


def resource_of(row: str) -> str:
    """The resource a row of the problem belongs to."""
    return row.split(_SEPARATOR)[0]


def widths_of(table: SensitivityTable, assignment: Iterable[int], settled: Widths) -> Widths:
    """The widths of an assignment, and those that were settled."""
    weights, activations = dict(settled.weights), dict(settled.activations)
    for tensor, choice in zip(table, assignment, strict=True):
        (weights if tensor.role == "weights" else activations).update(
            dict.fromkeys(tensor.members, tensor.bits[choice])
        )
    return Widths(weights=weights, activations=activations)


def assignment_of(table: SensitivityTable, widths: Widths) -> tuple[int, ...]:
    """The assignment of widths, the other way round.

    Raises:
        ConfigError: a tensor of the table has no width, or one that is no candidate.
    """
    tables, found = {"weights": widths.weights, "activations": widths.activations}, []
    for tensor in table:
        bits = tables[tensor.role].get(tensor.members[0])
        if bits not in tensor.bits:
            known = ", ".join(map(str, tensor.bits))
            raise ConfigError(
                f"the widths to start with give {tensor.role} {bits or 'no'} bits here",
                where=tensor.name,
                remedy=f"choose among {known}",
            )
        found.append(tensor.bits.index(bits))
    return tuple(found)


@dataclass(frozen=True)
class _Place:
    """Where the width of a tensor comes from: a slot with its candidates, or one width."""

    slot: int | None
    bits: tuple[int, ...]


class _Places:
    def __init__(self, table: SensitivityTable, settled: Widths) -> None:
        self._found = {
            (one.role, member): _Place(slot, one.bits) for slot, one in enumerate(table) for member in one.members
        }
        self._found |= {("weights", name): _Place(None, (bits,)) for name, bits in settled.weights.items()}
        self._found |= {("activations", name): _Place(None, (bits,)) for name, bits in settled.activations.items()}

    def kernel(self, layer: str | None) -> _Place:
        """Of a kernel; None is one in float."""
        return self._found.get(("weights", layer or ""), _Place(None, (FLOAT_BITS,)))

    def activation(self, owner: str | None) -> _Place:
        """Of a value by the owner of its grid; None is one in float."""
        return self._found.get(("activations", owner or ""), _Place(None, (FLOAT_BITS,)))


@dataclass
class _Sum:
    """An amount as constants, terms of one slot and terms of two."""

    constant: float = 0.0
    linear: dict[int, Array] = field(default_factory=dict)
    products: dict[tuple[int, int], Array] = field(default_factory=dict)

    @classmethod
    def of_weights(cls, model: ResourceModel, places: _Places) -> _Sum:
        """Bytes of everything that is stored."""
        amount = cls(model.fixed_weight_bytes)
        for layer, kernel in model.kernels.items():
            amount.add(places.kernel(layer), kernel.bytes)
        return amount

    def add(self, place: _Place, amount: Callable[[int], float]) -> None:
        """Add what depends on one width."""
        values = np.array([amount(bits) for bits in place.bits], np.float64)
        if place.slot is None:
            self.constant += float(values[0])
        else:
            self.linear[place.slot] = self.linear.get(place.slot, 0.0) + values

    def add_pair(self, first: _Place, second: _Place, amount: Callable[[int, int], float]) -> None:
        """Add what depends on two widths."""
        if first.slot is None:
            self.add(second, lambda bits: amount(first.bits[0], bits))
        elif second.slot is None:
            self.add(first, lambda bits: amount(bits, second.bits[0]))
        elif first.slot == second.slot:
            self.add(first, lambda bits: amount(bits, bits))
        else:
            values = np.array([[amount(a, b) for b in second.bits] for a in first.bits], np.float64)
            key = (first.slot, second.slot)
            self.products[key] = self.products.get(key, 0.0) + values

    def plus(self, other: _Sum) -> _Sum:
        """The sum of two amounts of single widths."""
        both = _Sum(self.constant + other.constant, dict(self.linear))
        for slot, values in other.linear.items():
            both.linear[slot] = both.linear.get(slot, 0.0) + values
        return both

    def row(self, name: str, limit: float) -> Row:
        """The amount with its limit."""
        products = tuple((a, b, values) for (a, b), values in self.products.items())
        return Row(name=name, linear=self.linear, products=products, constant=self.constant, limit=limit)


def _bit_operations(model: ResourceModel, places: _Places) -> _Sum:
    amount = _Sum()
    for product in model.products:
        factors = [places.activation(owner) for owner in product.inputs]
        if len(factors) == 1:
            factors.insert(0, places.kernel(product.kernel))
        first, second = factors
        amount.add_pair(first, second, lambda a, b, macs=product.macs: float(macs * a * b))  # type: ignore[misc]
    return amount


def _latency(model: ResourceModel, places: _Places) -> _Sum:
    amount = _Sum()
    for item in model.latencies:
        amount.add_pair(places.kernel(item.kernel), places.activation(item.input), item.time)
    return amount
