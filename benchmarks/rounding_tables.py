"""The table about rounding: points of top-1 lost by each method, and what the closed form costs."""

from __future__ import annotations

from result_tables import load, machine_line, table


def rounding_page() -> str:
    """The block of docs/rounding.md."""
    lines: list[str] = []
    data = load("rounding")
    for name, network in data.get("networks", {}).items():
        columns = [key for key in network["rows"][0] if key.startswith("w") and key[1].isdigit()]
        body = [
            [
                f"{row['rounding']}, {row['ends']}",
                *(f"{row[key]:.2f}" if key in row else "" for key in columns),
                f"{row['seconds']:g}",
                f"{row['peak_mb']}",
            ]
            for row in network["rows"]
        ]
        titles = [" ".join([key.split("_")[0].upper(), *key.split("_")[1:]]) for key in columns]
        top1, images, samples = (network[key] for key in ("float_top1", "images", "calibration_samples"))
        lines += [
            f"**{name}**, points of top-1 lost against float ({top1:.2f} on {images} images), {samples} images to",
            "calibrate, biases corrected; seconds and peak memory of the whole quantization at W4A8",
            "(`benchmarks/rounding.py`):",
            "",
            *table(["rounding", *titles, "seconds", "peak, MB"], body),
            "",
        ]
        if "gptq_times_forward" in network:
            figures = ("gptq_seconds", "gptq_times_forward", "forward_seconds")
            rounding, times, forward = (network[key] for key in figures)
            lines += [
                f"`detent.round_kernels` takes {rounding:.2f} s at W4A8, {times:.2f} times the bare forward over",
                f"the same images ({forward:.2f} s); the goal is 10.",
                "",
            ]
    if lines:
        lines.append(f"Measured on {machine_line(data['machine'])}")
    return "\n".join(lines).strip() or "Not measured yet."
