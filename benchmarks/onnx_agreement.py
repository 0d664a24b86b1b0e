"""Agreement of exported ONNX files with the PyTorch quantized model, in onnxruntime with graph optimizations off.

    python benchmarks/onnx_agreement.py [--data FOLDER] [--networks ...] [--images 5000]

Rows go to `benchmarks/results/onnx.json`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import detent
from detent.exporters import verify_onnx
from harness import Row, print_rows, write_section
from networks import NETWORKS, add_data_option, load_zoo

TARGETS = ("onnxruntime", "imx500")


def measure(zoo: Any, network: str, images: int) -> list[Row]:
    """Rows of one network: largest difference, agreement and size per target; the seconds are those of the export."""
    model, batches = zoo.load(network), zoo.calibration(512, 64)
    graph = detent.capture(model, batches[0])
    stats = detent.calibrate(graph, batches)
    x = zoo.images("test")[0][:images]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rows = []
    for target in TARGETS:
        qmodel = detent.apply(graph, detent.plan(graph, stats, target=target))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            start = time.perf_counter()
            detent.export(qmodel, path)
            export_s = time.perf_counter() - start
            size = path.stat().st_size
            agreement = verify_onnx(path, qmodel, x)
        name = f"{network}, {target}"
        top1, steps = 100 * (agreement.top1 or 0.0), agreement.largest_steps
        note = f"{agreement.off_fraction:.3%} of the values differ"
        rows += [
            Row(
                name=f"{name}: largest difference",
                seconds=export_s,
                figure=round(steps, 4),
                unit="output steps",
                goal=1.0,
                at_most=True,
                note=note,
            ),
            Row(name=f"{name}: top-1 agreement", seconds=export_s, figure=top1, unit="%", goal=99.9),
            Row(name=f"{name}: file size", seconds=export_s, figure=size / parameters, unit="bytes/parameter"),
        ]
    return rows


def main() -> None:
    """Measure the networks asked for and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    zoo = load_zoo(options.data)
    for network in options.networks:
        rows = measure(zoo, network, options.images)
        print_rows(network, rows)
        if not options.no_write:
            write_section("onnx", network, rows)


if __name__ == "__main__":
    main()
