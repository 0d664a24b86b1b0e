"""`Distribution`: the code widths found for a budget, and how good they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from detent.records.widths import Widths

__all__ = ["Distribution", "Evaluated"]


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A distribution that was run on held-out samples.

    Args:
        widths: the distribution.
        predicted: its error by the solver's objective.
        measured: squared distance of the outputs from float, relative to their energy.
    """

    widths: Widths
    predicted: float
    measured: float


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """The widths of all tensors under a budget.

    Args:
        widths: by tensor.
        objective: expected squared change of the outputs relative to their energy, by the solver's objective.
        bound: no distribution within the limits can have a smaller one.
        gap: how far, relatively, the objective may be from the best one.
        limits: by resource.
        use: by resource, of this distribution.
        binding: resources that keep a tensor from its next larger width.
        interactions: whether the objective knows how errors add up or cancel.
        evaluated: the distributions that were run, the best first; empty if none was.
        seconds: by stage.
    """

    widths: Widths
    objective: float
    bound: float
    gap: float
    limits: Mapping[str, float]
    use: Mapping[str, float]
    binding: tuple[str, ...]
    interactions: bool
    evaluated: tuple[Evaluated, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    def note(self) -> str:
        """One line for the notes of a plan."""
        used = ", ".join(f"{name} {self.use[name]:.6g} of {limit:.6g}" for name, limit in self.limits.items())
        gap = f"within {self.gap:.2g} of the best possible" if self.gap > 0 else "the best possible"
        return f"mixed precision: {used}; predicted relative error of the outputs {self.objective:.3g}, {gap}"

    def __str__(self) -> str:
        rows = [("tensor", "role", "bits")]
        rows += [(name, "weights", str(bits)) for name, bits in self.widths.weights.items()]
        rows += [(name, "activations", str(bits)) for name, bits in self.widths.activations.items()]
        sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(size) for cell, size in zip(row, sizes, strict=True)).rstrip() for row in rows]
        return "\n".join([self.note(), *lines])
