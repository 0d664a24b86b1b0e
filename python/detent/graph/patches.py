"""A layer's output as products of kernel rows with patches of its input: conv, transposed conv and linear alike.

For output channel o of group g at one position, y[o] = sum_i row[o, i] patch[g, i] + bias[o]. A row holds the d kernel
elements of an output channel, a patch the d input elements they meet there. A transposed convolution's patch
has zeros where a tap meets no element of the input.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from detent.graph.graph import GraphNode
from detent.graph.roles import argument
from detent.graph.shapes import concrete_shape

__all__ = ["Windows", "has_rows", "kernel_rows", "sum_by_step"]

Array = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]


def has_rows(layer: GraphNode) -> bool:
    """Whether a layer's output is such a product: it has a stored kernel of a kind that is known here."""
    return layer.weight is not None and layer.kind in ("conv", "conv_transposed", "linear")


def kernel_rows(layer: GraphNode, kernel: Array) -> Array:
    """The rows of a kernel, `[groups, C_out / groups, d]`, in C order."""
    groups = layer.groups
    if layer.kind == "conv_transposed":
        # [C_in, C_out / groups, k...]
        split = kernel.reshape(groups, kernel.shape[0] // groups, kernel.shape[1], -1)
        return np.ascontiguousarray(split.transpose(0, 2, 1, 3)).reshape(groups, kernel.shape[1], -1)
    return np.ascontiguousarray(kernel).reshape(groups, kernel.shape[0] // groups, -1)


def sum_by_step(layer: GraphNode, of_rows: npt.NDArray[np.float64], *, one_step: bool) -> npt.NDArray[np.float64]:
    """Sums over the kernel rows that share a step.

    Args:
        layer: the layer.
        of_rows: a number for each row, `[..., groups, C_out / groups]`.
        one_step: the whole kernel has one step; otherwise each channel of the kernel has its own, which the same
            channel of every group of a transposed convolution shares.

    Returns:
        `[..., channels]`, or `[..., 1]` for one step.
    """
    if one_step:
        return np.asarray(of_rows.sum(axis=(-2, -1)))[..., None]
    if layer.kind == "conv_transposed":
        return np.asarray(of_rows.sum(axis=-2))
    return of_rows.reshape(*of_rows.shape[:-2], -1)


class Windows:
    """The patches of one value of a layer's input; only those asked for are read.

    Args:
        layer: the layer, see `has_rows`.
        x: float32, as the layer takes it.
        kernel_shape: shape of the layer's kernel.
    """

    def __init__(self, layer: GraphNode, x: torch.Tensor, kernel_shape: tuple[int, ...]) -> None:
        self._layer = layer
        self._taps = tuple(kernel_shape[2:])
        if layer.kind == "linear":
            self._rows = x.reshape(x.shape[0] if x.dim() > 1 else 1, -1, x.shape[-1])
            self._spatial: tuple[int, ...] = tuple(self._rows.shape[1:2])
            self._outputs = self._spatial
        else:
            batched = x if x.dim() == len(kernel_shape) else x.unsqueeze(0)
            self._spatial = tuple(batched.shape[2:])
            # [samples, places, channels]: no copy for channels-last values.
            self._rows = batched.flatten(2).transpose(1, 2)
            shape = concrete_shape(layer.node)
            self._outputs = shape[len(shape) - len(self._taps) :]
        self.positions = math.prod(self._outputs)

    def at(self, positions: npt.NDArray[np.int64]) -> Array:
        """The patches at some output positions of every sample, float32 `[groups, samples x positions, d]`.

        In C order; those of depthwise layers are a view with the groups innermost in memory, as values have them.

        Args:
            positions: indices below `positions`, the output's spatial axes flattened.
        """
        if self._layer.kind == "linear":
            return self._rows[:, torch.from_numpy(positions)].reshape(1, -1, self._rows.shape[-1]).numpy()
        places = self._places(positions)
        taken = self._rows[:, torch.from_numpy(np.maximum(places, 0)).reshape(-1)]
        if bool((places < 0).any()):
            taken.mul_(torch.from_numpy(places >= 0).reshape(-1, 1))
        samples, _, channels = taken.shape
        groups = self._layer.groups
        if groups == channels:
            return taken.reshape(samples * len(positions), -1, channels).permute(2, 0, 1).numpy()
        split = taken.reshape(samples, *places.shape, groups, channels // groups).permute(3, 0, 1, 4, 2)
        return split.reshape(groups, samples * len(positions), -1).contiguous().numpy()

    def _places(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where each tap reads for each output position `[positions, taps]`, in the flattened input; -1 for a zero."""
        rank, node = len(self._taps), self._layer.node
        stride, dilation = (_each(argument(node, name), rank) for name in ("stride", "dilation"))
        padding = _padding(argument(node, "padding"), self._taps, dilation)
        output = np.stack(np.unravel_index(positions, self._outputs), axis=-1)[:, None]
        tap = np.stack(np.unravel_index(np.arange(math.prod(self._taps)), self._taps), axis=-1)[None]
        if self._layer.kind == "conv_transposed":
            # Input i and tap k meet at output i * stride - padding + k * dilation.
            reach = output + padding - tap * dilation
            place = reach // stride
            read = reach % stride == 0
        else:
            place = output * stride - padding + tap * dilation
            read = np.ones(place.shape, bool)
        read &= (place >= 0) & (place < self._spatial)
        flat = np.ravel_multi_index(tuple(np.moveaxis(np.where(read, place, 0), -1, 0)), self._spatial)
        return np.asarray(np.where(read.all(axis=-1), flat, -1))


def _padding(padding: Any, taps: tuple[int, ...], dilation: Integers) -> Integers:
    """Zeros before the first element of each spatial axis."""
    if padding == "same":
        return np.asarray(dilation * (np.array(taps) - 1) // 2)
    return np.zeros(len(taps), np.int64) if padding == "valid" else _each(padding, len(taps))


def _each(value: Any, rank: int) -> Integers:
    """One number for each spatial axis."""
    return np.broadcast_to(np.array(value, np.int64), (rank,))
