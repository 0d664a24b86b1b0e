"""The rules of OpenVINO for QDQ files."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from detent.config import Preprocessing
from detent.errors import ExportError
from detent.exporters.onnx_quantized import QdqGraph

__all__ = ["check_openvino"]

_TIE = 1e-4
"""Part of a step within which float arithmetic may fall on either side of a tie."""


def check_openvino(qdq: QdqGraph) -> list[str]:
    """Refuse what OpenVINO drops or does not read.

    Raises:
        ExportError: 16-bit activations, whose quantizers it removes with their clipping, or 2-bit codes.
    """
    notes = ["openvino: set the hint INFERENCE_PRECISION_HINT to f32, or layers may run in bfloat16"]
    for value in qdq.values():
        if value.dtype in ("int2", "uint2"):
            raise ExportError("OpenVINO does not read 2-bit codes", where=value.where, remedy="store them in 4 bits")
        if not value.stored and value.dtype in ("int16", "uint16"):
            raise ExportError(
                "OpenVINO removes quantizers of 16-bit activations, and values are no longer clipped",
                where=value.where,
                remedy="use 8 bits here, or keep this activation in float",
            )
        record = qdq.qmodel.preprocessing.get(value.name)
        if record is not None and record.samplewise == "none" and not value.scale.ndim:
            pixels = np.concatenate(list(_pixels(record)) or [np.empty(0)])
            places = pixels / float(value.scale)
            ties = int(np.sum(np.abs(places - np.floor(places) - 0.5) < _TIE))
            if ties:
                notes.append(
                    f"openvino rounds ties of inputs otherwise, and {ties} of the {pixels.size} values that "
                    f"{value.name!r} takes lie on one: choose another threshold for this input"
                )
    return notes


def _pixels(record: Preprocessing) -> Iterator[npt.NDArray[np.float64]]:
    """What raw integers become in each channel; nothing where raw values are floats."""
    if not np.issubdtype(np.dtype(record.dtype), np.integer):
        return
    info = np.iinfo(record.dtype)
    low, high = record.range or (info.min, info.max)
    raw = np.arange(int(low), int(high) + 1, dtype=np.float64) * record.scale
    means, stds = record.mean or (0.0,), record.std or (1.0,)
    for channel in range(max(len(means), len(stds))):
        yield (raw - means[channel % len(means)]) / stds[channel % len(stds)]
