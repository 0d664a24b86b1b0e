"""Results files, and Markdown tables of them."""

from __future__ import annotations

import json
from typing import Any

from harness import RESULTS


def load(name: str) -> dict[str, Any]:
    """One results file; empty if it was never measured."""
    path = RESULTS / f"{name}.json"
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return data


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table whose first column is text and whose others are figures."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def measured_rows(data: dict[str, Any]) -> list[str]:
    """Figures with goals, section by section."""
    verdict = {True: "yes", False: "**no**", None: ""}
    rows = []
    for section in data.values():
        for row in section["rows"]:
            goal = "" if row["goal"] is None else f"{'<=' if row['at_most'] else '>='} {row['goal']:g}"
            figure = f"{row['figure']:.3g} {row['unit']}"
            rows.append([row["name"], figure, goal, verdict[row["met"]]])
    return table(["what", "measured", "goal", "met"], rows)


def machine_line(machine: dict[str, Any]) -> str:
    """The machine, in one sentence."""
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    return f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['isa']}, {machine['compiler']}, {libraries}."
