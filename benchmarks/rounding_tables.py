"""The tables about rounding: points of top-1 lost by each method, what they cost, and what others publish."""

from __future__ import annotations

from typing import Any

from result_tables import load, machine_line, table

GOALS = {
    "resnet20": {"w4a8": {"gptq": 0.6, "learned": 0.35}, "w3a8": {"learned": 1}, "w2a8": {"learned": 4}},
    "mobilenetv2": {"w4a8": {"gptq": 0.8, "learned": 0.35}, "w3a8": {"learned": 1.5}, "w2a8": {"learned": 6}},
}
GOALS_OF_BOTH_ENDS = {"resnet20": {"w4a4": 2, "w4a4_symmetric": 2}, "mobilenetv2": {"w4a4": 3, "w4a4_symmetric": 3}}
LONGEST_SECONDS = {"resnet20": 60}
"""Of the whole quantization with learned rounding at W4A8."""
PUBLISHED = [
    ["W4A8, AdaRound", "MQBench", "0.71 (71.06)", "0.86 (72.68)"],
    ["W4A8, GPTQ with activation order", "Brevitas", "0.82 (69.76)", "17.11 (71.90)"],
    ["W3, activations float, BRECQ", "Li et al. 2021", "1.20 (71.01)", "2.99 (72.49)"],
    ["W2, activations float, BRECQ", "Li et al. 2021", "4.71 (71.01)", "12.82 (72.49)"],
    ["W4A4, first and last 8 bits, BRECQ", "Li et al. 2021", "1.41 (71.01)", "5.92 (72.49)"],
    ["W4A4, QDrop", "Wei et al. 2022", "1.93 (71.06)", "4.66 (72.49)"],
    ["W4A4, MRECG + QDrop", "Ma et al. 2023", "1.55 (71.01)", "3.36 (72.20)"],
]
"""Points lost and float top-1, ImageNet, as their authors give them; none publish ResNet-20 or CIFAR-10."""


def columns_of(network: dict[str, Any]) -> list[str]:
    """The columns with points lost."""
    names = [key for row in network["rows"] for key in row if key[0] == "w" and key[1].isdigit()]
    return [name for name in dict.fromkeys(names) if not name.endswith(("_least", "_most"))]


def rows_of(network: dict[str, Any]) -> list[list[str]]:
    """A row for each method, with the least and most lost where several seeds were run."""

    def cell(row: dict[str, Any], column: str) -> str:
        if column not in row:
            return ""
        spread = f" ({row[f'{column}_least']:.2f} to {row[f'{column}_most']:.2f})" if f"{column}_least" in row else ""
        return f"{row[column]:.2f}{spread}"

    return [
        [
            f"{row['rounding']}, {row['ends']}",
            *(cell(row, column) for column in columns_of(network)),
            f"{row['seconds']:g}",
            f"{row['peak_mb']}",
        ]
        for row in network["rows"]
    ]


def networks() -> list[str]:
    """The tables of all networks."""
    lines: list[str] = []
    for name, network in load("rounding").get("networks", {}).items():
        titles = [" ".join([key.split("_")[0].upper(), *key.split("_")[1:]]) for key in columns_of(network)]
        top1, images, samples = (network[key] for key in ("float_top1", "images", "calibration_samples"))
        counts = sorted({row["seeds"] for row in network["rows"] if row["rounding"] == "learned"})
        said = {True: "one seed", False: "the mean of several seeds (least and most), one where the ends have 8 bits"}
        seeds = [f"learned: {said[counts == [1]]};"] if counts else []
        lines += [
            f"**{name}, rounding of kernels**, points of top-1 lost against float ({top1:.2f} on {images} images),",
            f"{samples} images to calibrate, no labels, power-of-two activations where no other kind is named;",
            *seeds,
            "seconds and peak memory of the whole quantization at W4A8 (`benchmarks/rounding.py`):",
            "",
            *table(["rounding", *titles, "seconds", "peak, MB"], rows_of(network)),
            "",
        ]
    return lines


def published() -> list[str]:
    """What others publish."""
    return [
        "**Published by others** for comparable settings, their own figures on ImageNet: points of top-1 lost (float",
        "top-1). On CIFAR-10 nobody publishes such figures:",
        "",
        *table(["setting", "source", "ResNet-18", "MobileNetV2"], PUBLISHED),
        "",
    ]


def rounding_summary() -> list[str]:
    """The lines of the README."""
    found = networks()
    return [*found, *published()] if found else []


def met(reached: bool) -> str:
    """The last column of the goals."""
    return "yes" if reached else "**no**"


def goal_line(network: str, column: str, row: dict[str, Any] | None, goal: float) -> list[str]:
    """The line of a goal for points lost, if that was measured."""
    if row is None or column not in row:
        return []
    what = f"{network} {' '.join([column[:4].upper(), *column.split('_')[1:]])}, {row['rounding']}, {row['ends']}"
    return [f"| {what} | {row[column]:.2f} | <= {goal:g} | {met(row[column] <= goal)} |"]


def rounding_page() -> str:
    """The block of docs/rounding.md."""
    data = load("rounding")
    lines: list[str] = []
    for name, network in data.get("networks", {}).items():
        rows = {(row["ends"], row["rounding"]): row for row in network["rows"]}
        for column, goals in GOALS.get(name, {}).items():
            for method, goal in goals.items():
                lines += goal_line(name, column, rows.get(("all layers", method)), goal)
        for column, goal in GOALS_OF_BOTH_ENDS.get(name, {}).items():
            for ends in ("all layers", "first and last 8 bits"):
                lines += goal_line(name, column, rows.get((ends, "learned")), goal)
        learned = rows.get(("all layers", "learned"))
        if learned is not None and name in LONGEST_SECONDS:
            seconds, goal = learned["seconds"], LONGEST_SECONDS[name]
            lines.append(
                f"| {name} W4A8, seconds of learned rounding | {seconds:g} | <= {goal} | {met(seconds <= goal)} |"
            )
        if "gptq_times_forward" in network:
            times = network["gptq_times_forward"]
            lines.append(
                f"| {name} W4A8, `round_kernels` over bare forward | {times:.2f} x | <= 10 | {met(times <= 10)} |"
            )
    if not lines:
        return "Not measured yet."
    head = ["The whole table is in the README. Against the goals:", "", "| what | measured | goal | met |"]
    return "\n".join(
        [*head, "| --- | ---: | ---: | ---: |", *lines, "", f"Measured on {machine_line(data['machine'])}"]
    )
