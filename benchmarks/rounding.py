"""What rounding wins back: top-1 lost by nearest rounding and by rounding in closed form, and what the latter costs.

    python benchmarks/rounding.py [--data FOLDER] [--networks ...] [--samples 1024] [--images 5000] [--part accuracy]

The target is `imx500` with kernels of 8, 4, 3 and 2 bits and activations of 8 and 4 bits, powers of two unless the
column says otherwise. Biases are corrected as by default. Once all layers have the width named, once the first and the
last have 8 bits. The cost is that of `detent.round_kernels` at W4A8 against the bare forward pass over the same images
in the same run. Rows go to `benchmarks/results/rounding.json`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import detent
from corrections import column_of, target_with
from detent import edit
from harness import time_in_turns, write_network, written
from networks import NETWORKS, add_data_option, load_zoo

WIDTHS = ((8, 8), (4, 8), (3, 8), (2, 8), (4, 4))
"""Bits of kernels and of activations."""
COLUMNS = [("power_of_two", *widths) for widths in WIDTHS] + [("symmetric", 4, 4)]
METHODS = ("nearest", "gptq")
WIDE_ENDS = [edit.rule(edit.first() | edit.last(), edit.weights(bits=8))]
ENDS: dict[str, list[Any]] = {"all layers": [], "first and last 8 bits": WIDE_ENDS}


def rounding_target(kind: str) -> dict[str, Any]:
    """`imx500` with 4-bit activations of a kind, and kernels of 3 bits as well."""
    target = target_with(kind)
    for rule in target["ops"].values():
        if rule.get("weights"):
            rule["weights"] = {**rule["weights"], "bits": [8, 4, 3, 2]}
    return target


def forget_peak() -> None:
    """Make the peak of the process' memory what it takes now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_mb() -> int:
    """Most memory that the process had since, in MB."""
    (line,) = (one for one in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if "VmHWM" in one)
    return int(line.split()[1]) // 1024


def accuracy(zoo: Any, network: str, folder: Path, options: argparse.Namespace) -> tuple[dict[str, Any], list[Any]]:
    """Points of top-1 lost, and seconds of the whole quantization for kernels of 4 bits."""
    model = zoo.load(network)
    x, y = (part[: options.images] for part in zoo.images("test"))
    float_top1 = zoo.accuracy(model, x, y)
    print(f"{network}: float {float_top1:.2f}")
    batches = zoo.calibration(options.samples, 64)
    graph, rows = detent.capture(model, batches[0]), []
    for ends, rules in ENDS.items():
        for method in METHODS:
            row: dict[str, Any] = {"ends": ends, "rounding": method}
            for kind, kernels, activations in COLUMNS:
                if rules and kernels == 8:
                    continue
                forget_peak()
                start = time.perf_counter()
                qmodel = detent.quantize(
                    graph,
                    batches,
                    target=folder / f"{kind}.json",
                    weights_bits=kernels,
                    activation_bits=activations,
                    rounding=method,
                    rules=rules,
                    progress=False,
                )
                seconds, peak = time.perf_counter() - start, peak_mb()
                column = column_of(kind, kernels, activations)
                row[column] = round(float_top1 - zoo.accuracy(qmodel, x, y), 2)
                if column == "w4a8":
                    row["seconds"] = round(seconds, 1)
                    row["peak_mb"] = peak
            rows.append(row)
            print("  " + "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return {"float_top1": round(float_top1, 2), "images": len(y), "calibration_samples": options.samples}, rows


def costs(zoo: Any, network: str, folder: Path, options: argparse.Namespace) -> tuple[dict[str, Any], list[Any]]:
    """Rounding in closed form as a multiple of the bare forward pass."""
    model, batches = zoo.load(network), zoo.calibration(options.samples, 64)
    graph = detent.transform(detent.capture(model, batches[0]))
    stats = detent.calibrate(graph, batches, progress=False, channels=True)
    moments = detent.collect_moments(graph, batches, progress=False)
    target = folder / "power_of_two.json"
    plan = detent.plan(graph, stats, target=target, weights_bits=4, activation_bits=8, moments=moments)

    def forward() -> None:
        with torch.inference_mode():
            for batch in batches:
                model(batch)

    times = time_in_turns(
        {"forward": forward, "gptq": lambda: detent.round_kernels(graph, plan, batches, progress=False)}, rounds=3
    )
    facts = {
        "forward_seconds": round(times["forward"], 2),
        "gptq_seconds": round(times["gptq"], 2),
        "gptq_times_forward": round(times["gptq"] / times["forward"], 2),
    }
    print("  " + "  ".join(f"{key} {value}" for key, value in facts.items()), flush=True)
    return facts, []


PARTS = {"accuracy": accuracy, "costs": costs}


def main() -> None:
    """Measure the networks asked for and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--part", choices=[*PARTS, "both"], default="both")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    zoo = load_zoo(options.data)
    with tempfile.TemporaryDirectory() as folder:
        for kind in {kind for kind, *_ in COLUMNS}:
            (Path(folder) / f"{kind}.json").write_text(json.dumps(rounding_target(kind)), encoding="utf-8")
        for network in options.networks:
            for part in PARTS if options.part == "both" else [options.part]:
                facts, rows = PARTS[part](zoo, network, Path(folder), options)
                if not options.no_write:
                    before = written("rounding").get(network, {})
                    write_network("rounding", network, {**before, **facts, **({"rows": rows} if rows else {})})


if __name__ == "__main__":
    main()
