"""BrainChip's converter on files that detent wrote: does it take them, and does Akida compute the program's values?

Makes a virtual environment with `cnn2snn`, which brings TensorFlow, in a folder of its own or in `--venv`, writes files
with the Python that runs this script, converts them and compares their outputs, computed by Akida's software backend,
with those of integer programs. Prints whether the smaller virtual devices take them, too. Exits non-zero on failure.

    python tests/vendor/akida.py [--venv FOLDER] [--data FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import environment, versions

import detent

REQUIREMENTS = ("quantizeml==1.2.5", "cnn2snn==2.19.3", "akida==2.19.3")
CONVERT = """
import json, sys
import numpy as np
import onnx
import akida
import cnn2snn
path, images, values = sys.argv[1:]
want = np.load(values)
model = cnn2snn.convert(onnx.load(path))
got = np.asarray(model.predict(np.load(images)))
# Akida gives pictures with their channels last.
got = got.transpose(0, 3, 1, 2) if want.ndim == 4 else got.reshape(want.shape)
mapped = {}
for name in ("TwoNodesIPv2", "SixNodesIPv2"):
    try:
        model.map(getattr(akida, name)(), hw_only=True)
        mapped[name] = "mapped"
    except Exception as error:
        mapped[name] = str(error).splitlines()[0]
found = {"layers": len(model.layers), "values": int(want.size), "differing": int((got != want).sum()), "mapped": mapped}
print(json.dumps(found))
"""


def main() -> None:
    """Write, convert, compare; one line for each file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, help="virtual environment to make, or one made before")
    parser.add_argument("--data", type=Path, help="folder with checkpoints and images, see benchmarks/networks.py")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        tools = environment(options.venv or work / "venv", REQUIREMENTS)
        print(
            *versions(tools, ("akida", "cnn2snn", "quantizeml", "onnx", "tensorflow==")), f"torch {torch.__version__}"
        )
        failed = [
            name for name, qmodel, images in models(options.data) if not agrees(tools, work, name, qmodel, images)
        ]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def models(data: Path | None) -> Iterator[tuple[str, Any, torch.Tensor]]:
    """Name, quantized model, images."""
    from detent.demo.data import calibration_images, load_test
    from detent.demo.network import load_network

    for bits in (8, 4):
        qmodel = detent.quantize(
            load_network(), calibration_images(), target="akida2", weights_bits=bits, progress=False
        )
        yield f"digits_{bits}", qmodel, load_test().images
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from tests.exporters.test_akida import TAKEN, Net, images

    for name, ways in TAKEN.items():
        for signed in (False, True):
            torch.manual_seed(3)
            x = images(64, signed)
            qmodel = detent.quantize(Net(*ways).eval(), x, target="akida2", progress=False)
            yield f"{name}, {'signed' if signed else 'unsigned'} input", qmodel, x
    if data is not None:
        sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
        from networks import load_zoo

        zoo = load_zoo(data)
        # ResNet-20's shortcuts are slices with padding, which Akida has not.
        model = zoo.load("mobilenetv2")
        qmodel = detent.quantize(model, zoo.calibration(256, 64), target="akida2", progress=False)
        yield "mobilenetv2", qmodel, zoo.images("test")[0][:200]


def agrees(tools: Path, work: Path, name: str, qmodel: Any, images: torch.Tensor) -> bool:
    """Convert and compare one model, and tell."""
    paths = [str(work / file) for file in ("model.onnx", "images.npy", "values.npy")]
    detent.export(qmodel, paths[0], format="akida")
    (values,) = detent.lower(qmodel).run(images).outputs
    np.save(paths[1], images.numpy())
    np.save(paths[2], values)
    quiet = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    quiet.pop("PYTHONPATH", None)
    command = [tools / "bin" / "python", "-c", CONVERT, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=quiet)
    if done.returncode:
        print(f"{name}: the converter failed\n{done.stdout[-500:]}{done.stderr[-1000:]}", flush=True)
        return False
    found = json.loads(done.stdout.strip().splitlines()[-1])
    mapped = "; ".join(f"{device}: {result}" for device, result in found["mapped"].items())
    print(
        f"{name}: {found['layers']} layers, {found['differing']} of {found['values']} values differ; {mapped}",
        flush=True,
    )
    return bool(found["differing"] == 0)


if __name__ == "__main__":
    main()
