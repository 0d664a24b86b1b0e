"""Puts the measured figures into README.md and pages of docs/, as they are, between their markers.

    python benchmarks/tables.py [--check]

`--check` changes nothing and fails if a page differs from `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from mixed_precision_tables import mixed_precision_page, mixed_precision_summary
from result_tables import load, machine_line, measured_rows, table
from rounding_tables import rounding_page, rounding_summary

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
Z_COLUMNS = ("inf", 9.0, 5.0, 3.0)


def accuracy_rows(network: dict[str, Any]) -> list[str]:
    """Top-1 by target and metric, a column for each z-score."""
    found: dict[tuple[str, str], dict[Any, str]] = {}
    for row in network["rows"]:
        found.setdefault((row["target"], row["metric"]), {})[row["z"]] = f"{row['top1']:.2f}"
    header = ["target, activation metric", *(f"z = {z}" for z in Z_COLUMNS)]
    rows = [
        [f"{target}, {metric}", *(cells.get(z, "") for z in Z_COLUMNS)] for (target, metric), cells in found.items()
    ]
    return table(header, rows)


def correction_rows(network: dict[str, Any]) -> list[str]:
    """Points of top-1 lost by each lever, a column for each pair of widths, and what the lever costs where measured."""
    rows = network["rows"]
    widths = [key for key in rows[0] if key.startswith("w") and key[1].isdigit()]
    costs = [key for key in ("extra_passes", "seconds", "times_forward") if any(key in row for row in rows)]
    header = ["lever", *map(_column_title, widths), *(_COST_TITLES[key] for key in costs)]
    body = [
        [row["lever"], *(_figure(row, key, ".2f") for key in widths), *(_figure(row, key, "g") for key in costs)]
        for row in rows
    ]
    return table(header, body)


_COST_TITLES = {"extra_passes": "extra passes", "seconds": "seconds", "times_forward": "x forward"}


def _column_title(key: str) -> str:
    widths, _, kind = key.partition("_")
    return " ".join([widths.upper(), kind.replace("_", " ")]).strip()


def _figure(row: dict[str, Any], key: str, form: str) -> str:
    return format(row[key], form) if key in row else ""


def render() -> str:
    """The block between the markers."""
    lines: list[str] = []
    accuracy = load("accuracy")
    for name, network in accuracy.get("networks", {}).items():
        lines += [
            f"**{name}**, float top-1 {network['float_top1']:.2f} on {network['images']} CIFAR-10 test images, W8A8,"
        ]
        lines += [
            f"{network['calibration_samples']} calibration images, all rows from one calibration, no bias correction:",
            "",
        ]
        lines += [*accuracy_rows(network), ""]
    levers = {**load("corrections").get("networks", {}), **load("silu").get("networks", {})}
    for name, network in levers.items():
        samples, forward_s = network["calibration_samples"], network.get("forward_seconds")
        top1, images = network["float_top1"], network["images"]
        lines += [
            f"**{name}**, points of top-1 lost against float ({top1:.2f} on {images} images),",
            "all layers, rounding to nearest, power-of-two activations where no other kind is named,",
            f"{samples} images to calibrate{f' (bare forward {forward_s:.2f} s)' if forward_s else ''}:",
            "",
            *correction_rows(network),
            "",
        ]
    lines += mixed_precision_summary()
    lines += rounding_summary()
    sections = (
        ("Whole runs", "ptq"),
        ("Exported ONNX in onnxruntime", "onnx"),
        ("Exported files", "export"),
        ("Integer programs", "integer"),
        ("Kernels", "kernels"),
    )
    for title, name in sections:
        data = load(name)
        if data:
            lines += [f"**{title}**", "", *measured_rows(data), ""]
            lines += [f"Measured on {machine_line(next(iter(data.values()))['machine'])}", ""]
    return "\n".join(lines).strip()


PAGES = {
    ROOT / "README.md": render,
    ROOT / "docs" / "mixed-precision.md": mixed_precision_page,
    ROOT / "docs" / "rounding.md": rounding_page,
}


def main() -> None:
    """Write or check the blocks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    for path, rendered in PAGES.items():
        text = path.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        after = rest.split(END)[1]
        fresh = f"{before}{BEGIN}\n\n{rendered()}\n\n{END}{after}"
        if options.check and fresh != text:
            sys.exit(f"{path.name} differs from benchmarks/results: run benchmarks/tables.py")
        if not options.check:
            path.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    main()
