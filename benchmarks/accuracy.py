"""Top-1 accuracy of quantized CIFAR-10 networks against the float accuracy of the same checkpoints.

    python benchmarks/accuracy.py [--data FOLDER] [--networks ...] [--targets ...] [--samples 512] [--images 5000]

One calibration per network; every metric, z-score and target is planned from it without another forward pass, and
without bias correction, so that the choice of limits is seen alone. Plans that put every tensor on the same grid are
evaluated once. Rows go to `benchmarks/results/accuracy.json`.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import torch

import detent
from harness import write_network
from networks import NETWORKS, add_data_option, load_zoo

TARGETS = ("imx500", "tflite", "onnxruntime")
METRICS = ("noclipping", "mse", "mae", "lp", "kl")
Z_SCORES = (math.inf, 9.0, 5.0, 3.0)
LP_EXPONENT = 3.0


def grid_key(plan: detent.QuantPlan) -> str:
    """What decides the values a plan computes: real limits and steps, not the integer type that holds the codes."""
    entries = []
    for table in (plan.activations, plan.weights):
        for name in table:
            grid = plan.activation_grid(name) if table is plan.activations else plan.weights[name].grid
            if grid is not None:
                entries.append((name, grid.scale.tobytes(), [limit.tobytes() for limit in grid.limits]))
    return repr((entries, [entry.bias_bits for entry in plan.weights.values()]))


def measure(zoo: Any, network: str, options: argparse.Namespace) -> dict[str, Any]:
    """All rows of one network."""
    model = zoo.load(network)
    x, y = (part[: options.images] for part in zoo.images("test"))
    float_top1 = zoo.accuracy(model, x, y)
    print(f"{network}: float {float_top1:.2f}")
    batches = zoo.calibration(options.samples, 64)
    graph = detent.capture(model, batches[0])
    stats = detent.calibrate(graph, batches)
    seen: dict[str, float] = {}
    rows = []
    for target in options.targets:
        for metric in METRICS:
            for z in Z_SCORES:
                start = time.perf_counter()
                extra = {"p": LP_EXPONENT} if metric == "lp" else {}
                choices = {"activation_metric": metric, "z_threshold": z, "bias_correction": "none", **extra}
                plan = detent.plan(graph, stats, target=target, **choices)
                plan_s = time.perf_counter() - start
                key = grid_key(plan)
                if key not in seen:
                    seen[key] = zoo.accuracy(detent.apply(graph, plan), x, y)
                row = {"target": target, "metric": metric, "z": z if math.isfinite(z) else "inf"}
                row |= {"top1": round(seen[key], 2), "drop": round(float_top1 - seen[key], 2)}
                rows.append({**row, "plan_seconds": round(plan_s, 4)})
                print(f"  {target:12} {metric:10} z={row['z']!s:4} top-1 {row['top1']:6.2f} drop {row['drop']:+.2f}")
    return {"float_top1": round(float_top1, 2), "images": len(y), "calibration_samples": options.samples, "rows": rows}


def main() -> None:
    """Measure the networks asked for and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--targets", nargs="+", default=TARGETS)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    zoo = load_zoo(options.data)
    torch.manual_seed(0)
    for network in options.networks:
        found = measure(zoo, network, options)
        if not options.no_write:
            write_network("accuracy", network, found)


if __name__ == "__main__":
    main()
