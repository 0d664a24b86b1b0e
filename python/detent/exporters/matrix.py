"""Operators by targets: at which widths a target computes an operator, and whether its file can hold that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from detent.exporters.formats import FORMATS
from detent.targets import KINDS, OpRule, Target, load_target, target_names

__all__ = ["REFUSED", "as_markdown", "cell", "operator_matrix", "operators"]

REFUSED: Final = "refused"
"""What a cell says of an operator that the target's format cannot express."""

_ALIKE: Final = ("cat", "conv", "conv_transposed", "attention", "matmul", "sub")
"""Kinds whose operators no target tells apart."""


def operators() -> Iterator[tuple[str, str]]:
    """Rows of the matrix: kind and name of an operator; a kind without names is its own."""
    for kind, names in KINDS.items():
        if not names or kind in _ALIKE:
            yield kind, kind
            continue
        if kind == "softmax":
            yield kind, kind
        for name in names:
            yield kind, name


def cell(kind: str, name: str, target: Target) -> str:
    """What the target's file holds of an operator: widths of weights and activations, `float`, or `refused`."""
    format = FORMATS[target.formats[0]]
    expressed = format.operators
    if expressed is not None and name not in expressed and kind not in expressed:
        return REFUSED
    rule = target.rule(name)
    if not rule.quantize_inputs and rule.output_grid == "none":
        return "float"
    narrow = name in format.narrow
    activations = _widths(tuple(bits for bits in _activations(rule) if bits <= 8 or not narrow))
    return activations if rule.weights is None else f"{_widths(rule.weights.bits)} x {activations}"


def _activations(rule: OpRule) -> tuple[int, ...]:
    fixed = tuple(grid.bits for grid in rule.fixed_outputs)
    return tuple(bits for bits in rule.activations.bits if not fixed or bits in fixed)


def _widths(bits: tuple[int, ...]) -> str:
    """Widths from narrow to wide, neighbours as `2-8`."""
    runs: list[list[int]] = []
    for width in sorted(bits):
        if runs and width == runs[-1][-1] + 1:
            runs[-1].append(width)
        else:
            runs.append([width])
    return "/".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def operator_matrix() -> dict[tuple[str, str], dict[str, str]]:
    """Kind and name of an operator to its cells by target."""
    targets = [load_target(name) for name in target_names()]
    return {row: {target.name: cell(*row, target) for target in targets} for row in operators()}


def as_markdown() -> str:
    """The matrix as a table in Markdown."""
    names = target_names()
    lines = [f"| operator | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for (kind, name), cells in operator_matrix().items():
        label = name if kind == name else f"{name} ({kind})"
        lines.append(f"| {label} | {' | '.join(cells[target] for target in names)} |")
    return "\n".join(lines) + "\n"
