"""Mixed precision: top-1 lost under budgets of weights and of bit operations, by objective, with seconds by stage.

    python benchmarks/mixed_precision.py [--data FOLDER] [--networks ...] [--images 5000] [--seeds 0 1 2]

The target is `imx500` without padding of kernels, with kernels of 8, 4 and 2 bits and activations of 8 and 4. Shares of
weights are of the kernels' bytes at 8 bits; biases and all else that is stored come on top, as other tools do not count
them. All layers take part, rounding is to nearest or as asked, biases are corrected as by default. Scores are made once
for all budgets. Rows go to `benchmarks/results/mixed_precision.json`, with the mean and the extremes over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import detent
from corrections import target_with
from harness import write_network, written
from networks import NETWORKS, add_data_option, load_zoo

SHARES = (0.5, 0.375, 0.31, 0.25)
"""Of the kernels' bytes at 8 bits."""
OPERATIONS = ("40%", "25%")
"""Of the bit operations at 8 bits: both widths have a choice."""
OBJECTIVES: dict[str, dict[str, Any]] = {
    "additive": {"interactions": False},
    "with interactions": {"interactions": True},
    "measured at points of interest": {"scores": "measured", "points": "usual", "interactions": False, "evaluated": 1},
}
"""The last is what MCT does: distances at points all over the network, each candidate run alone, costs added up."""
SEEDLESS = "measured at points of interest"


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A network ready to be planned."""

    graph: detent.Graph
    stats: detent.Statistics
    moments: detent.InputMoments
    batches: list[Any]
    target: Path
    tables: dict[tuple[str, int], tuple[detent.SensitivityTable, float]] = field(default_factory=dict)
    rounding: str
    known: dict[str, float] = field(default_factory=dict)

    def scores(self, options: dict[str, Any]) -> tuple[detent.SensitivityTable, float]:
        """The scores of all widths, made once for all budgets, and the seconds that took."""
        key = (options.get("scores", "probes"), options["seed"])
        if key not in self.tables:
            start = time.perf_counter()
            table = detent.score(
                self.graph,
                self.stats,
                self.batches,
                target=self.target,
                moments=self.moments,
                mixed_precision=options,
                progress=False,
            )
            self.tables[key] = table, time.perf_counter() - start
        return self.tables[key]


def calibrated(zoo: Any, network: str, target: Path, samples: int, rounding: str) -> Calibrated:
    """Capture and calibrate."""
    batches = zoo.calibration(samples, 64)
    graph = detent.transform(detent.capture(zoo.load(network), batches[0]), target=target)
    return Calibrated(
        graph=graph,
        stats=detent.calibrate(graph, batches, progress=False, channels=True),
        moments=detent.collect_moments(graph, batches, progress=False),
        batches=batches,
        target=target,
        rounding=rounding,
    )


def unpadded_target() -> dict[str, Any]:
    """`imx500` with 4-bit activations, whose kernels are not padded."""
    widths = {"8": 1, "4": 1, "2": 1}
    return {**target_with("power_of_two"), "name": "imx500-4-unpadded", "channel_multiples": widths}


def budgets(at_8_bits: detent.Resources, kernel_bytes: float) -> dict[str, dict[str, Any]]:
    """The budgets by name."""
    others = at_8_bits.weights - kernel_bytes
    found: dict[str, dict[str, Any]] = {
        f"weights {share:.4g}": {"weights": others + share * kernel_bytes} for share in SHARES
    }
    found |= {f"bit operations {share}": {"bit_operations": share} for share in OPERATIONS}
    return found


def measured(
    zoo: Any, found: Calibrated, budget: dict[str, Any], options: dict[str, Any], images: Any, float_top1: float
) -> dict[str, Any]:
    """One distribution of widths: what it loses, and the seconds it took."""
    table, seconds = found.scores(options)
    distribution = detent.choose_widths(
        found.graph,
        found.stats,
        found.batches,
        budget,
        target=found.target,
        moments=found.moments,
        mixed_precision=options,
        table=table,
        progress=False,
    )
    widths = json.dumps(distribution.widths.to_dict())
    if widths not in found.known:
        found.known[widths] = top1_lost(zoo, found, distribution.widths, images, float_top1)
    return {
        "lost": found.known[widths],
        "predicted": distribution.objective,
        "gap": distribution.gap,
        "seconds": {
            "scores": round(seconds, 2),
            **{name: round(value, 2) for name, value in distribution.seconds.items() if name != "scores"},
        },
        "weights": dict(sorted(Counter(distribution.widths.weights.values()).items())),
        "activations": dict(sorted(Counter(distribution.widths.activations.values()).items())),
    }


def top1_lost(zoo: Any, found: Calibrated, widths: detent.Widths, images: Any, float_top1: float) -> float:
    """Points of top-1 that a distribution of widths loses, with biases corrected."""
    plan = detent.plan(found.graph, found.stats, target=found.target, moments=found.moments, widths=widths)
    if found.rounding == "gptq":
        plan = detent.round_kernels(found.graph, plan, found.batches, progress=False)
    plan = detent.correct_biases(found.graph, plan, found.batches, progress=False)
    return float(float_top1 - zoo.accuracy(detent.apply(found.graph, plan), *images))


def rows_of(zoo: Any, network: str, target: Path, options: argparse.Namespace) -> tuple[dict[str, Any], list[Any]]:
    """All budgets and objectives for one network."""
    found = calibrated(zoo, network, target, options.samples, options.rounding)
    images = tuple(part[: options.images] for part in zoo.images("test"))
    float_top1 = zoo.accuracy(zoo.load(network), *images)
    kernels = sum(found.graph.tensor(node.weight).numel() for node in found.graph.nodes() if node.weight is not None)
    at_8_bits = detent.resources(found.graph, found.target, weights_bits=8, activation_bits=8)
    rows = []
    for name, budget in budgets(at_8_bits, float(kernels)).items():
        for objective in options.objectives:
            choice = OBJECTIVES[objective]
            seeds = options.seeds[:1] if objective == SEEDLESS else options.seeds
            runs = [measured(zoo, found, budget, {**choice, "seed": seed}, images, float_top1) for seed in seeds]
            lost = [run["lost"] for run in runs]
            title = objective if options.rounding == "nearest" else f"{objective}, {options.rounding}"
            row = {"budget": name, "objective": title, **runs[0], "lost": round(statistics.mean(lost), 2)}
            row["seeds"] = len(runs)
            row |= {"least_lost": round(min(lost), 2), "most_lost": round(max(lost), 2)}
            rows.append(row)
            print("  " + "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    facts = {
        "float_top1": round(float_top1, 2),
        "images": len(images[1]),
        "calibration_samples": options.samples,
    }
    return facts, rows


def merged(kept: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows measured earlier, those measured now in their place, budget by budget."""
    every = {(row["budget"], row["objective"]): row for row in [*kept, *rows]}
    order = list(dict.fromkeys(budget for budget, _ in every))
    return sorted(every.values(), key=lambda row: order.index(row["budget"]))


def main() -> None:
    """Measure the networks asked for and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=list(OBJECTIVES), metavar="NAME")
    parser.add_argument("--rounding", choices=["nearest", "gptq"], default="nearest")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    zoo = load_zoo(options.data)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "target.json"
        target.write_text(json.dumps(unpadded_target()), encoding="utf-8")
        for network in options.networks:
            print(network)
            facts, rows = rows_of(zoo, network, target, options)
            if not options.no_write:
                kept = written("mixed_precision").get(network, {}).get("rows", [])
                write_network("mixed_precision", network, {**facts, "rows": merged(kept, rows)})


if __name__ == "__main__":
    main()
