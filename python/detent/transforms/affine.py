"""Operators that give every channel a gain and a shift: evaluated batch norms, 1x1 depthwise layers, arithmetic.

And the layers behind them, whose kernels can take gain and shift in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import fx

from detent.graph.graph import Graph, GraphNode
from detent.graph.roles import argument, argument_names, op_name
from detent.graph.shapes import concrete_shape
from detent.transforms.edits import is_pointwise, kernel_is_shared, pads, per_axis, set_kernel

__all__ = [
    "RESTORED",
    "Affine",
    "absorb_affine",
    "arithmetic_affine",
    "kernel_obstacle",
    "norm_affine",
    "read_affine",
]

RESTORED: Final = "detent_restored"
"""Key of `fx.Node.meta`, true for a batch norm put together from arithmetic: its parameters are those of the sum and
product, not the mean and standard deviation of its output."""

_ARITHMETIC: Final = ("add", "sub", "rsub", "mul", "div")


@dataclass(frozen=True, eq=False)
class Affine:
    """`gain * x + shift` per channel.

    Args:
        source: x.
        axis: the axis of channels; None if one gain and one shift serve all, whichever axis that is.
        gain: float64 `[C]`, or `[1]` without an axis.
        shift: float64, of the same length.
    """

    source: fx.Node
    axis: int | None
    gain: torch.Tensor
    shift: torch.Tensor

    def after(self, first: Affine) -> Affine:
        """This one applied to the result of `first`; their axes agree, or one has none."""
        axis = first.axis if self.axis is None else self.axis
        gain, shift = self.gain * first.gain, self.gain * first.shift + self.shift
        return Affine(first.source, axis, gain, shift)


def read_affine(graph: Graph, item: GraphNode) -> Affine | None:
    """What an operator does to each channel, None if that is not one gain and one shift that are stored."""
    if item.op is None or not item.is_float:
        return None
    if item.op.name == "batch_norm":
        names = ("weight", "bias", "running_mean", "running_var")
        stored = all(value is None or value.op == "get_attr" for value in (argument(item.node, n) for n in names))
        return norm_affine(graph, item) if stored and not argument(item.node, "training") else None
    if item.kind == "conv":
        return _depthwise_affine(graph, item)
    return arithmetic_affine(graph, item)


def kernel_obstacle(graph: Graph, layer: GraphNode) -> str | None:
    """Why a layer with a stored kernel cannot get another kernel and bias, None if it can."""
    if kernel_is_shared(graph, layer):
        return f"the kernel of {layer.name} is also used elsewhere"
    if layer.bias is None and argument(layer.node, "bias") is not None:
        return f"the bias of {layer.name} is computed by the network"
    return None


def absorb_affine(graph: Graph, affine: Affine, layer: GraphNode) -> str | None:
    """Take gain and shift of its input channels into a convolution or linear layer: `W[o, i] s[i]`, `b + sum W t`.

    The layer goes on reading what it reads. A convolution that pads must not be given a shift.

    Returns:
        What is wrong with the result, in which case nothing is changed; None if it is in place.
    """
    assert layer.weight is not None
    weight = graph.tensor(layer.weight).detach().double()
    channels = weight.shape[1] * layer.groups
    # Outputs of group g read inputs g * C_in / groups onwards.
    spread = [t.expand(channels).reshape(layer.groups, 1, -1) for t in (affine.gain, affine.shift)]
    per_group = weight.reshape(layer.groups, -1, weight.shape[1], *weight.shape[2:])
    gain, shift = (t.reshape(*t.shape, *[1] * (weight.dim() - 2)) for t in spread)
    bias = None if layer.bias is None else graph.tensor(layer.bias).detach().double()
    if affine.shift.any():
        added = (per_group * shift).flatten(2).sum(2).flatten()
        bias = added if bias is None else bias + added
    return set_kernel(graph, layer, (per_group * gain).reshape(weight.shape), bias)


def norm_affine(graph: Graph, norm: GraphNode) -> Affine:
    """Gain `gamma / sqrt(var + eps)` and shift `beta - mean * gain` of an evaluated batch norm with stored values."""

    def read(name: str) -> torch.Tensor | None:
        node = argument(norm.node, name)
        return None if node is None else graph.tensor(node).detach().double()

    mean, var, gamma, beta = (read(n) for n in ("running_mean", "running_var", "weight", "bias"))
    assert mean is not None
    assert var is not None
    gain = torch.rsqrt(var + float(argument(norm.node, "eps")))
    gain = gain if gamma is None else gain * gamma
    shift = -mean * gain
    return Affine(norm.data[0], 1, gain, shift if beta is None else shift + beta)


def arithmetic_affine(graph: Graph, item: GraphNode) -> Affine | None:
    """Gain and shift of a sum, difference, product or quotient with a number or a stored tensor.

    A stored tensor has one entry, or one per channel along one axis that is not that of the samples.
    """
    if op_name(item.node) not in _ARITHMETIC or "rounding_mode" in argument_names(item.node):
        return None
    left, right = argument(item.node, "self"), argument(item.node, "other")
    source = next((x for x in (left, right) if isinstance(x, fx.Node) and x.op != "get_attr"), None)
    constant = right if source is left else left
    if source is None or concrete_shape(source) != item.shape or graph_dtype(source) != item.dtype:
        return None
    found = _constant(graph, item, constant)
    if found is None:
        return None
    axis, value = found
    pair = _gain_and_shift(item.node, value, reversed_=source is not left)
    return None if pair is None else Affine(source, axis, *pair)


def graph_dtype(node: fx.Node) -> torch.dtype:
    """Element type of a value."""
    dtype: torch.dtype = node.meta["val"].dtype
    return dtype


def _constant(graph: Graph, item: GraphNode, constant: Any) -> tuple[int | None, torch.Tensor] | None:
    if isinstance(constant, int | float) and not isinstance(constant, bool):
        return None, torch.tensor([float(constant)], dtype=torch.float64)
    if not (isinstance(constant, fx.Node) and constant.op == "get_attr"):
        return None
    tensor = graph.tensor(constant).detach()
    if not tensor.is_floating_point() or item.shape is None or tensor.dim() > len(item.shape):
        return None
    long = [axis for axis, size in enumerate(tensor.shape, len(item.shape) - tensor.dim()) if size != 1]
    if len(long) > 1 or (long and item.batch is not None and long[0] == item.batch.axis):
        return None
    return (long[0] if long else None), tensor.double().reshape(-1)


def _gain_and_shift(call: fx.Node, value: torch.Tensor, *, reversed_: bool) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Of `data op value`, or of `value op data` if reversed."""
    one, zero, name = torch.ones_like(value), torch.zeros_like(value), op_name(call)
    if name == "mul":
        return value, zero
    if name == "div":
        return None if reversed_ else (1 / value, zero)
    alpha = float(argument(call, "alpha")) if "alpha" in argument_names(call) else 1.0
    if name == "rsub":  # other - alpha * self
        name, reversed_ = "sub", not reversed_
    sign = -1.0 if name == "sub" else 1.0
    # `alpha` belongs to the second operand.
    return (sign * alpha * one, value) if reversed_ else (one, sign * alpha * value)


def _depthwise_affine(graph: Graph, layer: GraphNode) -> Affine | None:
    if layer.weight is None or (layer.bias is None and argument(layer.node, "bias") is not None):
        return None
    weight = graph.tensor(layer.weight).detach().double()
    if weight.shape[1] != 1 or layer.groups != len(weight) or not is_pointwise(layer) or pads(layer):
        return None
    if set(per_axis(layer, "stride")) != {1} or layer.channel_axis is None:
        return None
    gain = weight.flatten()
    shift = torch.zeros_like(gain) if layer.bias is None else graph.tensor(layer.bias).detach().double()
    return Affine(layer.data[0], layer.channel_axis, gain, shift)
