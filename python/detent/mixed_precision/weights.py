"""Memory of what is stored: kernels by code width, and all that has no width to choose."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from torch import fx

from detent.graph.graph import Graph
from detent.graph.placement import Placement, WeightPoint
from detent.graph.shapes import concrete_shape, is_tensor, value_of
from detent.mixed_precision.slots import FLOAT_BITS
from detent.targets import Target

__all__ = ["KernelMemory", "fixed_bits", "kernel_memories"]

_STEP_BITS: Final = 32
_CODEBOOK_ENTRY_BITS: Final = 8


@dataclass(frozen=True, kw_only=True)
class KernelMemory:
    """Size of a kernel, by code width.

    Args:
        layer: the name it goes by in plans.
        parameter: its path in the module.
        elements: how many numbers it holds.
        channels: output channels.
        multiples: code width to the number that output channels are padded to in memory; others are not padded.
        steps: float32 steps stored with it; 0 where steps are not counted.
    """

    layer: str
    parameter: str
    elements: int
    channels: int
    multiples: Mapping[int, int] = field(default_factory=dict)
    steps: int = 0

    def padded(self, bits: int) -> int:
        """Elements with those that pad it at a code width."""
        multiple = self.multiples.get(bits, 1)
        return self.elements // self.channels * (-(-self.channels // multiple) * multiple)

    def bytes(self, bits: int, *, codebooks: int = 0) -> float:
        """Size in bytes, a multiple of 1/8.

        Args:
            bits: code width; 32 for a kernel in float, which has no steps and is not padded.
            codebooks: tables of `2^bits` values of 8 bits stored with it: one, or one for each channel.
        """
        if bits == FLOAT_BITS:
            return self.elements * FLOAT_BITS / 8
        tables = codebooks * (1 << bits) * _CODEBOOK_ENTRY_BITS if codebooks else 0
        return (self.padded(bits) * bits + tables + self.steps * _STEP_BITS) / 8


def kernel_memories(
    graph: Graph, placement: Placement, target: Target, *, count_steps: bool = False
) -> dict[str, KernelMemory]:
    """The kernels that are quantized on a target, by layer; one that layers share is there once.

    Args:
        graph: the captured network.
        placement: where its grids go.
        target: it says what channels are padded to.
        count_steps: whether kernels bring their float32 steps along: one for each channel that has its own.
    """
    found = {}
    for layer, point in placement.weights.items():
        elements, channels = _sizes(graph, point)
        found[layer] = KernelMemory(
            layer=layer,
            parameter=point.parameter,
            elements=elements,
            channels=channels,
            multiples=dict(target.channel_multiples),
            steps=(1 if point.axis is None else channels) if count_steps else 0,
        )
    return found


def _sizes(graph: Graph, point: WeightPoint) -> tuple[int, int]:
    """Elements and output channels of a kernel."""
    node = graph.find(point.layer)
    assert node.weight is not None
    shape = concrete_shape(node.weight)
    channels = shape[node.weight_axes[0]]
    if node.kind == "conv_transposed":
        channels *= node.groups  # the kernel's axis holds the channels of one group
    return math.prod(shape), channels


def fixed_bits(graph: Graph, placement: Placement) -> int:
    """Bits of all stored tensors but the quantized kernels: biases, constants, norms, kernels in float.

    A float counts 32 bits, as does the code of a bias; other types count what they have. A kernel that something else
    reads too is stored for that in float once more.
    """
    quantized = {(point.parameter, user) for point in placement.weights.values() for user in point.users}
    tensors: dict[int, fx.Node] = {}
    for node in graph.module.graph.nodes:
        if node.op != "get_attr" or not is_tensor(node):
            continue
        for user in node.users:
            name = graph.name_of(user)
            as_kernel = (str(node.target), name) in quantized and graph.find(name).weight is node
            if not as_kernel:
                tensors[id(graph.tensor(node))] = node
    return sum(math.prod(concrete_shape(node)) * _stored_bits(node) for node in tensors.values())


def _stored_bits(node: fx.Node) -> int:
    dtype = value_of(node).dtype
    return FLOAT_BITS if dtype.is_floating_point else 8 * int(dtype.itemsize)
