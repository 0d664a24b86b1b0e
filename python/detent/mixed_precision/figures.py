"""`Resources`: what one configuration of bit widths needs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final

__all__ = ["Resources"]

_FORMAT: Final = "detent.resources"
_VERSION: Final = 1


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a network needs for one sample at given code widths; floats count 32 bits.

    Args:
        target: name of the target.
        weights: bytes of kernels, biases and all else that is stored.
        activations: bytes of activations alive at once, at the worst moment.
        total: both together, bytes.
        bit_operations: sum over layers of multiply-accumulates x bits of one factor x bits of the other.
        latency: in the unit of the latency table; None without one.
        macs: multiply-accumulates.
        largest_cut: the values alive at that moment and their bytes, the largest first.
        notes: non-fatal facts: what could not be counted.
    """

    target: str
    weights: float
    activations: float
    total: float
    bit_operations: float
    latency: float | None = None
    macs: int = 0
    largest_cut: tuple[tuple[str, float], ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """All figures as JSON."""
        return json.dumps({"format": _FORMAT, "version": _VERSION, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"

    def __str__(self) -> str:
        rows = [
            ("weights", _amount(self.weights, "B")),
            ("activations", _amount(self.activations, "B")),
            ("total", _amount(self.total, "B")),
            ("bit operations", _amount(self.bit_operations, "BOPs")),
            ("MACs", _amount(self.macs, "MACs")),
        ]
        if self.latency is not None:
            rows.append(("latency", f"{self.latency:,.6g}"))
        rows.append(("largest cut", ", ".join(f"{name} {_amount(size, 'B')}" for name, size in self.largest_cut)))
        width = max(len(name) for name, _ in rows)
        lines = [f"{name.ljust(width)}  {amount}".rstrip() for name, amount in rows]
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join([f"Resources on {self.target}, one sample", *lines, *notes])


def _amount(number: float, unit: str) -> str:
    """A number with its unit, in thousands where it has many digits: `1.5 MB`."""
    prefixes = ("", "k", "M", "G", "T", "P")
    power = 0
    while number >= 1000 and power + 1 < len(prefixes):
        number, power = number / 1000, power + 1
    return f"{number:.4g} {prefixes[power]}{unit}"
