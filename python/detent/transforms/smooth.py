"""SmoothQuant: ranges of activation channels move into the kernels that read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import fx

from detent.errors import ConfigError
from detent.graph.graph import Graph, GraphNode
from detent.graph.roles import argument, argument_names
from detent.graph.tensors import free_path
from detent.records.statistics import Statistics
from detent.transforms.channel_factors import finite, replace_tensor, scale_path
from detent.transforms.channel_paths import KERNELS, ChannelPath, channel_paths, read_elsewhere, summarize
from detent.transforms.edits import finish, store_tensor
from detent.transforms.observed import observed_channels, require_statistics_of
from detent.transforms.scaling_error import ScalingError

__all__ = ["read_by_smoothing", "smooth"]

GRID: Final = tuple(step / 20 for step in range(21))
"""Exponents tried."""

BITS: Final = 8
"""Code width at which exponents are compared."""


def smooth(graph: Graph, statistics: Statistics, alpha: float | None = None) -> Graph:
    """A new graph in which the inputs of linear layers have channels of more even range.

    Channel j of the input is divided, and column j of every kernel that reads it multiplied, by
    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) (Xiao et al. 2023, arXiv:2211.10438, equation 4). The float function
    stays the same: the division is folded into what makes the channels, that is weight and bias of a layer, RMS, group
    or batch norm, a stored vector that is multiplied, or a convolution or linear layer with nothing but ReLUs, clamps
    and moves between. Channels without range keep their scale.

    Args:
        graph: any captured network.
        statistics: what calibration saw of this graph.
        alpha: the exponent, 0 to 1; None takes for each value the one of 0, 0.05, ..., 1 with the least estimated error
            of 8-bit outputs (see `scaling_error`), and leaves a value as it is if none improves on that.

    Raises:
        ConfigError: the statistics belong to another graph, or `alpha` is out of range.
    """
    if alpha is not None and not 0 <= alpha <= 1:
        raise ConfigError(f"`alpha` must lie between 0 and 1, got {alpha}")
    require_statistics_of(graph, statistics)
    smoothed = graph.copy()
    paths, rejected = _paths(smoothed)
    done = []
    for path in paths:
        reason, exponent = _smooth(smoothed, statistics, path, alpha)
        if reason is not None:
            rejected[path.source.name] = reason
        else:
            done.append(f"{path.source.name} (alpha {exponent:g})")
    summarize(smoothed, "not smoothed", {k: v for k, v in rejected.items() if _before_linear(smoothed.find(k))})
    if done:
        smoothed.notes.append(f"smoothed the channels of {', '.join(done)}")
    return finish(smoothed)


def read_by_smoothing(graph: Graph) -> Iterator[tuple[fx.Node, ...]]:
    """The values whose statistics per channel `smooth` reads, each in a group of its own."""
    return ((path.readers[0].value,) for path in _paths(graph)[0])


def _paths(graph: Graph) -> tuple[list[ChannelPath], dict[str, str]]:
    """The paths that end in linear layers only, and why others can take no factors."""
    paths, rejected = channel_paths(graph, lambda item: item.kind in KERNELS or _is_affine(graph, item))
    return [path for path in paths if all(reader.layer.kind == "linear" for reader in path.readers)], rejected


def _smooth(graph: Graph, statistics: Statistics, path: ChannelPath, alpha: float | None) -> tuple[str | None, float]:
    """Smooth one value: why not, and the exponent taken."""
    seen = observed_channels(graph, statistics, path.readers[0].value, path.channels)
    if seen is None:
        return "the ranges of its channels were not observed", 0.0
    error = ScalingError(graph, path.readers, seen, weights_bits=BITS, activation_bits=BITS)
    candidates = {}
    for exponent in GRID if alpha is None else (alpha,):
        factors = _factors(seen.magnitude, error.peaks, exponent)
        if finite([factors, 1 / factors]):
            candidates[exponent] = factors
    if not candidates:
        return "its ranges are too far apart", 0.0
    errors = {exponent: error.of(factors) for exponent, factors in candidates.items()}
    best = min(errors, key=errors.__getitem__)
    if alpha is None and not errors[best] < error.of(torch.ones(path.channels, dtype=torch.float64)):
        return "no exponent lowers the estimated error", 0.0
    scale_path(graph, path, 1 / candidates[best])
    if path.source.kind not in KERNELS:
        _scale_affine(graph, path.source, 1 / candidates[best])
    return None, best


def _factors(inputs: torch.Tensor, kernels: torch.Tensor, alpha: float) -> torch.Tensor:
    raw = inputs**alpha / kernels ** (1 - alpha)
    return torch.where((inputs > 0) & (kernels > 0), raw, 1.0)


def _is_affine(graph: Graph, item: GraphNode) -> bool:
    """Whether a norm ends with a stored or absent weight and bias per channel that can take factors.

    A product with a stored vector counts: it is how language models end a norm they write out.
    """
    if item.op is None or item.channel_axis is None or item.shape is None:
        return False
    if item.kind == "mul":
        if len(item.constants) != 1 or read_elsewhere(item, item.constants):
            return False
        gain = graph.tensor(item.constants[0])
        position, channels = gain.dim() - len(item.shape) + item.channel_axis, item.shape[item.channel_axis]
        return gain.numel() == channels and position >= 0 and gain.shape[position] == channels
    if item.kind != "norm" or item.op.name == "linalg_vector_norm":
        return False
    if item.op.name in ("layer_norm", "rms_norm") and len(argument(item.node, "normalized_shape")) != 1:
        return False
    given = [n for n in (_stored(item, "weight"), _stored(item, "bias")) if n is not None]
    return all(isinstance(n, fx.Node) and n.op == "get_attr" for n in given) and not read_elsewhere(item, given)


def _stored(item: GraphNode, name: str) -> Any:
    if item.kind == "mul":
        return item.constants[0] if name == "weight" else None
    return argument(item.node, name) if name in argument_names(item.node) else None


def _scale_affine(graph: Graph, norm: GraphNode, factors: torch.Tensor) -> None:
    weight, bias = _stored(norm, "weight"), _stored(norm, "bias")
    if bias is not None:
        replace_tensor(graph, bias, graph.tensor(bias).detach().double() * factors)
    if weight is not None:
        old = graph.tensor(weight).detach().double()
        replace_tensor(graph, weight, old * factors.reshape(old.shape))
        return
    # A norm without a weight of its own gets one.
    assert norm.dtype is not None
    owner = "".join(c if c.isalnum() or c in "._" else "_" for c in norm.name)
    path, value = free_path(graph.module, f"{owner}.weight"), factors.to(norm.dtype)
    index = argument_names(norm.node).index("weight")
    new = store_tensor(graph, path, value, like=value, before=norm.node)
    if index < len(norm.node.args):
        norm.node.args = (*norm.node.args[:index], new, *norm.node.args[index + 1 :])
    else:
        norm.node.kwargs = {**norm.node.kwargs, "weight": new}


def _before_linear(item: GraphNode) -> bool:
    """Whether a linear layer reads a value directly: others were no candidates."""
    return any("linear" in str(user.target) for user in item.node.users)
