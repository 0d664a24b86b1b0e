"""What each rewrite and correction wins back, alone and together: top-1, seconds and passes over the calibration data.

    python benchmarks/corrections.py [--data FOLDER] [--networks ...] [--samples 512] [--images 5000]

The target is `imx500` with 4-bit activations added, and once more with symmetric thresholds for them; all layers, first
and last included, have the width named. Rounding is to nearest. Rows go to `benchmarks/results/corrections.json`.
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

KINDS = (("power_of_two", WIDTHS), ("symmetric", ((4, 4),)))
"""Kinds of activation grids, and the widths measured with them: at 4 bits powers of two are far apart."""

PLAIN = {
    "linear_collapsing": False,
    "residual_collapsing": False,
    "bias_correction": "none",
    "gain_correction": "none",
    "weights_metric": "mse",
}
ANALYTIC = {**PLAIN, "bias_correction": "analytic"}
LEVERS: dict[str, dict[str, Any]] = {
    "nothing": PLAIN,
    "collapsing": {**PLAIN, "linear_collapsing": True, "residual_collapsing": True},
    "power-of-two ReLU6": {**PLAIN, "relu_bound_to_power_of_2": True},
    "activation equalization": {**PLAIN, "equalization": "activations"},
    "cross-layer equalization": {**PLAIN, "equalization": "cross_layer"},
    "bias absorption": {**PLAIN, "bias_absorption": True},
    "thresholds by the output": {**PLAIN, "weights_metric": "output"},
    "gains, least squares": {**PLAIN, "gain_correction": "least_squares"},
    "gains, second moment": {**PLAIN, "gain_correction": "second_moment"},
    "analytic bias correction": ANALYTIC,
    "analytic, activations too": {**ANALYTIC, "activation_bias_correction": True},
    "sequential bias correction": {**PLAIN, "bias_correction": "sequential"},
    "defaults": {},
    "defaults + cross-layer": {"equalization": "cross_layer"},
    "defaults + cross-layer + sequential": {"equalization": "cross_layer", "bias_correction": "sequential"},
}


def target_with(kind: str) -> dict[str, Any]:
    """`imx500` with activations of a kind of grid, in 8 and 4 bits."""
    activations = {"kind": kind, "bits": [8, 4], "signed": None}
    # What imx500 says about the widths of single operations is taken back; its kernels have 8 and 4 bits among others.
    own = {"activations": activations, "input_bits": None}
    return {
        "schema_version": 1,
        "extends": "imx500",
        "name": "imx500-4",
        "version": "1",
        "description": f"imx500 with {kind} activations of 8 and 4 bits.",
        "sources": [],
        "defaults": {"weights": None, "bias_bits": None, **own},
        "ops": dict.fromkeys(detent.load_target("imx500").ops, own),
    }


def passes_of(choices: dict[str, Any], samples: int) -> float:
    """Passes over the calibration data beyond the calibration itself, with kernels of few bits."""
    config = detent.QuantizationConfig(**choices)
    moments = config.metric_of_kernel(4) == "output" or config.gain_of_kernel(4) != "none"
    read = config.moment_samples * moments + 2 * config.bias_correction_samples * (
        config.bias_correction == "sequential"
    )
    return round(config.rewrites_by_statistics + min(read, 3 * samples) / samples, 2)


def measure(zoo: Any, network: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
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
    for name, choices in LEVERS.items():
        row: dict[str, Any] = {"lever": name, "extra_passes": passes_of(choices, options.samples)}
        for kind, widths in KINDS:
            for kernels, activations in widths:
                start = time.perf_counter()
                qmodel = detent.quantize(
                    model,
                    batches,
                    target=folder / f"{kind}.json",
                    weights_bits=kernels,
                    activation_bits=activations,
                    progress=False,
                    **choices,
                )
                if kind == KINDS[0][0]:
                    row["quantize_seconds"] = round(time.perf_counter() - start, 2)
                column = f"w{kernels}a{activations}" + ("" if kind == KINDS[0][0] else f"_{kind}")
                row[column] = round(float_top1 - zoo.accuracy(qmodel, x, y), 2)
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
        for kind, _ in KINDS:
            (Path(folder) / f"{kind}.json").write_text(json.dumps(target_with(kind)), encoding="utf-8")
        for network in options.networks:
            found = measure(zoo, network, Path(folder), options)
            if not options.no_write:
                write_network("corrections", network, found)


if __name__ == "__main__":
    main()
