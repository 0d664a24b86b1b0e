"""Top-1 with raw bytes as input against normalized float input, on the same checkpoints and calibration images.

    python benchmarks/preprocessing.py [--data FOLDER] [--networks ...] [--samples 512] [--images 5000]

Three forms: `normalized` float input, which the user prepares and whose grid is searched; `in the model`, raw numbers
whose normalization the user's forward writes out; `folded`, bytes with `detent.Preprocessing`. The folded form is first
checked against the float network. Rows go to `benchmarks/results/preprocessing.json`.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor, nn

import detent
from harness import write_network
from networks import NETWORKS, add_data_option, load_zoo

CASES = (("imx500", 8), ("imx500", 4), ("tflite", 8), ("tensorrt", 8))
"""Targets with widths of all kernels."""
FLOAT_DIFFERENCE = 1e-5
"""Largest difference allowed between the float functions, relative to the largest output."""


class Normalizing(nn.Module):
    """The network behind its normalization, as users write it."""

    def __init__(self, model: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", mean.reshape(3, 1, 1))
        self.register_buffer("std", std.reshape(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Top-1 scores of raw `[N, 3, H, W]`."""
        scores: Tensor = self.model((x / 255 - self.mean) / self.std)
        return scores


def bytes_of(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """The uint8 images that were normalized to `x`."""
    return ((x * std.reshape(3, 1, 1) + mean.reshape(3, 1, 1)) * 255).round().clamp(0, 255).to(torch.uint8)


def measure(zoo: Any, network: str, options: argparse.Namespace) -> dict[str, Any]:
    """All rows of one network."""
    model = zoo.load(network)
    mean, std = (torch.as_tensor(values, dtype=torch.float32).flatten() for values in (zoo.MEAN, zoo.STD))
    x, y = (part[: options.images] for part in zoo.images("test"))
    data = torch.cat(zoo.calibration(options.samples, 64))
    raw, raw_data = (bytes_of(part, mean, std) for part in (x, data))
    record = detent.Preprocessing(
        scale=1 / 255, mean=tuple(mean.tolist()), std=tuple(std.tolist()), dtype="uint8", layout="NCHW"
    )
    folded = detent.capture(model, raw_data[:2], preprocessing=record)
    with torch.no_grad():
        wanted = model(torch.from_numpy(record.normalize(raw[:64].numpy())))
        off = float((folded(raw[:64]) - wanted).abs().max() / wanted.abs().max())
    assert off <= FLOAT_DIFFERENCE, f"the folded network differs by {off:.1e}"
    forms = {
        "normalized": (detent.capture(model, data[:2]), data, x),
        "in the model": (
            detent.capture(Normalizing(model, mean, std).eval(), raw_data[:2].float()),
            raw_data.float(),
            raw.float(),
        ),
        "folded": (folded, raw_data, raw),
    }
    float_top1 = zoo.accuracy(model, x, y)
    print(f"{network}: float {float_top1:.2f}, folded float function off by {off:.1e}")
    rows = []
    for form, (graph, calibration, images) in forms.items():
        stats = detent.calibrate(graph, calibration, progress=False)
        for target, bits in CASES:
            plan = detent.plan(graph, stats, target=target, weights_bits=bits, bias_correction="none")
            top1 = zoo.accuracy(detent.apply(graph, plan), images, y)
            row = {"form": form, "target": target, "weights_bits": bits, "top1": round(top1, 2)}
            rows.append({**row, "drop": round(float_top1 - top1, 2)})
            print(f"  {form:12} {target:12} W{bits} top-1 {top1:6.2f} drop {float_top1 - top1:+.2f}", flush=True)
    return {"float_top1": round(float_top1, 2), "images": len(y), "calibration_samples": options.samples, "rows": rows}


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
    for network in options.networks:
        found = measure(zoo, network, options)
        if not options.no_write:
            write_network("preprocessing", network, found)


if __name__ == "__main__":
    main()
