"""The tables about mixed precision: accuracy under budgets, the solver, and scores of widths."""

from __future__ import annotations

from typing import Any

from result_tables import load, machine_line, measured_rows, table

NOT_MEASURED = "Not measured yet."
SUMMARIZED = {"with interactions": "", "additive, gptq": ", gptq"}
"""The objectives in the README, the usual one and one with rounding in closed form, and what their columns add."""


def mixed_precision_summary() -> list[str]:
    """Lines for the README: points of top-1 lost by budget, a column for each network; none if never measured."""
    networks = load("mixed_precision").get("networks", {})
    lost: dict[str, dict[str, str]] = {}
    for name, network in networks.items():
        for row in network["rows"]:
            if row["objective"] in SUMMARIZED:
                column = name + SUMMARIZED[row["objective"]]
                lost.setdefault(row["budget"], {})[column] = f"{row['lost']:.2f}"
    if not lost:
        return []
    tops = ", ".join(f"{name} {network['float_top1']:.2f}" for name, network in networks.items())
    columns = [name + more for name in networks for more in SUMMARIZED.values()]
    rows = [[budget, *(cells.get(column, "") for column in columns)] for budget, cells in lost.items()]
    return [
        f"**Mixed precision**, points of top-1 lost against float ({tops}), kernels of 8, 4 and 2 bits",
        "and activations of 8 and 4, shares of the kernels' bytes or of the bit operations at 8 bits, all layers,",
        "rounding to nearest or as named",
        "([more](docs/mixed-precision.md#figures)):",
        "",
        *table(["budget", *columns], rows),
        "",
    ]


def mixed_precision_page() -> str:
    """The block of docs/mixed-precision.md."""
    parts = [*_accuracy(), *_solver(), *_agreement(), *_costs()]
    return "\n".join(parts).strip() or NOT_MEASURED


def _accuracy() -> list[str]:
    lines: list[str] = []
    data = load("mixed_precision")
    for name, network in data.get("networks", {}).items():
        rows = [
            [
                f"{row['budget']}, {row['objective']}",
                *(f"{row[key]:.2f}" for key in ("lost", "least_lost", "most_lost")),
                f"{row['seeds']}",
                f"{row['gap']:.1e}",
                f"{sum(row['seconds'].values()):.1f}",
            ]
            for row in network["rows"]
        ]
        lines += [
            f"**{name}**, top-1 lost against float, {network['float_top1']:.2f} on {network['images']} images,",
            f"{network['calibration_samples']} images to calibrate, mean, least and most of the seeds,",
            "with the proved gap of the program and the seconds of the first seed (`benchmarks/mixed_precision.py`):",
            "",
            *table(["budget, objective", "lost", "least", "most", "seeds", "gap", "seconds"], rows),
            "",
        ]
    return lines + ([f"Measured on {machine_line(data['machine'])}", ""] if lines else [])


def _solver() -> list[str]:
    data = load("mixed_precision_solver")
    if not data:
        return []
    return [
        "**Solver and memory** (`benchmarks/mixed_precision_solver.py`):",
        "",
        *measured_rows(data),
        "",
        f"Measured on {machine_line(next(iter(data.values()))['machine'])}",
        "",
    ]


def _networks(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Networks by name, shallow ones first."""
    found: dict[str, dict[str, Any]] = data.get("networks", {})
    return dict(sorted(found.items(), key=lambda one: _tensors(one[1])))


def _tensors(network: dict[str, Any]) -> int:
    return max((int(row["tensors"]) for row in network["agreement"]), default=0)


def _agreement() -> list[str]:
    networks = _networks(load("sensitivity"))
    if not networks:
        return []
    columns = list(dict.fromkeys((row["role"], row["bits"]) for one in networks.values() for row in one["agreement"]))
    rows = []
    for name, network in networks.items():
        cells = {
            (row["role"], row["bits"]): f"{row['log_correlation']:.3f} / {row['rank_correlation']:.3f}"
            + ("" if row["met"] else " **missed**")
            for row in network["agreement"]
        }
        rows.append([_title(name, network), *(cells.get(column, "") for column in columns)])
    one = next(iter(networks.values()))
    return [
        "**Scores against truth**: correlation of the logarithms / of the ranks of probe scores with what quantizing",
        f"each tensor alone changes at the outputs, {one['samples']} images, {one['probes']} directions "
        "(`benchmarks/sensitivity.py`):",
        "",
        *table(["network", *(f"{role}, {bits} bits" for role, bits in columns)], rows),
        "",
    ]


def _costs() -> list[str]:
    data = load("sensitivity")
    networks = _networks(data)
    if not networks:
        return []
    rows = []
    for name, network in networks.items():
        choices = dict.fromkeys(row["choice"] for row in network["cost"])
        for choice in choices:
            by = {row["scores"]: row for row in network["cost"] if row["choice"] == choice}
            probes = by["probes"]
            goal = (
                "" if probes["goal"] is None else f"<= {probes['goal']:.3g}" + ("" if probes["met"] else " **missed**")
            )
            seconds = (f"{by[one]['seconds']:.2f}" for one in ("plain loop", "measured", "probes"))
            passes = (f"{by[one]['forward_passes']:g}" for one in ("plain loop", "probes"))
            rows.append([f"{name}, {choice}", *seconds, *passes, f"{probes['of_plain_loop']:.3f}", goal])
    header = [
        "network, candidates",
        "plain loop, s",
        "`measured`, s",
        "probes, s",
        "loop, forwards",
        "probes, forwards",
    ]
    return [
        "**Cost of scores**, against a forward pass of the whole network for each tensor and width:",
        "",
        *table([*header, "probes / loop", "goal"], rows),
        "",
        f"Measured on {machine_line(data['machine'])}",
        "",
    ]


def _title(name: str, network: dict[str, Any]) -> str:
    return name if network["trained"] else f"{name}, random weights"
