"""`detent inspect`: what is in a plan or in saved statistics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from detent.cli.options import Debug
from detent.errors import ConfigError

if TYPE_CHECKING:
    from detent.records.plan import QuantPlan, TensorPlan
    from detent.records.statistics import Statistics

__all__ = ["inspect"]


def inspect(
    file: Annotated[Path, typer.Argument(help="plan.json or statistics.safetensors.", show_default=False)],
    debug: Debug = False,
) -> None:
    """Show a plan or statistics as a table."""
    console = Console(highlight=False)
    if file.suffix == ".json":
        from detent.records.plan import QuantPlan

        _show_plan(console, QuantPlan.load(file))
    elif file.suffix == ".safetensors":
        from detent.records.statistics import Statistics

        _show_statistics(console, Statistics.load(file))
    else:
        raise ConfigError(
            "cannot tell what this file is", where=str(file), remedy="name a plan (.json) or statistics (.safetensors)"
        )


def _show_plan(console: Console, plan: QuantPlan) -> None:
    console.print(f"plan for target {plan.target}, from {plan.samples} samples", markup=False)
    if plan.config:
        console.print("options: " + ", ".join(f"{name}={value}" for name, value in plan.config.items()), markup=False)
    for number, rule in enumerate(plan.rules, 1):
        console.print(f"rule {number}: {rule!r}", markup=False, soft_wrap=True)
    for title, entries in (("weights", plan.weights), ("activations", plan.activations)):
        table = Table(title, "grid", "mean error", "by", box=None, pad_edge=False)
        for name, entry in entries.items():
            error = "" if entry.error is None else f"{entry.error:.3g}"
            table.add_row(name, _grid(entry), error, entry.metric or "")
        console.print(table)
    for note in plan.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)


def _grid(entry: TensorPlan) -> str:
    if entry.same_as is not None:
        return f"same as {entry.same_as}"
    grid = "float" if entry.grid is None else str(entry.grid).replace("[", r"\[")
    return f"{grid} frozen" if entry.frozen else grid


def _show_statistics(console: Console, statistics: Statistics) -> None:
    console.print(str(statistics), markup=False, soft_wrap=True)
