"""Puts norms that are written out as arithmetic back together; the float function stays the same."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import fx

from detent.graph.graph import Graph, GraphNode
from detent.graph.roles import argument
from detent.graph.tensors import add_tensor, free_path
from detent.transforms.affine import RESTORED, Affine, arithmetic_affine
from detent.transforms.edits import FOLDED_NORM, finish, is_read_once, kernel_is_shared, producer, set_kernel

__all__ = ["restore_norms"]


def restore_norms(graph: Graph) -> Graph:
    """A new graph in which chains of sums, differences, products and quotients by constants are one batch norm each.

    `(x - mean) * rsqrt(var + eps) * gamma + beta`, in any order and with any of its parts missing, is one gain and one
    shift per channel (axis 1), so it becomes one evaluated batch norm, computed in float64 and rounded once, which
    `fold_batch_norm` and `fold_forward` then fold. So does a single such operator right after a convolution or linear
    layer. Along the last axis of `[N, ..., C]`, where a batch norm has no channels, a chain after a linear layer goes
    into its kernel at once. Functional batch norms need nothing: capture shows them as what they are.

    Args:
        graph: any captured network.
    """
    restored = graph.copy()
    done: list[str] = []
    cache: dict[tuple[str, bytes, bytes], list[fx.Node]] = {}
    # A chain may start from the result of an earlier one, which is replaced after it.
    for chain in reversed(_chains(restored)):
        first, last = chain.items[0].name, chain.items[-1].name
        name = last if len(chain.items) == 1 else f"{first} to {last}"
        layer = _layer_before(restored, chain)
        reason: str | None
        if chain.affine.axis == 1 and (layer is not None or (chain.per_channel and len(chain.items) > 1)):
            reason = _replace(restored, chain, cache)
        elif layer is not None and layer.kind == "linear" and chain.affine.axis == layer.channel_axis:
            reason = _fold_into(restored, chain, layer)
        else:
            continue
        if reason is None:
            done.append(name)
        else:
            restored.notes.append(f"the arithmetic {name} is not taken as a norm: {reason}")
    if done:
        restored.notes.append(
            f"took arithmetic as {len(done)} norm{'s' * (len(done) > 1)}: {', '.join(reversed(done))}"
        )
    return finish(restored)


@dataclass(frozen=True)
class _Chain:
    """Operators in a row, each the only reader of the one before, and what they do together."""

    items: tuple[GraphNode, ...]
    affine: Affine

    @property
    def per_channel(self) -> bool:
        """Whether channels differ in gain or shift."""
        return bool(
            (self.affine.gain != self.affine.gain[0]).any() or (self.affine.shift != self.affine.shift[0]).any()
        )


def _chains(graph: Graph) -> list[_Chain]:
    """The longest chains, in order; the ones with gains and shifts for all channels alike take the layer's axis."""
    open_: dict[fx.Node, _Chain] = {}
    for item in graph.nodes():
        affine = arithmetic_affine(graph, item)
        if affine is None:
            continue
        chain = _Chain((item,), affine)
        before = open_.get(affine.source)
        if before is not None and is_read_once(graph, affine.source):
            axes = {a for a in (before.affine.axis, affine.axis) if a is not None}
            if len(axes) < 2:
                del open_[affine.source]
                chain = _Chain((*before.items, item), affine.after(before.affine))
        open_[item.node] = chain
    return [_with_axis(chain) for chain in open_.values()]


def _with_axis(chain: _Chain) -> _Chain:
    item, affine = chain.items[0], chain.affine
    if affine.axis is None:
        affine = replace(affine, axis=item.channel_axis)
    if affine.axis is None or item.shape is None:
        return chain
    channels = item.shape[affine.axis]
    return _Chain(chain.items, replace(affine, gain=affine.gain.expand(channels), shift=affine.shift.expand(channels)))


def _layer_before(graph: Graph, chain: _Chain) -> GraphNode | None:
    """The layer with a stored kernel whose output channels the chain changes and nobody else reads."""
    layer = producer(graph, chain.affine.source)
    if layer is None or layer.kind not in ("conv", "conv_transposed", "linear") or layer.weight is None:
        return None
    return layer if layer.channel_axis == chain.affine.axis and is_read_once(graph, layer.node) else None


def _replace(graph: Graph, chain: _Chain, cache: dict[tuple[str, bytes, bytes], list[fx.Node]]) -> str | None:
    last, affine = chain.items[-1].node, chain.affine
    dtype = chain.items[-1].dtype
    gain, shift = affine.gain.to(dtype), affine.shift.to(dtype)
    if not (torch.isfinite(gain).all() and torch.isfinite(shift).all()):
        return "the result would not be finite"
    # A module called twice is one norm, with one set of parameters.
    key = (str(dtype), gain.double().numpy().tobytes(), shift.double().numpy().tobytes())
    if key not in cache:
        ones = torch.ones_like(gain)
        values = {"weight": gain, "bias": shift, "running_mean": torch.zeros_like(gain), "running_var": ones}
        path = free_path(graph.module, f"restored_{chain.items[0].node.name}")
        cache[key] = [_stored(graph, f"{path}.{leaf}", value) for leaf, value in values.items()]
    with graph.module.graph.inserting_before(last):
        norm = graph.module.graph.call_function(
            torch.ops.aten.batch_norm.default, (affine.source, *cache[key], False, 0.0, 0.0, False)
        )
    norm.meta = {**last.meta, RESTORED: True}
    last.replace_all_uses_with(norm)
    for item in reversed(chain.items):
        graph.module.graph.erase_node(item.node)
    return None


def _stored(graph: Graph, path: str, value: torch.Tensor) -> fx.Node:
    add_tensor(graph.module, path, value.contiguous())
    with graph.module.graph.inserting_before(next(iter(graph.module.graph.nodes))):
        node = graph.module.graph.get_attr(path)
    node.meta["val"] = value.to("meta")
    return node


def _fold_into(graph: Graph, chain: _Chain, layer: GraphNode) -> str | None:
    if kernel_is_shared(graph, layer):
        return f"the kernel of {layer.name} is also used elsewhere"
    if layer.bias is None and argument(layer.node, "bias") is not None:
        return f"the bias of {layer.name} is computed by the network"
    assert layer.weight is not None
    gain, shift = chain.affine.gain, chain.affine.shift
    weight = graph.tensor(layer.weight).detach().double() * gain[:, None]
    bias = shift if layer.bias is None else graph.tensor(layer.bias).detach().double() * gain + shift
    reason = set_kernel(graph, layer, weight, bias if layer.bias is not None or shift.any() else None)
    if reason is None:
        layer.node.meta.pop(FOLDED_NORM, None)
        chain.items[-1].node.replace_all_uses_with(layer.node)
        for item in reversed(chain.items):
            graph.module.graph.erase_node(item.node)
    return reason
