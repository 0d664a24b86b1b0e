"""Folds batch norms into the convolution or linear layer before them; the float function stays the same."""

from __future__ import annotations

import torch
from torch import fx

from detent.graph.graph import Graph, GraphNode
from detent.graph.roles import argument
from detent.transforms.affine import RESTORED, Affine, norm_affine
from detent.transforms.edits import FOLDED_NORM, finish, parameter_path, producer, read_kernel, store_tensor

__all__ = ["fold_batch_norm"]


def fold_batch_norm(graph: Graph) -> Graph:
    """A new graph in which every batch norm that can be is part of the kernel and bias of the layer before it.

    With gain s = gamma / sqrt(var + eps) per output channel, the kernel becomes s * W and the bias
    s * (b - mean) + beta (Jacob et al. 2018, arXiv:1712.05877, eq. 14), computed in float64 and rounded once. A
    convolution without a bias gets one. The given graph and the user's tensors are left as they are. A batch norm that
    cannot be folded stays, and a note says why; another one names what was folded. The layer's node keeps
    `(beta, |gamma|)` under `FOLDED_NORM`: what the norm made of its output, for rewrites that balance channels.

    Args:
        graph: any captured network.
    """
    folded = graph.copy()
    done: list[str] = []
    cache: dict[tuple[str, ...], tuple[fx.Node, fx.Node]] = {}
    for norm in folded.nodes():
        if norm.op is None or norm.op.name != "batch_norm":
            continue
        layer = producer(folded, norm.data[0])
        reason = _obstacle(folded, norm, layer)
        if reason is None and layer is not None:
            reason = _fold(folded, norm, layer, cache)
            if reason is None:
                done.append(f"{norm.name} into {layer.name}")
        if reason is not None:
            folded.notes.append(f"batch norm {norm.name} is not folded: {reason}")
    if done:
        folded.notes.append(f"folded {len(done)} batch norm{'s' * (len(done) > 1)}: {', '.join(done)}")
    return finish(folded)


def _obstacle(graph: Graph, norm: GraphNode, layer: GraphNode | None) -> str | None:
    """Why a batch norm cannot be folded, None if it can."""
    if argument(norm.node, "training"):
        return "it normalizes by the batch's own statistics"
    given = [argument(norm.node, name) for name in ("weight", "bias", "running_mean", "running_var")]
    if any(value is not None and value.op != "get_attr" for value in given):
        return "its parameters are computed by the network"
    if layer is None or layer.kind not in ("conv", "conv_transposed", "linear"):
        return "there is no convolution or linear layer before it"
    if len(layer.node.users) > 1 or layer.node in graph.outputs():
        return f"the output of {layer.name} is also used elsewhere"
    if layer.weight is None or (layer.bias is None and argument(layer.node, "bias") is not None):
        return f"the kernel or bias of {layer.name} is computed by the network"
    if layer.channel_axis != 1:
        return f"it normalizes another axis than the output channels of {layer.name}"
    return None


def _fold(
    graph: Graph, norm: GraphNode, layer: GraphNode, cache: dict[tuple[str, ...], tuple[fx.Node, fx.Node]]
) -> str | None:
    assert layer.weight is not None
    parameters = [argument(norm.node, name) for name in ("weight", "bias", "running_mean", "running_var")]
    sources = [layer.weight, layer.bias, *parameters]
    # A reused pair of layer and norm is folded once, and the folded kernel stays shared.
    key = (*(str(s.target) if s is not None else "" for s in sources), str(argument(norm.node, "eps")))
    affine = norm_affine(graph, norm)
    if key not in cache:
        weight = _scaled_kernel(graph.tensor(layer.weight), affine.gain, layer)
        bias = affine.shift
        if layer.bias is not None:
            bias = bias + graph.tensor(layer.bias).double() * affine.gain
        weight, bias = (t.to(graph.tensor(layer.weight).dtype) for t in (weight, bias))
        if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
            return "the result would not be finite"
        cache[key] = (_store(graph, layer, "weight", weight), _store(graph, layer, "bias", bias))
    read_kernel(layer.node, *cache[key])
    _remember(graph, norm, layer, affine)
    norm.node.replace_all_uses_with(layer.node)
    graph.module.graph.erase_node(norm.node)
    return None


def _remember(graph: Graph, norm: GraphNode, layer: GraphNode, affine: Affine) -> None:
    known = layer.node.meta.pop(FOLDED_NORM, None)
    if not norm.node.meta.get(RESTORED):
        gamma, beta = (argument(norm.node, name) for name in ("weight", "bias"))
        mean = torch.zeros_like(affine.gain) if beta is None else graph.tensor(beta).detach().double()
        std = torch.ones_like(affine.gain) if gamma is None else graph.tensor(gamma).detach().double().abs()
        layer.node.meta[FOLDED_NORM] = (mean, std)
    elif known is not None:
        mean, std = known
        layer.node.meta[FOLDED_NORM] = (mean * affine.gain + affine.shift, std * affine.gain.abs())


def _scaled_kernel(weight: torch.Tensor, gain: torch.Tensor, layer: GraphNode) -> torch.Tensor:
    wide = weight.detach().double()
    if layer.kind != "conv_transposed":
        return wide * gain.reshape(-1, *[1] * (wide.dim() - 1))
    # Kernel [C_in, C_out / groups, k...]: group g of the inputs makes outputs g * C_out / groups onwards.
    groups, spatial = layer.groups, wide.shape[2:]
    split = wide.reshape(groups, -1, wide.shape[1], *spatial)
    return (split * gain.reshape(groups, 1, -1, *[1] * len(spatial))).reshape(wide.shape)


def _store(graph: Graph, layer: GraphNode, leaf: str, tensor: torch.Tensor) -> fx.Node:
    assert layer.weight is not None
    like = graph.tensor(layer.weight)
    return store_tensor(graph, parameter_path(layer, leaf), tensor, like=like, before=layer.node)
