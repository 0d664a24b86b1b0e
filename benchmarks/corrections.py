"""What each rewrite and correction wins back, alone and together: top-1, seconds and passes over the calibration data.

    python benchmarks/corrections.py [--data FOLDER] [--networks ...] [--samples 512] [--images 5000] [--part accuracy]

The target is `imx500` with 4-bit activations added, and once more with symmetric and with uniform ones; all layers,
first and last included, have the width named. Rounding is to nearest. The cost is that of kernels of 4 and activations
of 8 bits, without capturing the model, against the bare forward pass over the calibration images in the
same run. Rows go to `benchmarks/results/corrections.json`; top-1 and costs can be measured apart, since the former may
share the machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import detent
from harness import time_in_turns, write_network, written
from networks import NETWORKS, add_data_option, load_zoo

WIDTHS = ((8, 8), (4, 8), (4, 4))
"""Bits of kernels and of activations."""

KINDS = {"power_of_two": WIDTHS, "symmetric": ((4, 4),), "uniform": ((4, 4),)}
"""Kinds of activation grids, and the widths measured with them: at 4 bits powers of two are far apart."""
PLAIN_KIND = "power_of_two"

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
    "moving maximum": {**PLAIN, "activation_metric": "moving_maximum"},
    "activation steps per channel": {**PLAIN, "activation_per_channel": True},
    "thresholds by the output": {**PLAIN, "weights_metric": "output"},
    "gains, least squares": {**PLAIN, "gain_correction": "least_squares"},
    "gains, second moment": {**PLAIN, "gain_correction": "second_moment"},
    "analytic bias correction": ANALYTIC,
    "analytic, activations too": {**ANALYTIC, "activation_bias_correction": True},
    "sequential bias correction": {**PLAIN, "bias_correction": "sequential"},
    "defaults, analytic correction only": {"bias_correction": "analytic"},
    "defaults": {},
    "defaults + cross-layer": {"equalization": "cross_layer"},
    "all of them": {
        "relu_bound_to_power_of_2": True,
        "equalization": "cross_layer",
        "bias_absorption": True,
        "activation_bias_correction": True,
    },
    "defaults, codebooks": {"weights_grid": "lut"},
    "defaults, codebooks per channel": {"weights_grid": "lut", "codebook_scope": "channel"},
}


def target_with(kind: str) -> dict[str, Any]:
    """`imx500` with activations of a kind of grid, in 8 and 4 bits."""
    signed = False if kind == "uniform" else None
    activations = {"kind": kind, "bits": [8, 4], "signed": signed, "per_channel": True}
    # What imx500 says about the widths of single operations is taken back; its kernels have 8 and 4 bits among others.
    kernels = {"kind": "symmetric", "bits": [8, 4, 2], "codebook_bits": [4], "codebooks_per_channel": True}
    own = {"activations": activations, "input_bits": None}
    return {
        "schema_version": 1,
        "extends": "imx500",
        "name": "imx500-4",
        "version": "1",
        "description": f"imx500 with {kind} activations of 8 and 4 bits.",
        "sources": [],
        "defaults": {"weights": None, "bias_bits": None, **own},
        "ops": {
            **dict.fromkeys(detent.load_target("imx500").ops, own),
            **{op: {**own, "weights": kernels} for op in ("conv", "conv_transposed", "linear")},
        },
    }


def passes_of(choices: dict[str, Any], samples: int) -> float:
    """Passes over the calibration data beyond the calibration itself, with kernels of few bits."""
    config = detent.QuantizationConfig(**choices)
    moments = config.metric_of_kernel(4) == "output" or config.gain_of_kernel(4) != "none"
    sequential = config.bias_correction in ("auto", "sequential")
    read = config.moment_samples * moments + 2 * config.bias_correction_samples * sequential
    return round(config.rewrites_by_statistics + min(read, 3 * samples) / samples, 2)


def column_of(kind: str, kernels: int, activations: int) -> str:
    """Name of a column of the table."""
    return f"w{kernels}a{activations}" + ("" if kind == PLAIN_KIND else f"_{kind}")


def accuracy(
    zoo: Any, network: str, names: list[str], folder: Path, options: argparse.Namespace
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Points of top-1 lost with each lever."""
    model = zoo.load(network)
    x, y = (part[: options.images] for part in zoo.images("test"))
    float_top1 = zoo.accuracy(model, x, y)
    print(f"{network}: float {float_top1:.2f}")
    batches = zoo.calibration(options.samples, 64)
    graph, rows = detent.capture(model, batches[0]), []
    for name in names:
        row: dict[str, Any] = {"lever": name, "extra_passes": passes_of(LEVERS[name], options.samples)}
        for kind, widths in KINDS.items():
            for kernels, activations in widths:
                if "codebooks" in name and kernels == 8:  # codebooks have 7 bits at most
                    continue
                qmodel = detent.quantize(
                    graph,
                    batches,
                    target=folder / f"{kind}.json",
                    weights_bits=kernels,
                    activation_bits=activations,
                    progress=False,
                    **LEVERS[name],
                )
                row[column_of(kind, kernels, activations)] = round(float_top1 - zoo.accuracy(qmodel, x, y), 2)
        rows.append(row)
        print("  " + "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return {"float_top1": round(float_top1, 2), "images": len(y), "calibration_samples": options.samples}, rows


def costs(
    zoo: Any, network: str, names: list[str], folder: Path, options: argparse.Namespace
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Seconds of each lever, and as multiples of the bare forward pass."""
    model, batches = zoo.load(network), zoo.calibration(options.samples, 64)
    graph = detent.capture(model, batches[0])

    def forward() -> None:
        with torch.inference_mode():
            for batch in batches:
                model(batch)

    def quantize(name: str) -> Callable[[], object]:
        choices = {"target": folder / f"{PLAIN_KIND}.json", "weights_bits": 4, "activation_bits": 8, **LEVERS[name]}
        return lambda: detent.quantize(graph, batches, progress=False, **choices)

    times = time_in_turns({"forward": forward, **{name: quantize(name) for name in names}}, rounds=3)
    rows = [
        {"lever": name, "seconds": round(times[name], 2), "times_forward": round(times[name] / times["forward"], 2)}
        for name in names
    ]
    for row in rows:
        print("  " + "  ".join(f"{key} {value}" for key, value in row.items()))
    return {"forward_seconds": round(times["forward"], 2), "calibration_samples": options.samples}, rows


PARTS = {"accuracy": accuracy, "costs": costs}


def merged(before: dict[str, Any], facts: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The table of a network with what was measured now in place of what was there."""
    known = {row["lever"]: row for row in before.get("rows", ())}
    for row in rows:
        known[row["lever"]] = {**known.get(row["lever"], {}), **row}
    return {**before, **facts, "rows": [known[name] for name in LEVERS if name in known]}


def main() -> None:
    """Measure the networks asked for and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--levers", nargs="+", default=list(LEVERS), choices=list(LEVERS), metavar="LEVER")
    parser.add_argument("--part", choices=[*PARTS, "both"], default="both")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    zoo = load_zoo(options.data)
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            (Path(folder) / f"{kind}.json").write_text(json.dumps(target_with(kind)), encoding="utf-8")
        for network in options.networks:
            for part in PARTS if options.part == "both" else [options.part]:
                facts, rows = PARTS[part](zoo, network, options.levers, Path(folder), options)
                if not options.no_write:
                    before = written("corrections").get(network, {})
                    write_network("corrections", network, merged(before, facts, rows))


if __name__ == "__main__":
    main()
