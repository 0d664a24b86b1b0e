"""Sony's quantization operators for ONNX's reference evaluator, written from what they are defined to compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

__all__ = ["evaluate", "threshold_shape"]


def threshold_shape(rank: int, axis: int, per_channel: int) -> list[int]:
    """Shape in which thresholds spread over a tensor."""
    return [-1 if per_channel and dim == axis else 1 for dim in range(rank)]


class ActivationPOTQuantizer(OpRun):
    op_domain = "mct_quantizers"

    def _run(self, x: Any, num_bits: int, signed: int, threshold: float, mctq_version: str) -> tuple[Any]:
        assert mctq_version
        assert np.frexp(threshold)[0] == 0.5
        step = threshold / 2 ** (num_bits - signed)
        low = -(2 ** (num_bits - 1)) if signed else 0
        codes = np.clip(np.rint(x / np.float32(step)), low, low + 2**num_bits - 1)
        return ((codes * np.float32(step)).astype(np.float32),)


class _Weights(OpRun):
    op_domain = "mct_quantizers"

    def _run(
        self,
        w: Any,
        threshold: Any,
        num_bits: int,
        signed: int,
        per_channel: int,
        channel_axis: int,
        mctq_version: str,
    ) -> tuple[Any]:
        assert signed
        assert mctq_version
        assert len(threshold) == (w.shape[channel_axis] if per_channel else 1)
        step = threshold.reshape(threshold_shape(w.ndim, channel_axis, per_channel)) / 2 ** (num_bits - 1)
        codes = np.clip(np.rint(w / step), -(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1)
        return ((codes * step).astype(np.float32),)


class WeightsSymmetricQuantizer(_Weights):
    pass


class WeightsPOTQuantizer(_Weights):
    pass


class _Codebook(OpRun):
    op_domain = "mct_quantizers"

    def _run(
        self,
        w: Any,
        table: Any,
        threshold: Any,
        num_bits: int,
        signed: int,
        per_channel: int,
        channel_axis: int,
        input_rank: int,
        lut_values_bitwidth: int,
        eps: float,
        mctq_version: str,
    ) -> tuple[Any]:
        assert signed
        assert mctq_version
        assert input_rank == w.ndim
        assert len(table) == 2**num_bits
        limit = threshold.reshape(threshold_shape(w.ndim, channel_axis, per_channel))
        whole = 2 ** (lut_values_bitwidth - 1)
        places = np.abs((w / (limit + np.float32(eps)) * whole)[..., None] - table).argmin(-1)
        return ((table[places] / np.float32(whole) * limit).astype(np.float32),)


class WeightsLUTSymmetricQuantizer(_Codebook):
    pass


class WeightsLUTPOTQuantizer(_Codebook):
    pass


def evaluate(path: Path, *inputs: np.ndarray) -> list[np.ndarray]:
    """Outputs of a file for the converter."""
    model = onnx.load(path)
    operators = [
        ActivationPOTQuantizer,
        WeightsSymmetricQuantizer,
        WeightsPOTQuantizer,
        WeightsLUTSymmetricQuantizer,
        WeightsLUTPOTQuantizer,
    ]
    session = ReferenceEvaluator(model, new_ops=operators)
    names = [value.name for value in model.graph.input]
    found: list[np.ndarray] = session.run(None, dict(zip(names, inputs, strict=True)))
    return found
