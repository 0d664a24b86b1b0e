"""What each rewrite and correction wins back, alone and together: top-1, seconds and passes over the calibration data.

    python benchmarks/corrections.py [--data FOLDER] [--networks ...] [--samples 512] [--images 5000]

The target is `imx500` with 4-bit activations added; all layers, first and last included, have the width named.
Rounding is to nearest. Rows go to `benchmarks/results/corrections.json`.
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
from harness import write_network
from networks import NETWORKS, add_data_option, load_zoo

WIDTHS = ((8, 8), (4, 8), (4, 4))
"""Bits of kernels and of activations."""

ACTIVATIONS = {"kind": "power_of_two", "bits": [8, 4], "signed": None}
TARGET = {
    "schema_version": 1,
    "extends": "imx500",
    "name": "imx500-4",
    "version": "1",
    "description": "imx500 with 4-bit activations.",
    "sources": [],
    "defaults": {"weights": None, "bias_bits": None, "activations": ACTIVATIONS, "input_bits": None},
    # What imx500 says about the widths of single operations is taken back; its kernels have 8 and 4 bits among others.
    "ops": {name: {"activations": ACTIVATIONS, "input_bits": None} for name in detent.load_target("imx500").ops},
}

PLAIN = {"linear_collapsing": False, "residual_collapsing": False}
LEVERS: dict[str, tuple[dict[str, Any], int]] = {
    # name: options, passes of the network over the data beyond the calibration
    "nothing": (PLAIN, 0),
    "collapsing": ({}, 0),
    "power-of-two ReLU6": ({**PLAIN, "relu_bound_to_power_of_2": True}, 0),
    "activation equalization": ({**PLAIN, "equalization": "activations"}, 0),
    "cross-layer equalization": ({**PLAIN, "equalization": "cross_layer"}, 0),
    "bias absorption": ({**PLAIN, "bias_absorption": True}, 1),
    "analytic bias correction": ({**PLAIN, "bias_correction": "analytic"}, 0),
    "sequential bias correction": ({**PLAIN, "bias_correction": "sequential"}, 1),
    "cross-layer + analytic": ({"equalization": "cross_layer", "bias_correction": "analytic"}, 0),
    "cross-layer + sequential": ({"equalization": "cross_layer", "bias_correction": "sequential"}, 1),
}


def measure(zoo: Any, network: str, target: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All rows of one network."""
    model = zoo.load(network)
    x, y = (part[: options.images] for part in zoo.images("test"))
    float_top1 = zoo.accuracy(model, x, y)
    print(f"{network}: float {float_top1:.2f}")
    batches = zoo.calibration(options.samples, 64)
    with torch.inference_mode():
        start = time.perf_counter()
        for batch in batches:
            model(batch)
        forward_s = time.perf_counter() - start
    rows = []
    for name, (choices, passes) in LEVERS.items():
        row: dict[str, Any] = {"lever": name, "extra_passes": passes}
        for kernels, activations in WIDTHS:
            start = time.perf_counter()
            qmodel = detent.quantize(
                model,
                batches,
                target=target,
                weights_bits=kernels,
                activation_bits=activations,
                progress=False,
                **choices,
            )
            row["quantize_seconds"] = round(time.perf_counter() - start, 2)
            row[f"w{kernels}a{activations}"] = round(float_top1 - zoo.accuracy(qmodel, x, y), 2)
        rows.append(row)
        print("  " + "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return {
        "float_top1": round(float_top1, 2),
        "images": len(y),
        "calibration_samples": options.samples,
        "forward_seconds": round(forward_s, 2),
        "rows": rows,
    }


def main() -> None:
    """Measure the networks asked for and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    zoo = load_zoo(options.data)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "imx500-4.json"
        target.write_text(json.dumps(TARGET), encoding="utf-8")
        for network in options.networks:
            found = measure(zoo, network, target, options)
            if not options.no_write:
                write_network("corrections", network, found)


if __name__ == "__main__":
    main()
