"""`Distribution`: the code widths found for a budget, and how good they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
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
        overwritten: how many tensors with a choice have the width that `configuration_overwrite` gives them.
        remarks: non-fatal facts about what was limited, e.g. layers that a table of times leaves out.
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
    overwritten: int = 0
    remarks: tuple[str, ...] = ()

    def notes(self) -> tuple[str, ...]:
        """What a plan and the summary of its model say: limits and use, error and bound, widths, what was run."""
        lines = [self._amounts(), self._error(), self._histogram()]
        if self.evaluated:
            first, *others = (f"{one.measured:.3g}" for one in self.evaluated)
            more = f", the others {', '.join(others)}" if others else ""
            lines.append(f"the best of {len(self.evaluated)} run on held-out samples: measured error {first}{more}")
        if self.overwritten:
            lines.append(f"the widths of {self.overwritten} tensors are those of `configuration_overwrite`")
        return tuple(f"mixed precision: {line}" for line in (*lines, *self.remarks))

    def _amounts(self) -> str:
        used = (
            f"{name} {self.use[name]:.6g} of {limit:.6g}{' (binding)' if name in self.binding else ''}"
            for name, limit in self.limits.items()
        )
        return ", ".join(used)

    def _error(self) -> str:
        kind = "with interactions" if self.interactions else "without interactions"
        gap = f"bound {self.bound:.3g}, gap {self.gap:.2g}" if self.gap > 0 else "the least possible"
        return f"predicted relative error of the outputs {self.objective:.3g} {kind}, {gap}"

    def _histogram(self) -> str:
        tables = (("kernels", self.widths.weights), ("activations", self.widths.activations))
        return ", ".join(f"{what} {_counted(table.values())}" for what, table in tables if table)

    def __str__(self) -> str:
        rows = [("tensor", "role", "bits")]
        rows += [(name, "weights", str(bits)) for name, bits in self.widths.weights.items()]
        rows += [(name, "activations", str(bits)) for name, bits in self.widths.activations.items()]
        sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(size) for cell, size in zip(row, sizes, strict=True)).rstrip() for row in rows]
        return "\n".join([*self.notes(), *lines])


def _counted(widths: Iterable[int]) -> str:
    """How many have each width, the widest first."""
    return " ".join(f"{count}x{bits}" for bits, count in sorted(Counter(widths).items(), reverse=True))
