"""Multiply-accumulates (MACs) of each layer for one sample, and which tensors they multiply.

A layer with a kernel multiplies it by one computed value; a product of two computed values (attention, `bmm`) has two.
Counted is what the definition of the operator sums, padding included: outputs times the taps of the kernel, and for
transposed convolutions, where each input meets all taps, inputs times taps.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from detent.graph.graph import Graph, GraphNode
from detent.graph.placement import Placement
from detent.graph.roles import argument
from detent.graph.shapes import concrete_shape
from detent.mixed_precision.slots import Slots, layouts_known, per_sample

__all__ = ["Product", "products"]


@dataclass(frozen=True, kw_only=True)
class Product:
    """Multiplications of one layer.

    Bit operations are the MACs times the width of one factor times that of the other; a factor that is not quantized
    counts 32 bits.

    Args:
        layer: name of the operation.
        macs: multiply-accumulates of one sample.
        kernel: the layer whose name a quantized kernel goes by in a plan, another one where layers share it; None for
            a kernel in float and for products of two computed values.
        inputs: owner of the grid of each computed factor, None for one in float: one entry beside a kernel, else two.
    """

    layer: str
    macs: int
    kernel: str | None
    inputs: tuple[str | None, ...]


def products(graph: Graph, placement: Placement, slots: Slots) -> tuple[Product, ...]:
    """All multiplications of a network's kernels and matrix products, in execution order."""
    kernels = {user: layer for layer, point in placement.weights.items() for user in point.users}
    known = layouts_known(graph)
    found: list[Product] = []
    for node in graph.nodes():
        if node.op is None or node.op.macs is None:
            continue
        count = per_sample(node, node.op.macs(node.node), known)
        if not count:
            continue
        factors = tuple(slots.of(value) for value in node.data)
        if node.weight is not None:
            found.append(Product(layer=node.name, macs=count, kernel=kernels.get(node.name), inputs=factors[:1]))
        elif node.kind == "attention":
            found += _attention(node, count, factors)
        else:
            found += _chain(node, count, factors)
    return tuple(found)


def _attention(node: GraphNode, count: int, factors: tuple[str | None, ...]) -> list[Product]:
    """Queries by keys, then their softmax, which stays inside the operator and is in float, by values."""
    query, key, value = factors[:3]
    width, depth = (concrete_shape(_argument(node, name))[-1] for name in ("query", "value"))
    scores = count * width // (width + depth)
    return [
        Product(layer=node.name, macs=scores, kernel=None, inputs=(query, key)),
        Product(layer=node.name, macs=count - scores, kernel=None, inputs=(None, value)),
    ]


def _chain(node: GraphNode, count: int, factors: tuple[str | None, ...]) -> list[Product]:
    """A product of two values; of more (`einsum`) one after the other, with what is in between in float."""
    steps = max(len(factors) - 1, 1)
    lefts = (factors[0], *(None,) * (steps - 1))
    return [
        Product(layer=node.name, macs=count // steps, kernel=None, inputs=(left, right))
        for left, right in zip(lefts, factors[1:], strict=True)
    ]


def _argument(node: GraphNode, name: str) -> fx.Node:
    value = argument(node.node, name)
    assert isinstance(value, fx.Node)
    return value
