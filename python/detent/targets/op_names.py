"""The words a target may use for operations: kinds of operation, and single activation functions."""

from __future__ import annotations

from typing import Final

__all__ = ["ACTIVATION_NAMES", "KIND_NAMES", "OP_NAMES"]

KIND_NAMES: Final[frozenset[str]] = frozenset(
    {
        "activation",  # any of ACTIVATION_NAMES
        "add",
        "attention",  # scaled dot product attention
        "cat",  # concatenation and stacking
        "conv",  # 1-d to 3-d, grouped and depthwise included
        "conv_transposed",
        "div",
        "embedding",
        "linear",  # a matrix product with a constant kernel
        "matmul",  # a matrix product of two computed values
        "mean",  # mean and sum over axes
        "mul",
        "norm",  # batch, layer, group, instance and RMS normalization
        "pad",
        "pool",  # average pooling; max pooling keeps its input's grid everywhere
        "resize",  # interpolation other than nearest
        "softmax",
        "sub",
    }
)

ACTIVATION_NAMES: Final[frozenset[str]] = frozenset(
    {
        "celu",
        "elu",
        "gelu",
        "hardsigmoid",
        "hardswish",
        "hardtanh",
        "leaky_relu",
        "log_sigmoid",
        "mish",
        "prelu",
        "relu",
        "relu6",
        "selu",
        "sigmoid",
        "silu",
        "softplus",
        "tanh",
    }
)

OP_NAMES: Final[frozenset[str]] = KIND_NAMES | ACTIVATION_NAMES
