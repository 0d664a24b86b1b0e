"""Time and memory of whole post-training quantization against the bare float forward passes and onnxruntime's own.

    python benchmarks/ptq.py [--data FOLDER] [--networks ...] [--samples 512] [--rounds 5]

"quantize" is transform + calibrate + plan + apply on 512 images, 64 at a time: everything `detent.quantize` does after
capture, which is timed apart, as exporting the float network to ONNX is left out of onnxruntime's time. Rivals take
turns within one run. Before anything is timed, the quantized network's accuracy is checked against float. Rows go to
`benchmarks/results/ptq.json`.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import detent
from corrections import LEVERS
from detent import _core
from harness import Row, compare, print_rows, time_in_turns, write_section
from networks import NETWORKS, add_data_option, load_zoo

TARGET = "onnxruntime"
MEMORY_SAMPLES = (512, 4096)


def quantize(graph: detent.Graph, batches: Any, **options: Any) -> detent.QuantizedModel:
    """What is timed: everything after capture."""
    return detent.quantize(graph, batches, progress=False, **{"target": TARGET, **options})


CORRECTIONS = {"target": "imx500", "weights_bits": 4, **LEVERS["all of them"], "bias_correction": "analytic"}
"""All that applies to these networks, with the defaults for kernels of 4 bits: thresholds by the output, gains."""


def forward(model: torch.nn.Module, batches: list[torch.Tensor]) -> None:
    """The bare float passes, the model as given."""
    with torch.inference_mode():
        for batch in batches:
            model(batch)


def use_threads(count: int) -> None:
    """The same number of threads for torch and detent."""
    torch.set_num_threads(count)
    _core.set_num_threads(count)


def onnxruntime_rivals(
    model: torch.nn.Module, batches: list[torch.Tensor], folder: Path
) -> dict[str, Callable[[], Any]]:
    """onnxruntime's `quantize_static` with two calibration methods; the float ONNX file is made beforehand."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.getLogger().setLevel(logging.ERROR)
    raw, prepared = folder / "raw.onnx", folder / "float.onnx"
    batch = torch.export.Dim("batch")
    torch.onnx.export(model, (batches[0],), raw, dynamic_shapes=({0: batch},), verbose=False, external_data=False)
    quant_pre_process(raw, prepared)
    arrays = [batch.numpy() for batch in batches]

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(arrays)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"x": batch}

    def run(method: Any) -> Callable[[], None]:
        return lambda: quantization.quantize_static(
            prepared,
            folder / "quantized.onnx",
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=method,
        )

    return {
        "onnxruntime MinMax": run(quantization.CalibrationMethod.MinMax),
        "onnxruntime Entropy": run(quantization.CalibrationMethod.Entropy),
    }


def measure(zoo: Any, network: str, options: argparse.Namespace) -> list[Row]:
    """All rows of one network."""
    model, batches = zoo.load(network), zoo.calibration(options.samples, 64)
    start = time.perf_counter()
    graph = detent.capture(model, batches[0])
    capture_s = time.perf_counter() - start
    x, y = (part[:1000] for part in zoo.images("test"))
    drop = zoo.accuracy(model, x, y) - zoo.accuracy(quantize(graph, batches), x, y)
    if drop > 1.5:
        sys.exit(f"{network}: the quantized network lost {drop:.2f} points, its speed is not worth measuring")
    rows = [Row(name=f"{network}: capture (reported apart)", seconds=capture_s, figure=capture_s, unit="s")]
    for threads in sorted({1, os.cpu_count() or 1}):
        use_threads(threads)
        rivals: dict[str, Callable[[], Any]] = {
            "forward": lambda: forward(model, batches),
            "quantize": lambda: quantize(graph, batches),
        }
        times = time_in_turns(rivals, rounds=options.rounds)
        seconds, figure = times["quantize"], times["quantize"] / times["forward"]
        name = f"{network}: quantize over bare forward, {threads} thread{'s' * (threads > 1)}"
        rows.append(Row(name=name, seconds=seconds, figure=figure, unit="x forward", goal=1.2, at_most=True))
    rows += correction_rows(network, model, graph, batches, options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        rivals = {"quantize": lambda: quantize(graph, batches), **onnxruntime_rivals(model, batches, Path(folder))}
        times = time_in_turns(rivals, rounds=options.rounds)
    for rival, goal in (("onnxruntime MinMax", 1.0), ("onnxruntime Entropy", 5.0)):
        name = f"{network}: {rival} over quantize, {torch.get_num_threads()} threads"
        note = f"{times[rival]:.3f} s"
        rows.append(compare(name, times, "quantize", rival, at_least=goal, note=note))
    return [*rows, memory_row(network, options)]


def correction_rows(
    network: str, model: torch.nn.Module, graph: detent.Graph, batches: list[torch.Tensor], rounds: int
) -> list[Row]:
    """What all corrections cost together, at kernels of 4 bits."""
    sequential = {**CORRECTIONS, "bias_correction": "sequential"}
    kinds = {
        "quantize, 4-bit kernels, defaults": ({"target": "imx500", "weights_bits": 4}, None),
        "quantize, 4-bit kernels, all corrections": (CORRECTIONS, 3.0),
        "quantize, 4-bit kernels, all and sequential": (sequential, 4.0),
    }
    calls: dict[str, Callable[[], Any]] = {"forward": lambda: forward(model, batches)}
    for name, (choices, _) in kinds.items():
        calls[name] = lambda choices=choices: quantize(graph, batches, **choices)  # type: ignore[misc]
    times, rows = time_in_turns(calls, rounds=rounds), []
    for name, (_, goal) in kinds.items():
        title, figure = f"{network}: {name}, {torch.get_num_threads()} threads", times[name] / times["forward"]
        rows.append(Row(name=title, seconds=times[name], figure=figure, unit="x forward", goal=goal, at_most=True))
    return rows


def memory_row(network: str, options: argparse.Namespace) -> Row:
    """Peak memory at eight times the samples over that at the usual number, each in a process of its own."""
    peaks = []
    for samples in MEMORY_SAMPLES:
        command = [sys.executable, __file__, "--data", str(options.data), "--networks", network, "--peak", str(samples)]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]))
    note = " and ".join(f"{peak / 1024:.0f} MB at {count}" for peak, count in zip(peaks, MEMORY_SAMPLES, strict=True))
    name = f"{network}: peak memory, {MEMORY_SAMPLES[1]} over {MEMORY_SAMPLES[0]} images"
    return Row(name=name, seconds=0.0, figure=peaks[1] / peaks[0], unit="x", goal=1.1, at_most=True, note=note)


def print_peak(zoo: Any, network: str, samples: int) -> None:
    """Quantize with that many samples, streamed, and print the process's peak memory in kilobytes."""
    base = zoo.calibration(512, 64)

    def stream() -> Any:
        return (base[i % len(base)].clone() for i in range(samples // 64))

    detent.quantize(zoo.load(network), stream, target=TARGET, progress=False)
    # Not ru_maxrss: it starts from the peak of the process that started this one.
    (peak,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    print(peak)


def main() -> None:
    """Measure the networks asked for and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    zoo = load_zoo(options.data)
    if options.peak:
        print_peak(zoo, options.networks[0], options.peak)
        return
    for network in options.networks:
        rows = measure(zoo, network, options)
        print_rows(network, rows)
        if not options.no_write:
            write_section("ptq", network, rows)


if __name__ == "__main__":
    main()
