"""The table of op roles: importing this module fills `roles.OPS`. Adding an operator is one entry here.

Limits of activations are rounded outwards to five digits, so that a float32 result cannot leave them.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Final

from torch import fx

from detent.graph import macs
from detent.graph.roles import OpRole, argument, first_argument, register
from detent.graph.shifts import FILL

__all__ = ["BLOCKING"]

BLOCKING: Final = -1e4
"""Numbers up to this one stand for minus infinity where a mask puts them: their softmax is 0."""
SELU_SCALE: Final = 1.0507009873554805
SELU_ALPHA: Final = 1.6732632423543772


# ---- kernels -------------------------------------------------------------------------------------------------------
for _dim in (1, 2, 3):
    register(
        f"conv{_dim}d",
        OpRole(
            name=f"conv{_dim}d",
            kind="conv",
            data=("input",),
            weight="weight",
            bias="bias",
            channel_axis="spatial",
            macs=macs.conv_macs,
        ),
    )
    register(
        f"conv_transpose{_dim}d",
        OpRole(
            name=f"conv_transpose{_dim}d",
            kind="conv_transposed",
            data=("input",),
            weight="weight",
            bias="bias",
            weight_out_axis=1,
            weight_in_axis=0,
            channel_axis="spatial",
            macs=macs.conv_transposed_macs,
        ),
    )


def _convolution(node: fx.Node, role: OpRole) -> OpRole:
    # aten.convolution is what fully decomposed programs hold in place of conv1d/2d/3d and their transposed forms.
    if not argument(node, "transposed"):
        return role
    return replace(role, kind="conv_transposed", weight_out_axis=1, weight_in_axis=0, macs=macs.conv_transposed_macs)


register(
    "convolution",
    OpRole(
        name="convolution",
        kind="conv",
        data=("input",),
        weight="weight",
        bias="bias",
        channel_axis="spatial",
        macs=macs.conv_macs,
        refine=_convolution,
    ),
)
register(
    "linear",
    OpRole(
        name="linear",
        kind="linear",
        data=("input",),
        weight="weight",
        bias="bias",
        channel_axis=-1,
        macs=macs.linear_macs,
    ),
)


def _constant_operand(node: fx.Node, role: OpRole) -> OpRole:
    # A product with a stored matrix has a kernel: x @ W has outputs along W's last axis, W @ x along its rows.
    left, right = role.data
    for data, kernel, out_axis, in_axis in ((left, right, -1, -2), (right, left, -2, -1)):
        operand = argument(node, kernel)
        if isinstance(operand, fx.Node) and operand.op == "get_attr":
            return replace(
                role,
                data=(data,),
                weight=kernel,
                weight_out_axis=out_axis,
                weight_in_axis=in_axis,
                channel_axis=-1 if kernel == right else -2,
            )
    return role


for _name, _operands, _bias in (
    ("matmul", ("self", "other"), None),
    ("mm", ("self", "mat2"), None),
    ("bmm", ("self", "mat2"), None),
    ("addmm", ("mat1", "mat2"), "self"),
    ("baddbmm", ("batch1", "batch2"), "self"),
):
    register(
        _name,
        OpRole(
            name=_name,
            kind="matmul",
            data=_operands,
            bias=_bias,
            channel_axis=-1,
            macs=macs.matmul_macs,
            refine=_constant_operand,
        ),
    )
register("einsum", OpRole(name="einsum", kind="matmul", data=("tensors",), channel_axis=None, macs=macs.einsum_macs))
register(
    "scaled_dot_product_attention",
    OpRole(
        name="scaled_dot_product_attention",
        kind="attention",
        data=("query", "key", "value"),
        channel_axis=-1,
        macs=macs.attention_macs,
    ),
)
register(
    "embedding",
    OpRole(name="embedding", kind="embedding", data=("indices",), weight="weight", channel_axis=-1),
)

# ---- norms ---------------------------------------------------------------------------------------------------------
for _name in ("batch_norm", "group_norm", "instance_norm"):
    register(_name, OpRole(name=_name, kind="norm", data=("input",), channel_axis=1))
for _name in ("layer_norm", "rms_norm"):
    register(_name, OpRole(name=_name, kind="norm", data=("input",), channel_axis=-1))
for _name in ("linalg_vector_norm",):
    register(_name, OpRole(name=_name, kind="norm"))

# ---- arithmetic ----------------------------------------------------------------------------------------------------
for _name in ("add", "sub", "mul", "div"):
    register(_name, OpRole(name=_name, kind=_name, data=("self", "other")))
register("rsub", OpRole(name="rsub", kind="sub", data=("self", "other")))
for _name in ("maximum", "minimum"):
    register(_name, OpRole(name=_name, kind=_name, data=("self", "other")))
for _name in ("neg", "abs", "square", "sqrt", "rsqrt", "exp", "log", "pow", "reciprocal", "sin", "cos", "erf"):
    _bounds = {
        "abs": (0.0, inf),
        "square": (0.0, inf),
        "sqrt": (0.0, inf),
        "rsqrt": (0.0, inf),
        "exp": (0.0, inf),
        "sin": (-1.0, 1.0),
        "cos": (-1.0, 1.0),
        "erf": (-1.0, 1.0),
    }.get(_name, (-inf, inf))
    register(_name, OpRole(name=_name, kind="elementwise", bounds=_bounds))
register("cat", OpRole(name="cat", kind="cat", data=("tensors",)))
register("concat", OpRole(name="cat", kind="cat", data=("tensors",)))
register("concatenate", OpRole(name="cat", kind="cat", data=("tensors",)))
register("stack", OpRole(name="stack", kind="cat", data=("tensors",), channel_axis=None))

# ---- activations ---------------------------------------------------------------------------------------------------
_ACTIVATIONS: Final[dict[str, tuple[float, float]]] = {
    "relu": (0.0, inf),
    "relu6": (0.0, 6.0),
    "leaky_relu": (-inf, inf),
    "prelu": (-inf, inf),
    "rrelu": (-inf, inf),
    "sigmoid": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "silu": (-0.27847, inf),
    "gelu": (-0.17005, inf),
    "hardswish": (-0.375, inf),
    "mish": (-0.30885, inf),
    "softplus": (0.0, inf),
    "log_sigmoid": (-inf, 0.0),
    "hardshrink": (-inf, inf),
    "softshrink": (-inf, inf),
    "selu": (-SELU_SCALE * SELU_ALPHA - 1e-5, inf),
    "threshold": (-inf, inf),
    "glu": (-inf, inf),
}
for _name, _bounds in _ACTIVATIONS.items():
    register(
        _name,
        OpRole(name=_name, kind="activation", bounds=_bounds, channel_axis=None if _name == "glu" else "same"),
    )


def _negative_limit(node: fx.Node, role: OpRole) -> OpRole:
    alpha = float(argument(node, "alpha"))
    scale = float(argument(node, "scale")) if role.name == "elu" else 1.0
    return replace(role, bounds=(-abs(alpha) * scale, inf))


register("elu", OpRole(name="elu", kind="activation", refine=_negative_limit))
register("celu", OpRole(name="celu", kind="activation", refine=_negative_limit))


def _clamp(node: fx.Node, role: OpRole) -> OpRole | None:
    names = ("min_val", "max_val") if role.name == "hardtanh" else ("min", "max")
    given = [argument(node, name) for name in names]
    if all(limit is None or (isinstance(limit, fx.Node) and limit.op == "get_attr") for limit in given):
        # Stored limits, one per channel: equalization makes them of ReLU6. Fused like any other clamp.
        return replace(role, name="hardtanh")
    if any(isinstance(limit, fx.Node) for limit in given):
        return role
    lower = -inf if given[0] is None else float(given[0])
    upper = inf if given[1] is None else float(given[1])
    name = {(0.0, 6.0): "relu6", (0.0, inf): "relu"}.get((lower, upper), "hardtanh")
    return replace(role, name=name, bounds=(lower, upper))


for _name in ("hardtanh", "clamp", "clip"):
    register(_name, OpRole(name=_name, kind="activation", refine=_clamp))
register("clamp_min", OpRole(name="clamp_min", kind="activation"))
register("clamp_max", OpRole(name="clamp_max", kind="activation"))
for _name in ("softmax", "_softmax", "_safe_softmax"):
    register(_name, OpRole(name="softmax", kind="softmax", bounds=(0.0, 1.0)))
for _name in ("log_softmax", "_log_softmax"):
    register(_name, OpRole(name="log_softmax", kind="softmax", bounds=(-inf, 0.0)))

# ---- pooling, reductions, resizing ---------------------------------------------------------------------------------
for _dim in (1, 2, 3):
    register(f"avg_pool{_dim}d", OpRole(name="avg_pool", kind="pool"))
    register(f"adaptive_avg_pool{_dim}d", OpRole(name="avg_pool", kind="pool"))
    for _name in (f"max_pool{_dim}d", f"max_pool{_dim}d_with_indices", f"adaptive_max_pool{_dim}d"):
        register(_name, OpRole(name="max_pool", kind="pool", preserving=True))
for _name in ("_adaptive_avg_pool2d", "_adaptive_avg_pool3d"):
    register(_name, OpRole(name="avg_pool", kind="pool"))
register("mean", OpRole(name="mean", kind="mean", channel_axis="reduced"))
register("sum", OpRole(name="sum", kind="sum", channel_axis="reduced"))
for _name in ("amax", "amin", "max", "min"):
    register(_name, OpRole(name=_name, kind="preserving", preserving=True, channel_axis="reduced"))
for _name in ("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact2d"):
    register(_name, OpRole(name="resize_nearest", kind="resize", preserving=True))
for _name in ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d"):
    register(_name, OpRole(name=_name, kind="resize"))
for _name in ("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "grid_sampler", "grid_sampler_2d"):
    register(_name, OpRole(name=_name, kind="resize"))


def _pad(node: fx.Node, role: OpRole) -> OpRole:
    # Zero is on every grid, and so is what stands for it in a shifted value; any other filling is a value of its own.
    constant = role.name == "constant_pad_nd" or argument(node, "mode") == "constant"
    value = argument(node, "value") if constant else 0
    return replace(role, preserving=value is None or value == 0 or FILL in node.meta)


register("pad", OpRole(name="pad", kind="pad", refine=_pad))
register("constant_pad_nd", OpRole(name="constant_pad_nd", kind="pad", refine=_pad))
for _dim in (1, 2, 3):
    for _name in (f"reflection_pad{_dim}d", f"replication_pad{_dim}d"):
        register(_name, OpRole(name=_name, kind="pad", preserving=True))

# ---- moving values without changing them ---------------------------------------------------------------------------
for _name in (
    *(
        "reshape",
        "view",
        "_unsafe_view",
        "flatten",
        "unflatten",
        "ravel",
        "squeeze",
        "unsqueeze",
        "expand",
        "expand_as",
    ),
    *("permute", "transpose", "t", "movedim", "moveaxis", "swapaxes", "swapdims", "numpy_T", "mT", "adjoint"),
    *("slice", "select", "narrow", "index_select", "gather", "index", "take_along_dim", "diagonal"),
    *("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_chunk", "unsafe_split", "unbind"),
    *("repeat", "tile", "repeat_interleave", "flip", "roll", "rot90", "unfold", "im2col", "broadcast_to"),
    *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle"),
    *("contiguous", "clone", "alias", "detach", "lift_fresh_copy", "view_as", "reshape_as"),
):
    register(_name, OpRole(name=_name, kind="preserving", preserving=True, channel_axis="moved"))


def _mask(node: fx.Node, role: OpRole) -> OpRole | None:
    # Zero is on every grid. A number that no grid should reach blocks a position of the softmax that follows: the
    # others stay on the operand's grid, and this one stays what it is.
    filling = float(argument(node, "other" if role.name == "where" else "value"))
    return role if filling == 0 or filling <= BLOCKING else None


register(
    "where.ScalarOther",
    OpRole(name="where", kind="preserving", data=("self",), preserving=True, channel_axis=None, refine=_mask),
)
register("masked_fill.Scalar", OpRole(name="masked_fill", kind="preserving", preserving=True, refine=_mask))


def _identity_when_evaluating(node: fx.Node, role: OpRole) -> OpRole | None:
    return None if argument(node, "train") else role


for _name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"):
    register(
        _name,
        OpRole(name="dropout", kind="preserving", preserving=True, refine=_identity_when_evaluating),
    )


def _same_type(node: fx.Node, role: OpRole) -> OpRole | None:
    source = first_argument(node)
    before, after = source.meta.get("val"), node.meta.get("val")
    return role if before is not None and after is not None and before.dtype == after.dtype else None


for _name in ("to", "_to_copy", "type_as"):
    register(_name, OpRole(name="to", kind="preserving", preserving=True, refine=_same_type))
