"""Check TensorFlow Lite files in their runtimes and with Arm's compiler for Ethos-U, in an environment of their own.

    python tests/vendor/tflite.py [--data FOLDER] [--venv FOLDER]

tflite-micro runs each file, LiteRT (ai-edge-litert) those of 8 bits with its optimized and its reference kernels; all
codes are compared with the integer program of that runtime. Vela (ethos-u-vela) compiles the files with integer inputs
and outputs and must leave no operator to the CPU. Without `--data` only the built-in network is checked. Exits with 1
where something differs.
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks.networks import NETWORKS, load_zoo

import detent
from detent.demo.data import calibration_images, load_test
from detent.demo.network import load_network
from detent.exporters import verify
from tests.vendor.environment import environment, packages_of, versions

RUNTIMES = ("litert", "litert_reference")
PACKAGES = ("ai-edge-litert", "ethos-u-vela")


def networks(data: Path | None, samples: int) -> Iterator[tuple[str, detent.QuantizedModel, torch.Tensor]]:
    """Names, quantized models and test images, with activations of 8 and of 16 bits."""
    zoo = None if data is None else load_zoo(data)
    for bits in (8, 16):
        for name in ("demo", *(NETWORKS if zoo is not None else ())):
            model, batches, images = (
                (load_network(), calibration_images(), load_test()[0])
                if name == "demo" or zoo is None
                else (zoo.load(name), zoo.calibration(512, 64), zoo.images("test")[0])
            )
            qmodel = detent.quantize(model, batches, target="tflite", activation_bits=bits, progress=False)
            yield f"{name}_{bits}", qmodel, images[:samples]


def compile_for_ethos(vela: Path, file: Path, out: Path) -> str:
    """What Vela says of a file: operators left to the CPU, memory."""
    run = subprocess.run(
        [vela, file, "--accelerator-config", "ethos-u55-128", "--output-dir", out, "--verbose-performance"],
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise SystemExit(f"vela ended with {run.returncode} on {file.name}:\n{run.stdout}{run.stderr}")
    left = re.findall(r"Warning \(supported operators\) operator: (\w+)", run.stdout + run.stderr)
    (summary,) = out.glob(f"{file.stem}_summary_*.csv")
    with summary.open() as lines:
        (row,) = csv.DictReader(lines)
    return f"{len(left)} operators left to the CPU, {float(row['sram_memory_used']):.1f} KiB of SRAM"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the networks of the benchmarks")
    parser.add_argument("--venv", type=Path, help="environment to keep; a temporary one otherwise")
    parser.add_argument("--samples", type=int, default=50)
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        venv = environment(options.venv or Path(folder) / "venv", PACKAGES)
        sys.path.append(str(packages_of(venv)))
        print(*versions(venv, PACKAGES), f"tflite-micro=={metadata.version('tflite-micro')}")
        for name, qmodel, images in networks(options.data, options.samples):
            file = Path(folder) / f"{name}.tflite"
            detent.export(qmodel, file)
            # LiteRT's linear layers with 16-bit activations round by a rule that programs do not have.
            for runtime in ("tflite_micro", *(RUNTIMES if name.endswith("_8") else ())):
                found = verify(file, qmodel, images, runtime=runtime)
                print(f"{name}: {found}")
                failed |= not found.equal
            kind = "int16" if name.endswith("_16") else "int8"
            detent.export(qmodel, file, inputs=kind, outputs=kind)
            said = compile_for_ethos(venv / "bin" / "vela", file, Path(folder) / "vela")
            print(f"{name}: vela: {said}")
            failed |= not said.startswith("0 ")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
