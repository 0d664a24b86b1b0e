"""Kernels and biases of an integer program as TensorFlow Lite stores them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from detent.errors import UnsupportedOpError
from detent.exporters.tflite_file import FlatFile, Tensor
from detent.integer.operations import Convolution, LinearLayer

__all__ = ["add_bias", "add_kernel"]

Layer = Convolution | LinearLayer


def add_kernel(file: FlatFile, layer: Layer, *, depthwise: bool = False, turned: bool = False) -> int:
    """The number of a layer's kernel: `[outputs, height, width, inputs]`, `[1, height, width, outputs]` where each
    output has one input, `[outputs, inputs]` of a linear layer.

    Args:
        file: it goes into.
        layer: it belongs to.
        depthwise: each output has one input.
        turned: rows and columns in reverse, as transposed convolutions have them.

    Raises:
        UnsupportedOpError: codes that TensorFlow Lite's kernels do not take, or take and get wrong.
    """
    codes, axis = layer.kernel, 0
    if codes.ndim == 4:
        codes = codes[:, :, ::-1, ::-1] if turned else codes
        codes = codes.transpose(1, 2, 3, 0) if depthwise else codes.transpose(0, 2, 3, 1)
        axis = 3 if depthwise else 0
    narrow = layer.bits <= 4
    _check(layer, narrow=narrow)
    dense = np.ascontiguousarray(codes).astype(np.int8)
    return file.add(
        Tensor(
            name=f"{layer.output}/kernel",
            shape=dense.shape,
            dtype="int4" if narrow else "int8",
            data=_packed(dense) if narrow else dense.tobytes(),
            scales=layer.scales,
            zero_points=np.zeros(layer.scales.shape, np.int64),
            axis=axis if layer.scales.size > 1 else 0,
        )
    )


def _check(layer: Layer, *, narrow: bool) -> None:
    lowest, highest = int(layer.kernel.min(initial=0)), int(layer.kernel.max(initial=0))
    if lowest < -127 or highest > 127:
        raise UnsupportedOpError(
            f"codes of its kernel reach {lowest}..{highest}, and TensorFlow Lite's are -127..127",
            remedy="quantize for target 'tflite', whose kernels are narrow",
        )
    wide = layer.source.dtype.itemsize > 1
    if narrow and wide:
        # LiteRT computes depthwise convolutions of these two wrong without a word.
        raise UnsupportedOpError(
            "TensorFlow Lite's kernels do not take 4-bit weights with 16-bit activations",
            remedy="give this layer 8-bit weights or 8-bit activations",
        )
    if narrow and isinstance(layer, LinearLayer) and layer.scales.size > 1:
        raise UnsupportedOpError(
            "FULLY_CONNECTED takes 4-bit weights with one scale for the tensor only",
            remedy="give this layer 8-bit weights, or a per-tensor grid",
        )


def _packed(codes: npt.NDArray[np.int8]) -> bytes:
    """Two codes of 4 bits a byte, the first one in the lower half."""
    flat = codes.reshape(-1).view(np.uint8) & 15
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return (flat[::2] | (flat[1::2] << 4)).astype(np.uint8).tobytes()


def add_bias(file: FlatFile, layer: Layer) -> int:
    """The number of a layer's bias: 32 bits, 64 where activations have 16.

    Raises:
        UnsupportedOpError: it does not fit.
    """
    wide = layer.source.dtype.itemsize > 1
    dtype: Any = np.int64 if wide else np.int32
    ends = np.iinfo(dtype)
    if layer.bias.size and not ends.min <= int(layer.bias.min()) <= int(layer.bias.max()) <= ends.max:
        raise UnsupportedOpError("codes of its bias do not fit 32 bits", remedy="give this layer a coarser grid")
    scales = (np.float32(layer.source.scale) * layer.scales).astype(np.float32)
    return file.add(
        Tensor(
            name=f"{layer.output}/bias",
            shape=layer.bias.shape,
            dtype="int64" if wide else "int32",
            data=layer.bias.astype(dtype).tobytes(),
            scales=scales,
            zero_points=np.zeros(scales.shape, np.int64),
        )
    )
