"""Multiply-accumulates of a node, for the batch size its value is described with."""

from __future__ import annotations

import math

from torch import fx

from detent.graph.roles import argument, argument_names
from detent.graph.shapes import concrete_shape

__all__ = ["attention_macs", "conv_macs", "conv_transposed_macs", "einsum_macs", "linear_macs", "matmul_macs"]


def conv_macs(node: fx.Node) -> int:
    """Output elements times C_in / groups times the kernel's taps; kernel `[C_out, C_in / groups, k...]`."""
    return math.prod(concrete_shape(node)) * math.prod(concrete_shape(argument(node, "weight"))[1:])


def conv_transposed_macs(node: fx.Node) -> int:
    """Input elements times C_out / groups times the kernel's taps; kernel `[C_in, C_out / groups, k...]`."""
    return math.prod(concrete_shape(argument(node, "input"))) * math.prod(concrete_shape(argument(node, "weight"))[1:])


def linear_macs(node: fx.Node) -> int:
    """Output elements times input features; kernel `[C_out, C_in]`."""
    return math.prod(concrete_shape(node)) * concrete_shape(argument(node, "weight"))[-1]


def matmul_macs(node: fx.Node) -> int:
    """Output elements times the length of the summed axis, the last one of the left operand."""
    left = next(name for name in ("mat1", "batch1", "self") if name in argument_names(node))
    return math.prod(concrete_shape(node)) * concrete_shape(argument(node, left))[-1]


def attention_macs(node: fx.Node) -> int:
    """Scores and weighted values of scaled dot-product attention: `[..., L, S] x (E + Ev)`."""
    query, key, value = (concrete_shape(argument(node, name)) for name in ("query", "key", "value"))
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def einsum_macs(node: fx.Node) -> int:
    """Product of all index lengths of a two-operand einsum; zero for one operand."""
    operands = argument(node, "tensors")
    if len(operands) < 2:
        return 0
    equation = str(argument(node, "equation")).replace(" ", "").split("->")[0]
    lengths: dict[str, int] = {}
    for letters, operand in zip(equation.split(","), operands, strict=True):
        shape = concrete_shape(operand)
        head, dots, tail = letters.partition("...")
        for letter, length in zip(head, shape, strict=False):
            lengths[letter] = max(length, lengths.get(letter, 1))
        if dots:
            batch = shape[len(head) : len(shape) - len(tail)]
            for axis, length in enumerate(reversed(batch)):
                lengths[f"...{axis}"] = max(length, lengths.get(f"...{axis}", 1))
            for letter, length in zip(tail, shape[len(shape) - len(tail) :], strict=True):
                lengths[letter] = max(length, lengths.get(letter, 1))
    return math.prod(lengths.values()) * (len(operands) - 1)
