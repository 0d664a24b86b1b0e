"""Runs in the environment that `qualcomm.py` makes: AIMET's reader of encodings, and the emulator of the HTP.

    python qualcomm_runtimes.py FOLDER

For each folder below with `inputs.npz` it writes `aimet.json` (values that differ, by version of the encodings) and
`htp.npz` (every tapped value), or `htp.txt` with the reason where the emulator does not take the file.
"""

from __future__ import annotations

import json
import logging
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxruntime_qnn
from aimet_onnx import encodings_to_onnx_qdq

VERSIONS = ("0.6.1", "1.0.0", "2.0.0")
PACKAGES = ("onnxruntime", "onnxruntime-qnn", "aimet-onnx", "onnx")


def cpu_session(model: bytes) -> Any:
    """Each operator as written: no optimization could hide a difference, or make one."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def htp_session(model: bytes) -> Any:
    """Wholly on the emulated HTP, or not at all."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == "qnn"]
    options.add_provider_for_devices(devices[:1], {"backend_path": onnxruntime_qnn.get_qnn_htp_path()})
    return onnxruntime.InferenceSession(model, options)


def differences(folder: Path, feeds: dict[str, np.ndarray], taps: dict[str, str]) -> dict[str, dict[str, int]]:
    """Entries of all quantized values, and how many of them differ from those of our own QDQ file."""
    # Values that our file only moves, and quantizes for the HTP, are not in the plan.
    taps = {name: tap for name, tap in taps.items() if not name.endswith("_moved")}
    ours = run(cpu_session((folder / "tapped.onnx").read_bytes()), feeds, list(taps.values()))
    found = {}
    for name in VERSIONS:
        encodings = folder / f"{name}.encodings"
        if encodings.exists():
            model = encodings_to_onnx_qdq(
                str(encodings.with_suffix(".onnx")), str(encodings), prequantize_constants=True
            )
            ends = {value.name for value in model.graph.output}
            names = [name if name in ends else f"{name}_qdq" for name in taps]
            model.graph.output.extend(
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
                for name in names
                if name not in ends
            )
            theirs = run(cpu_session(model.SerializeToString()), feeds, names)
            pairs = list(zip(ours, theirs, strict=True))
            found[name] = {
                "values": sum(mine.size for mine, _ in pairs),
                "differ": sum(int((mine != other).sum()) for mine, other in pairs),
            }
    return found


def run(session: Any, feeds: dict[str, np.ndarray], names: list[str] | None = None) -> list[np.ndarray]:
    """Outputs for samples one by one, `[samples, ...]`."""
    samples = len(next(iter(feeds.values())))
    rows = [
        session.run(names, {name: value[place : place + 1] for name, value in feeds.items()})
        for place in range(samples)
    ]
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


def main() -> None:
    """Run what lies in the folder."""
    root = Path(sys.argv[1])
    logging.disable(logging.INFO)
    onnxruntime.register_execution_provider_library("qnn", onnxruntime_qnn.get_library_path())
    (root / "versions.json").write_text(json.dumps({name: version(name) for name in PACKAGES}))
    for inputs in sorted(root.glob("*/inputs.npz")):
        folder = inputs.parent
        feeds = dict(np.load(inputs))
        taps = json.loads((folder / "taps.json").read_text())
        (folder / "aimet.json").write_text(json.dumps(differences(folder, feeds, taps)))
        try:
            session = htp_session((folder / "tapped.onnx").read_bytes())
        except Exception as error:  # noqa: BLE001 (onnxruntime raises its own kinds)
            (folder / "htp.txt").write_text(str(error))
            continue
        found = run(session, feeds, list(taps.values()))
        np.savez(folder / "htp.npz", **{str(place): value for place, value in enumerate(found)})


if __name__ == "__main__":
    main()
