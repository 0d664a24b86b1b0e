"""What rounding wins back: top-1 lost by rounding to nearest, in closed form and learned, and what they cost.

    python benchmarks/rounding.py [--data FOLDER] [--networks ...] [--samples 1024] [--images 5000] [--part accuracy]
                                  [--methods ...] [--ends ...] [--seeds 0 1 2]

The target is `imx500` with kernels of 8, 4, 3 and 2 bits and activations of 8 and 4 bits, powers of two unless the
column says otherwise. `nearest` has no corrections, `corrected` those of the defaults, which the others have too. Once
all layers have the width named, once the input, the first and the last layer and the output have 8 bits. What is
learned depends on a seed: means over several, and the least and most lost. The cost is that of `detent.round_kernels`
at W4A8 against the bare forward pass over the same images in the same run. Rows go to
`benchmarks/results/rounding.json`; those measured earlier stay.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
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
Column = tuple[str, int, int]
COLUMNS: list[Column] = [("power_of_two", *widths) for widths in WIDTHS] + [("symmetric", 4, 4)]
METHODS: dict[str, dict[str, Any]] = {
    "nearest": {"bias_correction": "none", "gain_correction": "none"},
    "corrected": {},
    "gptq": {"rounding": "gptq"},
    "learned": {"rounding": "learned"},
}
WIDE_ENDS = [
    edit.rule(edit.op("input"), edit.activations(bits=8)),
    edit.rule(edit.first(), edit.weights(bits=8)),
    edit.rule(edit.last(), edit.weights(bits=8), edit.activations(bits=8)),
]
ENDS: dict[str, list[Any]] = {"all layers": [], "first and last 8 bits": WIDE_ENDS}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A captured network with the images it is calibrated and judged on."""

    graph: detent.Graph
    batches: list[torch.Tensor]
    folder: Path
    test: Any
    float_top1: float
    learned: dict[str, Any]


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


def lost(zoo: Any, case: Case, method: str, ends: str, column: Column, seeds: list[int]) -> dict[str, Any]:
    """Points of top-1 lost in one column, with seconds and peak memory for kernels of 4 bits."""
    kind, kernels, activations = column
    points, seconds, peak = [], 0.0, 0
    for seed in seeds:
        forget_peak()
        start = time.perf_counter()
        qmodel = detent.quantize(
            case.graph,
            case.batches,
            target=case.folder / f"{kind}.json",
            weights_bits=kernels,
            activation_bits=activations,
            rules=ENDS[ends],
            progress=False,
            **METHODS[method],
            **({"learned": {"seed": seed, **case.learned}} if method == "learned" else {}),
        )
        seconds, peak = time.perf_counter() - start, peak_mb()
        points.append(case.float_top1 - zoo.accuracy(qmodel, *case.test))
    name = column_of(*column)
    found = {name: round(statistics.mean(points), 2)}
    if len(seeds) > 1:
        found |= {f"{name}_least": round(min(points), 2), f"{name}_most": round(max(points), 2)}
    if name == "w4a8":
        found |= {"seconds": round(seconds, 1), "peak_mb": peak}
    return found


def accuracy(zoo: Any, network: str, folder: Path, options: argparse.Namespace) -> tuple[dict[str, Any], list[Any]]:
    """Points of top-1 lost, and seconds of the whole quantization for kernels of 4 bits."""
    model = zoo.load(network)
    test = tuple(part[: options.images] for part in zoo.images("test"))
    float_top1 = zoo.accuracy(model, *test)
    print(f"{network}: float {float_top1:.2f}")
    batches = zoo.calibration(options.samples, 64)
    learned = {} if options.learned is None else json.loads(options.learned)
    graph = detent.capture(model, batches[0])
    case = Case(graph=graph, batches=batches, folder=folder, test=test, float_top1=float_top1, learned=learned)
    rows = []
    for ends in options.ends:
        for method in options.methods:
            row: dict[str, Any] = {"ends": ends, "rounding": method}
            seeds = options.seeds if method == "learned" and ends == "all layers" else options.seeds[:1]
            for column in COLUMNS:
                if options.add_seeds and column[1] == 8:
                    continue
                if column[1] < 8 or not ENDS[ends]:
                    row |= lost(zoo, case, method, ends, column, seeds if column[1] < 8 else seeds[:1])
            rows.append({**row, "seeds": len(seeds)})
            print("  " + "  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    facts = {"float_top1": round(float_top1, 2), "images": len(test[1]), "calibration_samples": options.samples}
    return facts, rows


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


def merged(kept: list[dict[str, Any]], rows: list[dict[str, Any]], adding: bool) -> list[dict[str, Any]]:
    """Rows measured earlier, those measured now in their place or added to them, in the order of the methods."""
    every = {(row["ends"], row["rounding"]): row for row in kept}
    for row in rows:
        key = row["ends"], row["rounding"]
        every[key] = together(every[key], row) if adding and key in every else row
    return [every[ends, method] for ends in ENDS for method in METHODS if (ends, method) in every]


def together(kept: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """Two runs of the same with other seeds as one; seconds and memory are those of the earlier."""
    found, seeds = dict(kept), (kept["seeds"], row["seeds"])
    for kind, *widths in COLUMNS:
        name = column_of(kind, *widths)
        if name not in row:
            continue
        points = (kept[name], row[name])
        least, most = ([one.get(f"{name}_{end}", one[name]) for one in (kept, row)] for end in ("least", "most"))
        found[name] = round(sum(point * count for point, count in zip(points, seeds, strict=True)) / sum(seeds), 2)
        found |= {f"{name}_least": min(least), f"{name}_most": max(most)}
    return {**found, "seeds": sum(seeds)}


PARTS = {"accuracy": accuracy, "costs": costs}


def main() -> None:
    """Measure the networks asked for and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--part", choices=[*PARTS, "both"], default="both")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--ends", nargs="+", default=list(ENDS), choices=list(ENDS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--add-seeds", action="store_true", help="add to rows of other seeds in place of replacing them"
    )
    parser.add_argument("--learned", help="options of learned rounding, JSON")
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
                    write_network(
                        "rounding",
                        network,
                        {**before, **facts, "rows": merged(before.get("rows", []), rows, options.add_seeds)},
                    )


if __name__ == "__main__":
    main()
