"""The words a target may use for operations: kinds, and within a kind the names of single operations."""

from __future__ import annotations

from typing import Final

__all__ = ["KINDS", "OP_NAMES", "kind_of"]

KINDS: Final[dict[str, tuple[str, ...]]] = {
    "activation": (
        *("celu", "clamp_max", "clamp_min", "elu", "gelu", "glu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh"),
        *("leaky_relu", "log_sigmoid", "mish", "prelu", "relu", "relu6", "rrelu", "selu", "sigmoid", "silu"),
        *("softplus", "softshrink", "tanh", "threshold"),
    ),
    "add": (),
    "attention": ("scaled_dot_product_attention",),
    "cat": ("stack",),
    "conv": ("conv1d", "conv2d", "conv3d", "convolution"),  # grouped and depthwise included
    "conv_transposed": ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    "div": (),
    "elementwise": ("abs", "cos", "erf", "exp", "log", "neg", "pow", "reciprocal", "rsqrt", "sin", "sqrt", "square"),
    "embedding": (),
    "linear": (),
    "matmul": ("addmm", "baddbmm", "bmm", "einsum", "mm"),
    "maximum": (),
    "mean": (),
    "minimum": (),
    "mul": (),
    "norm": ("batch_norm", "group_norm", "instance_norm", "layer_norm", "linalg_vector_norm", "rms_norm"),
    "pad": ("constant_pad_nd",),  # with zeros it keeps its input's grid everywhere
    "pool": ("avg_pool", "max_pool"),  # max pooling keeps its input's grid everywhere
    "resize": (  # nearest keeps its input's grid everywhere
        *("resize_nearest", "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d"),
        *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "grid_sampler", "grid_sampler_2d"),
    ),
    "softmax": ("log_softmax",),
    "sub": ("rsub",),
    "sum": (),
}
"""Kind of operation to the names of single operations of that kind, where a target may need to tell them apart."""

_KIND_BY_NAME: Final = {name: kind for kind, names in KINDS.items() for name in names}

OP_NAMES: Final[frozenset[str]] = frozenset(KINDS) | frozenset(_KIND_BY_NAME)


def kind_of(name: str) -> str | None:
    """The kind that a single operation belongs to; None for a kind itself."""
    return _KIND_BY_NAME.get(name)
