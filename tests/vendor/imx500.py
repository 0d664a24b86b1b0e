"""Sony's converter on files that detent wrote: does it take them, and do they compute what the QDQ files compute?

Makes a virtual environment with `imx500-converter[pt]`, which needs Java, in a folder of its own or in `--venv`, writes
files with the Python that runs this script, converts them and compares them in onnxruntime. Exits non-zero on failure.

    python tests/vendor/imx500.py [--venv FOLDER] [--data FOLDER]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import detent
from detent import edit

REQUIREMENTS = ("torch==2.13.0", "imx500-converter[pt]")
CODEBOOKS = {
    "extends": "imx500",
    "schema_version": 1,
    "name": "imx500-codebooks",
    "version": "1",
    "description": "imx500 with codebooks of 4 bits.",
    "sources": [],
    "ops": {kind: {"weights": {"codebook_bits": [4]}} for kind in ("conv", "linear")},
}
COMPARE = """
import json, sys
import numpy as np
import onnxruntime
import mct_quantizers
ours, plain, images = sys.argv[1:]
feed = np.load(images)
def run(path, options):
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: feed[i : i + 64]})[0] for i in range(0, len(feed), 64)])
options = [mct_quantizers.get_ort_session_options(), onnxruntime.SessionOptions()]
for one in options:
    one.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    one.intra_op_num_threads = 1
got, want = run(ours, options[0]), run(plain, options[1])
print(json.dumps({"outputs": int(got.size), "differing": int((got != want).sum())}))
"""
VERSIONS = """
import json
from importlib.metadata import version
names = ("imx500-converter", "sdspconv", "uni-pytorch", "mct-quantizers", "onnx", "onnxruntime")
print(json.dumps({name: version(name) for name in names}))
"""


def main() -> None:
    """Write, convert, compare; one line for each file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, help="virtual environment to make, or one made before")
    parser.add_argument("--data", type=Path, help="folder with checkpoints and images, see benchmarks/networks.py")
    options = parser.parse_args()
    if shutil.which("java") is None:
        sys.exit("the converter runs on Java, and there is no `java` here: install a Java runtime of version 17")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        tools = make_environment(options.venv or work / "venv")
        versions = json.loads(output_of(tools / "python", "-c", VERSIONS))
        print(", ".join(f"{name} {version}" for name, version in versions.items()), f"torch {torch.__version__}")
        failed = [name for name, *rest in files(work, options.data) if not passes(tools, work, name, *rest)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def make_environment(folder: Path) -> Path:
    """The folder of programs of a virtual environment with the converter; made unless it is there."""
    tools = folder / "bin"
    if not (tools / "imxconv-pt").is_file():
        venv.create(folder, with_pip=True)
        subprocess.run([tools / "python", "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
    return tools


def files(work: Path, data: Path | None) -> Iterator[tuple[str, Path, Path, Path]]:
    """Name, file for the converter, QDQ file of the same model, and images to compare them with."""
    (work / "codebooks.json").write_text(json.dumps(CODEBOOKS))
    ways: dict[str, dict[str, Any]] = {
        "8": {"target": "imx500"},
        # Channels are padded in memory: the digits cannot have less than 72 %, ResNet-20 not less than 65 %.
        "75%": {"target": "imx500", "budget": detent.Budget(weights="75%")},
        "mixed": {
            "target": "imx500",
            "rules": [
                edit.rule(edit.position(2, 5), edit.weights(bits=4)),
                edit.rule(edit.position(5, -1), edit.weights(bits=2)),
            ],
        },
        "codebook": {"target": work / "codebooks.json", "weights_grid": "lut", "weights_bits": 4},
    }
    for network, model, batches, images in networks(data):
        np.save(work / f"{network}.npy", images.numpy())
        for way, chosen in ways.items():
            name = f"{network}_{way.removesuffix('%')}"
            qmodel = detent.quantize(model, batches, progress=False, **chosen)
            paths = work / f"{name}.onnx", work / f"{name}_qdq.onnx"
            detent.export(qmodel, paths[0], format="imx500")
            detent.export(qmodel, paths[1])
            widths = sorted({entry.grid.bits for entry in qmodel.plan.weights.values() if entry.grid is not None})
            yield f"{name} (weights of {widths} bits)", *paths, work / f"{network}.npy"


def networks(data: Path | None) -> Iterator[tuple[str, torch.nn.Module, Any, torch.Tensor]]:
    """Name, network, calibration batches, test images."""
    from detent.demo.data import calibration_images, load_test
    from detent.demo.network import load_network

    yield "digits", load_network(), calibration_images(), load_test().images
    if data is not None:
        sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
        from networks import NETWORKS, load_zoo

        zoo = load_zoo(data)
        for name in NETWORKS:
            yield name, zoo.load(name), zoo.calibration(256, 64), zoo.images("test")[0][:200]


def passes(tools: Path, work: Path, name: str, ours: Path, plain: Path, images: Path) -> bool:
    """Convert and compare one file, and tell."""
    begun, out = time.perf_counter(), work / f"out_{ours.stem}"
    found = subprocess.run(
        [tools / "imxconv-pt", "-i", ours, "-o", out, "--overwrite-output"], capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - begun
    report = out / f"{ours.stem}_MemoryReport.json"
    if found.returncode or not (out / "packerOut.zip").is_file() or not report.is_file():
        print(f"{name}: the converter failed with {found.returncode}\n{found.stdout[-1500:]}{found.stderr[-1500:]}")
        return False
    memory = json.loads(report.read_text())["Memory Report"]
    # The onnxruntime that the converter brings cannot turn 4-bit codes of a codebook into numbers.
    same = {} if "codebook" in name else json.loads(output_of(tools / "python", "-c", COMPARE, ours, plain, images))
    agreement = f"{same['differing']} of {same['outputs']} outputs differ" if same else "outputs not compared"
    print(
        f"{name}: converted in {seconds:.0f} s, model {memory['Model Memory Physical Size']}, in all "
        f"{memory['Memory Usage']}, fits: {memory['Fit In Chip']}; "
        f"{agreement}",
        flush=True,
    )
    return memory["Fit In Chip"] is True and same.get("differing", 0) == 0


def output_of(*command: Path | str) -> str:
    """What a program prints; its failure is ours."""
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        sys.exit(f"{command[0]} failed:\n{found.stderr}")
    return found.stdout.strip().splitlines()[-1]


if __name__ == "__main__":
    main()
