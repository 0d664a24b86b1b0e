"""`ParetoFront`: what a network loses over a range of budgets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from detent.errors import ConfigError
from detent.records.distribution import Distribution
from detent.records.files import write_atomically

__all__ = ["ParetoFront", "ParetoPoint"]

_FORMAT: Final = "detent.pareto"
_VERSION: Final = 1


@dataclass(frozen=True, kw_only=True)
class ParetoPoint:
    """The best distribution within one limit.

    Args:
        limit: as it was asked for.
        amount: what the distribution needs of the resource.
        distribution: the widths.
        measured: the user's metric of the quantized model; None if none was asked for.
    """

    limit: float | str
    amount: float
    distribution: Distribution
    measured: float | None = None


@dataclass(frozen=True, kw_only=True)
class ParetoFront:
    """The best distributions over a range of limits of one resource.

    Args:
        resource: `weights`, `activations`, `total`, `bit_operations` or `latency`.
        points: from the widest limit to the narrowest.
        infeasible: limits that nothing keeps, with the reason.
    """

    resource: str
    points: tuple[ParetoPoint, ...]
    infeasible: Mapping[str, str]

    def to_json(self) -> str:
        """All points with their widths as JSON."""
        points = [
            {
                "limit": point.limit,
                "amount": point.amount,
                "predicted": point.distribution.objective,
                "gap": point.distribution.gap,
                "measured": point.measured,
                "widths": point.distribution.widths.to_dict(),
            }
            for point in self.points
        ]
        data: dict[str, Any] = {"format": _FORMAT, "version": _VERSION, "resource": self.resource}
        data |= {"points": points, "infeasible": dict(self.infeasible)}
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the JSON; the file is complete or not there.

        Raises:
            FormatError: the file cannot be written.
        """
        write_atomically(Path(path), self.to_json().encode())

    def plot(self, path: str | Path) -> None:
        """Draw predicted error, and the metric where it was measured, against the resource.

        Args:
            path: the picture, e.g. `front.png` or `front.svg`.

        Raises:
            ConfigError: matplotlib is not installed, or cannot write such a file.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ConfigError("plots need matplotlib", remedy="pip install detent[report]") from None
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        amounts = [point.amount for point in self.points]
        axes.plot(amounts, [point.distribution.objective for point in self.points], "o-", color="tab:blue")
        axes.set(xlabel=self.resource.replace("_", " "), ylabel="predicted relative error of the outputs", yscale="log")
        measured = [(point.amount, point.measured) for point in self.points if point.measured is not None]
        if measured:
            other = axes.twinx()
            other.plot(*zip(*measured, strict=True), "s--", color="tab:orange")
            other.set_ylabel("measured metric")
        try:
            figure.savefig(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot draw the front: {error}", where=str(path)) from None

    def __str__(self) -> str:
        rows = [("limit", self.resource, "predicted", "gap", "measured")]
        for point in self.points:
            found = point.distribution
            measured = "" if point.measured is None else f"{point.measured:.6g}"
            rows.append(
                (str(point.limit), f"{point.amount:,.6g}", f"{found.objective:.3g}", f"{found.gap:.2g}", measured)
            )
        sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.rjust(size) for cell, size in zip(row, sizes, strict=True)) for row in rows]
        notes = [f"{limit}: {reason}" for limit, reason in self.infeasible.items()]
        return "\n".join([*lines, *notes])
