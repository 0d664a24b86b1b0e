"""OpenVINO reads exported ONNX files: the codes of every tensor against those of the integer executor.

    python tests/vendor/openvino.py [--venv FOLDER] [--data FOLDER]

OpenVINO is installed into a virtual environment of its own. With `--data`, trained networks are compared too, as in
`benchmarks/networks.py`. A difference is handed on to all tensors behind it, where it may grow, so the largest one is
printed and not judged: the check fails where more than one code in twenty of a tensor differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("openvino==2026.4.1", "onnx", "numpy")
LARGEST_PART = 1 / 20
"""Of the codes of a tensor, that may differ."""


def compare(folder: Path) -> None:
    """Run in the virtual environment: every file of the folder, with all codes as outputs."""
    import onnx
    import openvino

    core, rates = openvino.Core(), {}
    for path in sorted(folder.glob("*.onnx")):
        wanted = np.load(path.with_suffix(".npz"))
        proto = onnx.load(path)
        names = [name for node in proto.graph.node for name in node.output if name.endswith("_quantized")]
        proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
        model = core.compile_model(
            core.read_model(proto.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        found = model([wanted["input"]])
        kinds: dict[str, int] = {}
        for node in model.get_runtime_model().get_ops():
            kind = str(node.get_rt_info()["primitiveType"].astype(str))
            kinds[kind] = kinds.get(kind, 0) + 1
        tensors = {}
        for name in names:
            stem = name.removesuffix("_quantized")
            key = stem if stem in wanted else f"{stem}_codes"
            distance = np.abs(found[name].astype(np.int64) - wanted[key].astype(np.int64))
            tensors[stem] = {"off": int((distance > 0).sum()), "of": distance.size, "largest": int(distance.max())}
        rates[path.stem] = {"tensors": tensors, "kernels": {name: n for name, n in kinds.items() if "I8" in name}}
    versions = {"openvino": openvino.__version__, "onnx": onnx.__version__, "numpy": np.__version__}
    print(json.dumps({"versions": versions, "networks": rates}))


def write_cases(folder: Path, data: Path | None) -> None:
    """Files of quantized networks, each beside its input and the codes of the integer executor."""
    import torch

    import detent

    for name, model, calibration, images in networks(data):
        for widths, options in (("w8a8", {}), ("w4a8", {"weights_bits": 4})):
            qmodel = detent.quantize(model, calibration, target="onnxruntime", progress=False, **options)
            detent.export(qmodel, folder / f"{name}_{widths}.onnx", dialect="openvino")
            codes = detent.lower(qmodel).run(images, all_tensors=True).codes
            np.savez(folder / f"{name}_{widths}.npz", input=torch.as_tensor(images).numpy(), **codes)


def networks(data: Path | None) -> Iterator[tuple[str, Any, Any, Any]]:
    """Name, network, calibration data and test images."""
    import torch

    from detent.demo.data import calibration_images, load_test
    from detent.demo.network import load_network

    yield "digits", load_network(), calibration_images(), load_test()[0][:64]
    from tests.models import MODELS, build

    for name in ("conv_chain", "residual", "mobile"):
        torch.manual_seed(0)
        (x,) = MODELS[name].inputs(64)
        yield name, build(name), [x], x
    if data is not None:
        from networks import NETWORKS, load_zoo

        zoo = load_zoo(data)
        for name in NETWORKS:
            yield name, zoo.load(name), zoo.calibration(256, 64), zoo.images("test")[0][:32]


def print_rates(found: dict[str, Any]) -> int:
    """Print a line for each network; returns how many tensors are too far off."""
    print(", ".join(f"{name} {version}" for name, version in found["versions"].items()))
    bad = 0
    for network, result in found["networks"].items():
        tensors = result["tensors"].values()
        off, total = (sum(one[key] for one in tensors) for key in ("off", "of"))
        largest = max(one["largest"] for one in tensors)
        worst = max(result["tensors"], key=lambda name: result["tensors"][name]["off"] / result["tensors"][name]["of"])
        part = result["tensors"][worst]["off"] / result["tensors"][worst]["of"]
        bad += sum(one["off"] > LARGEST_PART * one["of"] for one in tensors)
        kernels = (
            ", ".join(f"{count} {name}" for name, count in sorted(result["kernels"].items())) or "none in integers"
        )
        print(
            f"{network}: {off} of {total} codes in {len(tensors)} tensors differ, by {largest} at most; "
            f"{worst}: {part:.4%}; kernels: {kernels}"
        )
    return bad


def main() -> None:
    """Write the cases, compare them in the virtual environment, print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--venv", type=Path, help="folder of the virtual environment, made if it is not there")
    parser.add_argument("--data", type=Path, help="folder with trained networks and images")
    parser.add_argument("--compare", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compare is not None:
        compare(options.compare)
        return
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    with tempfile.TemporaryDirectory() as scratch:
        venv = options.venv or Path(scratch) / "venv"
        if not (venv / "bin" / "python").exists():
            subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        python = str(venv / "bin" / "python")
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        cases = Path(scratch) / "cases"
        cases.mkdir()
        write_cases(cases, options.data)
        command = [python, "-P", str(Path(__file__).resolve()), "--compare", str(cases)]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        bad = print_rates(json.loads(answer.splitlines()[-1]))
    if bad:
        sys.exit(f"{bad} tensors are further off than rounding explains")


if __name__ == "__main__":
    main()
