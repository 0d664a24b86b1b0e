"""Exported files: their size, and what runtimes make of them against the integer executor and PyTorch.

    python benchmarks/export.py [--data FOLDER] [--networks ...] [--images 400] [--cases ...]

Codes of all tensors are compared. Rows go to `benchmarks/results/export.json`. A new format is a line in `CASES`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import detent
from detent.exporters import open_runtime
from harness import Row, print_rows, write_section
from networks import NETWORKS, add_data_option, load_zoo

BATCH = 50


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of file.

    Args:
        target: that the network is quantized for.
        options: of `detent.quantize`.
        format: of `detent.export`.
        export: its options.
        suffix: of the file.
        runtime: whose codes are compared, as `detent.lower` has it; None where none at hand takes the file.
        images: to compare at most; some runtimes take their time.
        most: the greatest ratio of the file to its integers that is acceptable.
        beside: name of another case, and the greatest ratio to its file that is acceptable.
    """

    target: str = "onnxruntime"
    options: Mapping[str, Any] = field(default_factory=dict)
    format: str = "onnx"
    export: Mapping[str, Any] = field(default_factory=dict)
    suffix: str = ".onnx"
    runtime: str | None = None
    images: int = 400
    most: float | None = None
    beside: tuple[str, float] | None = None


CASES: dict[str, Case] = {
    "onnx, W8A8": Case(runtime="onnxruntime", most=1.15),
    "onnx, W4A8": Case(options={"weights_bits": 4}, runtime="onnxruntime", beside=("onnx, W8A8", 0.65)),
    "onnx for openvino, W8A8": Case(export={"dialect": "openvino"}, runtime="onnxruntime", most=1.15),
    "onnx for tensorrt, W8A8": Case(target="tensorrt", most=1.15),
    "qoperator, W8A8": Case(format="qoperator", runtime="onnxruntime", most=1.15),
    "tflite, W8A8": Case(target="tflite", format="tflite", suffix=".tflite", runtime="tflite_micro", images=50),
    "tflite, W8A16": Case(
        target="tflite",
        options={"activation_bits": 16},
        format="tflite",
        suffix=".tflite",
        runtime="tflite_micro",
        images=50,
    ),
    "imx500, W8A8": Case(target="imx500", format="imx500"),
    "onnx for qnn, W8A8": Case(target="qnn"),
    "pt2e, W8A8": Case(format="pt2e", suffix=".pt2"),
    "safetensors, W8A8": Case(format="safetensors", suffix=".safetensors"),
    "safetensors, W4A8": Case(options={"weights_bits": 4}, format="safetensors", suffix=".safetensors"),
}
"""By name, in the order of the rows."""


def integer_bytes(qmodel: detent.QuantizedModel) -> int:
    """What kernels, biases and steps take, each in its own width."""
    module, total = qmodel.graph_module, 0
    buffers = dict(module.named_buffers())
    counted: set[str] = set()
    for node in module.graph.nodes:
        read = [str(one.target) for one in node.all_input_nodes if one.op == "get_attr"]
        if node.target is torch.ops.detent.dequantize.default:
            codes, scale = read[:2]
            bits = 8 * buffers[codes].element_size()
            entries = [qmodel.plan.weights.get(str(user.meta.get("detent_name"))) for user in node.users]
            grids = [entry.grid for entry in entries if entry is not None and entry.grid is not None]
            if bits == 8 and grids and grids[0].bits <= 4:
                bits = 4
            total += 0 if codes in counted else (buffers[codes].numel() * bits + 7) // 8
            total += 0 if scale in counted else buffers[scale].numel() * 4
            counted |= {codes, scale}
        elif node.target is torch.ops.detent.fake_quantize.default:
            total += 4 * sum(buffers[name].numel() for name in read[:1] if name in buffers)
        else:
            stored = {name: module.state_dict()[name] for name in read if name not in counted}
            total += sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
            counted |= set(stored)
    return total


def compare(case: Case, path: Path, qmodel: detent.QuantizedModel, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
    """Differing codes, top-1 of runtime and executor, and agreement with the model in PyTorch."""
    assert case.runtime is not None
    program = detent.lower(qmodel, runtime=case.runtime)
    run = open_runtime(path, program)
    (end,) = program.outputs
    tally = {"differing": 0, "codes": 0, "tensors": 0, "runtime": 0, "executor": 0, "agreeing": 0}
    for images, labels in _batches(x, y):
        found, wanted = run([images.numpy()]), program.run(images, all_tensors=True).codes
        tally["tensors"] = len(found)
        for name, codes in found.items():
            tally["differing"] += int((codes != wanted[name]).sum())
            tally["codes"] += codes.size
        with torch.inference_mode():
            expected = qmodel(images).argmax(1).numpy()
        classes = found[end].argmax(1)
        tally["runtime"] += int((classes == labels.numpy()).sum())
        tally["executor"] += int((wanted[end].argmax(1) == labels.numpy()).sum())
        tally["agreeing"] += int((classes == expected).sum())
    return tally


def _batches(x: torch.Tensor, y: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(0, len(x), BATCH):
        yield x[start : start + BATCH], y[start : start + BATCH]


def measure(zoo: Any, network: str, images: int, names: list[str]) -> list[Row]:
    """Rows of one network; the seconds are those of the export."""
    model, batches = zoo.load(network), zoo.calibration(512, 64)
    x, y = (part[:images] for part in zoo.images("test"))
    graph = detent.capture(model, batches[0])
    stats = detent.calibrate(graph, batches)
    rows: list[Row] = []
    sizes: dict[str, int] = {}
    for name in names:
        case = CASES[name]
        qmodel = detent.apply(graph, detent.plan(graph, stats, target=case.target, **case.options))
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            report = detent.export(qmodel, Path(folder) / f"model{case.suffix}", format=case.format, **case.export)
            seconds = time.perf_counter() - start
            sizes[name] = report.bytes
            rows += _size_rows(f"{network}, {name}", case, report.bytes, integer_bytes(qmodel), sizes, seconds)
            if case.runtime is not None:
                count = min(len(x), case.images)
                found = compare(case, report.path, qmodel, x[:count], y[:count])
                rows += _agreement_rows(f"{network}, {name}", found, count, seconds)
    return rows


def _size_rows(title: str, case: Case, size: int, integers: int, sizes: Mapping[str, int], seconds: float) -> list[Row]:
    rows = [
        Row(
            name=f"{title}: file",
            seconds=seconds,
            figure=round(size / integers, 4),
            unit="x its integers",
            goal=case.most,
            at_most=True,
            note=f"{size} bytes, {integers} of integers and steps",
        )
    ]
    if case.beside is not None and case.beside[0] in sizes:
        other, most = case.beside
        ratio = round(size / sizes[other], 4)
        rows.append(
            Row(name=f"{title}: file", seconds=seconds, figure=ratio, unit=f"x {other}", goal=most, at_most=True)
        )
    return rows


def _agreement_rows(title: str, found: Mapping[str, int], images: int, seconds: float) -> list[Row]:
    runtime, executor = (100 * found[one] / images for one in ("runtime", "executor"))
    return [
        Row(
            name=f"{title}: codes that differ from the executor's",
            seconds=seconds,
            figure=found["differing"],
            unit="codes",
            goal=0,
            at_most=True,
            note=f"of {found['codes']} in {found['tensors']} tensors, {images} images",
        ),
        Row(
            name=f"{title}: top-1 of the runtime minus the executor's",
            seconds=seconds,
            figure=abs(runtime - executor),
            unit="points",
            goal=0,
            at_most=True,
            note=f"{runtime:.2f} % and {executor:.2f} %",
        ),
        Row(
            name=f"{title}: same class as the model in PyTorch",
            seconds=seconds,
            figure=100 * found["agreeing"] / images,
            unit="%",
            goal=99.5,
        ),
    ]


def main() -> None:
    """Measure the networks and cases asked for and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    zoo = load_zoo(options.data)
    for network in options.networks:
        rows = measure(zoo, network, options.images, options.cases)
        print_rows(network, rows)
        if not options.no_write:
            write_section("export", network, rows)


if __name__ == "__main__":
    main()
