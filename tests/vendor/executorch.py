"""PT2E programs in ExecuTorch's runtime, with XNNPACK, against the integer programs of the same models.

    python tests/vendor/executorch.py [--folder FOLDER] [--data FOLDER] [--images 64]

Makes a virtual environment with torch and executorch, lowers every program with `XnnpackPartitioner`, runs it, and
compares the outputs, and in a second program all tensors, with `detent.lower(...).run`. Exits with 1 where any value
differs, where XNNPACK was not given a layer, or where ExecuTorch does not lower a program.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

EXECUTORCH = "1.5.1"
LAYERS = ("convolution", "linear", "add", "relu", "hardtanh", "max_pool2d")
"""Operators that XNNPACK must have been given."""


# ---- in the virtual environment, which has no detent ---------------------------------------------------------------
def lower_and_run(folder: Path) -> None:
    """Lower and run every `.pt2` of a folder on the inputs beside it; outputs and figures go there too."""
    import executorch.version
    import torch
    import torch.ao.quantization.fx._decomposed  # registers the operators
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    print(f"torch {torch.__version__}, executorch {executorch.version.__version__}", flush=True)
    for path in sorted(folder.glob("*.pt2")):
        images = torch.from_numpy(np.load(path.with_suffix(".inputs.npy")))
        try:
            edge = to_edge_transform_and_lower(torch.export.load(path), partitioner=[XnnpackPartitioner()])
        except AssertionError as error:
            # Partitions of ExecuTorch 1.5.1 can depend on each other in a circle; the other programs still run.
            if "dependency cycles" not in str(error):
                raise
            path.with_suffix(".json").write_text(json.dumps({"not lowered": str(error)}))
            continue
        graph = edge.exported_program().graph_module
        figures = {
            "outside": count(graph),
            "delegated": sum(
                (count(part.original_module.graph_module) for _, part in graph.named_children()), Counter()
            ),
        }
        program = edge.to_executorch()
        path.with_suffix(".pte").write_bytes(program.buffer)
        method = Runtime.get().load_program(path.with_suffix(".pte")).load_method("forward")
        found = [[one.numpy().copy() for one in method.execute([image[None]])] for image in images]
        outputs = [np.concatenate(parts) for parts in zip(*found, strict=True)]
        np.savez(path.with_suffix(".outputs.npz"), *outputs)
        figures["bytes"] = len(program.buffer)
        path.with_suffix(".json").write_text(json.dumps(figures))
        print(f"{path.stem}: lowered and run on {len(images)} images", flush=True)


def count(module: Any) -> Counter[str]:
    """How many of each operator a graph calls, by short names."""
    names = [
        getattr(node.target, "__name__", str(node.target)) for node in module.graph.nodes if node.op == "call_function"
    ]
    return Counter(name.removeprefix("aten.").removeprefix("quantized_decomposed.").split(".")[0] for name in names)


# ---- in the environment with detent --------------------------------------------------------------------------------
def models(data: Path | None, images: int) -> Iterator[tuple[str, Any, Any]]:
    """Name, quantized model and inputs of every case."""
    import detent
    from detent.demo.data import calibration_images, load_test
    from detent.demo.network import load_network

    digits = np.asarray(load_test()[0])[:images]
    for bits in (8, 4):
        options = {"weights_bits": bits, "target": "onnxruntime", "progress": False}
        yield f"demo, {bits}-bit kernels", detent.quantize(load_network(), calibration_images(), **options), digits
    yield from small_models(images)
    if data is None:
        return
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
    from networks import NETWORKS, load_zoo

    zoo = load_zoo(data)
    for network in NETWORKS:
        qmodel = detent.quantize(zoo.load(network), zoo.calibration(512, 64), target="onnxruntime", progress=False)
        yield network, qmodel, zoo.images("test")[0][:images].numpy()


def small_models(images: int) -> Iterator[tuple[str, Any, Any]]:
    """A network with a pool and a flattening before linear layers of an even and an odd number of inputs."""
    import torch
    from torch import nn

    import detent

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 14, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(14 * 9, 33),
        nn.ReLU(),
        nn.Linear(33, 10),
    )
    data = torch.randn(256, 3, 6, 6)
    for bits in (8, 7, 4):
        qmodel = detent.quantize(model, data, target="onnxruntime", weights_bits=bits, progress=False)
        yield f"pooled, {bits}-bit kernels", qmodel, data[:images].numpy()


def all_tensors(qmodel: Any) -> tuple[Any, list[str]]:
    """The program of a model, returning the int8 codes of every quantized value, and the values' names."""
    import torch
    from torch import fx

    from detent.exporters.pt2e_graph import decomposed_module
    from detent.graph.names import NAME

    module = decomposed_module(qmodel, signed=True)
    graph = fx.Graph()
    nodes: dict[Any, Any] = {}
    codes: dict[str, Any] = {}
    for node in module.graph.nodes:
        if node.op == "output":
            continue
        nodes[node] = graph.node_copy(node, nodes.__getitem__)
        if str(node.target).startswith("quantized_decomposed.dequantize_per_tensor"):
            codes.setdefault(str(node.meta[NAME]), nodes[node.args[0]])
    graph.output(tuple(codes.values()))
    example = tuple(one[:1] for one in qmodel.example)
    return torch.export.export(fx.GraphModule(module, graph), example), list(codes)


def write_cases(folder: Path, data: Path | None, images: int) -> dict[str, tuple[list[str], list[Any]]]:
    """Write programs and inputs; return names and expected values, or int8 codes, of what each program returns."""
    import torch

    import detent

    expected = {}
    for name, qmodel, inputs in models(data, images):
        program = detent.lower(qmodel, runtime="xnnpack")
        run = program.run(inputs, all_tensors=True)
        detent.export(qmodel, folder / f"{name}, outputs.pt2", batch=1)
        expected[f"{name}, outputs"] = list(qmodel.output_names), run.outputs
        tapped, names = all_tensors(qmodel)
        torch.export.save(tapped, folder / f"{name}, all tensors.pt2")
        tensors = [f"{one}_codes" if one in program.inputs else one for one in names]
        codes = [(run.codes[one].astype(np.int16) - 128).astype(np.int8) for one in tensors]
        expected[f"{name}, all tensors"] = names, codes
        for stem in (f"{name}, outputs", f"{name}, all tensors"):
            np.save(folder / f"{stem}.inputs.npy", np.asarray(inputs, np.float32))
    return expected


def report(folder: Path, expected: dict[str, tuple[list[str], list[Any]]]) -> bool:
    """Print the figures of every program; whether all is as it should be."""
    fine = True
    for stem, (labels, wanted) in expected.items():
        figures = json.loads((folder / f"{stem}.json").read_text())
        if "not lowered" in figures:
            print(f"{stem}: ExecuTorch does not lower it ({figures['not lowered']})")
            fine = False
            continue
        outputs = np.load(folder / f"{stem}.outputs.npz")
        total = differing = 0
        for index, (label, want) in enumerate(zip(labels, wanted, strict=True)):
            off = int(np.sum(outputs[f"arr_{index}"] != want))
            total, differing = total + want.size, differing + off
            if off:
                print(f"  {label}: {off} of {want.size} values differ")
        left = {name: number for name, number in figures["outside"].items() if name in LAYERS}
        print(f"{stem}: {differing} of {total} values differ, {figures['bytes']} bytes of .pte")
        print(f"  delegated: {figures['delegated']}")
        print(f"  outside: {figures['outside']}", flush=True)
        fine = fine and not differing and not left
    return fine


def environment(folder: Path) -> Path:
    """The interpreter of a virtual environment with torch and executorch."""
    import torch

    python = folder / "venv" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        wanted = (f"torch=={torch.__version__.partition('+')[0]}", f"executorch=={EXECUTORCH}", "numpy")
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
    return python


def main() -> int:
    """Run the check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--venv", type=Path, help="where environment and files go (default: a temporary folder)")
    parser.add_argument("--data", type=Path, help="folder with checkpoints and images: ResNet-20 and MobileNetV2 too")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run is not None:
        lower_and_run(options.run)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.venv or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        python = environment(folder)
        with tempfile.TemporaryDirectory(dir=folder) as cases:
            expected = write_cases(Path(cases), options.data, options.images)
            # Isolated: this file, which is called like the package, must not be found in its place.
            command = [python, "-I", "-W", "ignore", Path(__file__).resolve(), "--run", cases]
            subprocess.run(command, check=True)
            return 0 if report(Path(cases), expected) else 1


if __name__ == "__main__":
    sys.exit(main())
