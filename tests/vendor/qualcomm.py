"""Qualcomm's own software on what detent writes: AIMET reads the encodings, the emulated HTP runs the QDQ file.

    python tests/vendor/qualcomm.py [--data FOLDER] [--venv FOLDER] [--images 8]

Ends with an error where a reading of the encodings gives other outputs than our QDQ file, where a file does not run
wholly on the HTP, or where a value of 8 bits is more than one step off, each computed from the HTP's own inputs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch

import detent
from detent.demo.data import calibration_images, load_test
from detent.demo.network import load_network
from detent.exporters import export_onnx, export_qualcomm
from detent.exporters.onnx_graph import OnnxGraph
from detent.exporters.onnx_qnn import prepare_qnn
from detent.exporters.onnx_values import ValueComparison, tap_values

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("0.6.1", "1.0.0", "2.0.0")
PINNED = ("onnxruntime==1.31.1", "onnxruntime-qnn==2.7.0", "onnx==1.23.2", "onnxscript==0.7.2", "torch==2.13.0")
NEEDED = ("psutil", "pyyaml", "jsonschema", "tqdm", "scipy", "scikit-learn", "pandas", "bokeh", "jinja2", "safetensors")
ALONE = ("aimet-onnx==2.42.0", "onnx2torch==1.5.15", "hvplot==0.12.2", "osqp==1.1.3")
"""Installed without what they ask for, which is large and not needed to read encodings."""
Case = tuple[str, detent.QuantizedModel, torch.Tensor]


def prepare(folder: Path) -> Path:
    """The Python of an environment with the vendor's packages, made where it is not there yet."""
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, *PINNED, *NEEDED], check=True)
        subprocess.run([*install, "--no-deps", *ALONE], check=True)
        (folder / "complete").touch()
    return python


def cases(data: Path | None, images: int) -> Iterator[Case]:
    """Quantized networks, each with samples."""
    yield from quantized("demo", load_network(), [calibration_images()], load_test()[0][:images])
    if data is None:
        return
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from networks import NETWORKS, load_zoo

    zoo = load_zoo(data)
    samples = zoo.images("test")[0][:images]
    for network in NETWORKS:
        yield from quantized(network, zoo.load(network), zoo.calibration(512, 64), samples)


def quantized(name: str, model: torch.nn.Module, batches: list[torch.Tensor], samples: torch.Tensor) -> Iterator[Case]:
    """A network with kernels of 8 and of 4 bits."""
    graph = detent.capture(model, batches[0])
    stats = detent.calibrate(graph, batches)
    for bits in (8, 4):
        plan = detent.plan(graph, stats, target="qnn", weights_bits=bits)
        yield f"{name}-w{bits}", detent.apply(graph, plan), samples


def write(case: Case, root: Path) -> None:
    """All that the vendor's packages shall read."""
    name, qmodel, samples = case
    folder = root / name
    folder.mkdir()
    for version in VERSIONS:
        export_qualcomm(qmodel, folder / f"{version}.encodings", version=version)
    path = export_onnx(qmodel, folder / "qdq.onnx", batch=1).path
    graph = OnnxGraph(onnx.load(path))
    prepare_qnn(graph, qmodel)
    graph.write_back()
    onnx.save(graph.proto, path)
    content, taps = tap_values(path)
    (folder / "tapped.onnx").write_bytes(content)
    (folder / "taps.json").write_text(json.dumps(taps))
    # Inputs on their grid: the HTP rounds float inputs in a way of its own.
    grid = qmodel.plan.activation_grid(qmodel.inputs[0].name)
    assert grid is not None
    np.savez(folder / "inputs.npz", **{qmodel.inputs[0].name: grid.round(samples.numpy())})


def compare(case: Case, root: Path) -> list[str]:
    """Print the figures of one network and return what is wrong."""
    name, qmodel, _ = case
    folder = root / name
    wrong = []
    for version, count in json.loads((folder / "aimet.json").read_text()).items():
        print(f"{name}: encodings {version}: {count['differ']} of {count['values']} entries differ from the QDQ file")
        if count["differ"]:
            wrong.append(f"{name}: encodings {version}")
    if not (folder / "htp.npz").exists():
        print(f"{name}: HTP: {(folder / 'htp.txt').read_text()}")
        return [*wrong, f"{name}: not on the HTP"]
    taps = json.loads((folder / "taps.json").read_text())
    found = dict(np.load(folder / "htp.npz"))
    inputs = torch.from_numpy(next(iter(np.load(folder / "inputs.npz").values())))
    comparison = ValueComparison(qmodel.graph_module, folder / "qdq.onnx")
    with torch.inference_mode():
        comparison.compare([inputs], {value: found[str(place)] for place, value in enumerate(taps)})
    values = comparison.result()
    worst = max(values, key=lambda value: value.off_fraction)
    most = max(value.largest_steps for value in values)
    mean = sum(value.off_fraction for value in values) / len(values)
    print(
        f"{name}: HTP: {len(values)} values, at most {most:.0f} steps off, {mean:.2%} of entries on average, "
        f"{worst.off_fraction:.2%} of {worst.name}"
    )
    return wrong if most <= 1 else [*wrong, f"{name}: more than one step on the HTP"]


def main() -> None:
    """Write, run and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with trained networks; without, only the demo network")
    parser.add_argument("--venv", type=Path, help="where the vendor's packages go; a temporary folder without")
    parser.add_argument("--images", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "files"
        root.mkdir()
        python = prepare(options.venv or Path(temporary) / "venv")
        found = list(cases(options.data, options.images))
        for case in found:
            write(case, root)
        subprocess.run([python, Path(__file__).with_name("qualcomm_runtimes.py"), root], check=True)
        versions = json.loads((root / "versions.json").read_text())
        print(", ".join(f"{name} {version}" for name, version in versions.items()))
        wrong = [line for case in found for line in compare(case, root)]
    sys.exit("\n".join(wrong) or None)


if __name__ == "__main__":
    main()
