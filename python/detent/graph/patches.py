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
from detent.graph.shifts import COMPENSATED

__all__ = ["Windows", "added_to_patches", "has_rows", "kernel_rows", "sum_by_step"]

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


def added_to_patches(layer: GraphNode, kernel_shape: tuple[int, ...]) -> npt.NDArray[np.float32] | None:
    """What a rewrite added to the patches of a layer's input, float32 `[groups, 1, d]`; None if nothing.

    It is known beforehand, and taken back through the bias when a plan is applied.
    """
    if COMPENSATED not in layer.node.meta:
        return None
    taps = math.prod(kernel_shape[2:])
    channels = kernel_shape[0] if layer.kind == "conv_transposed" else layer.groups * kernel_shape[1]
    amount = np.broadcast_to(layer.node.meta[COMPENSATED], channels).reshape(layer.groups, 1, -1)
    return np.repeat(amount, taps, axis=2).astype(np.float32)


class Windows:
    """The patches of a layer's input; only those asked for are read.

    Args:
        layer: the layer, see `has_rows`.
        kernel_shape: shape of the layer's kernel.
    """

    def __init__(self, layer: GraphNode, kernel_shape: tuple[int, ...]) -> None:
        self._layer = layer
        self._kernel_shape = kernel_shape
        self._taps = tuple(kernel_shape[2:])
        # Batches mostly have the same spatial shape, whose table is small.
        self._reached: dict[tuple[int, ...], list[Integers]] = {}
        self._outputs: tuple[int, ...] = ()
        if layer.kind != "linear":
            shape = concrete_shape(layer.node)
            self._outputs = shape[len(shape) - len(self._taps) :]

    def positions(self, x: torch.Tensor) -> int:
        """Output positions of one sample.

        Args:
            x: float32, as the layer takes it.
        """
        if self._layer.kind == "linear":
            return math.prod(x.shape[1:-1])
        return math.prod(self._outputs)

    def at(self, x: torch.Tensor, positions: Integers) -> Array:
        """The patches at some output positions of every sample, float32 `[groups, samples x positions, d]`.

        In C order; those of depthwise layers are a view with the groups innermost in memory, as values have them.

        Args:
            x: float32, as the layer takes it.
            positions: indices below `positions(x)`, the output's spatial axes flattened.
        """
        if self._layer.kind == "linear":
            rows = x.reshape(x.shape[0] if x.dim() > 1 else 1, -1, x.shape[-1])
            return _taken(rows, positions).reshape(1, -1, x.shape[-1])
        batched = x if x.dim() == len(self._kernel_shape) else x.unsqueeze(0)
        places = self._places(positions, tuple(batched.shape[2:]))
        lacking = places < 0
        # [samples, places, channels]: no copy for channels-last values.
        taken = _taken(batched.flatten(2).transpose(1, 2), np.maximum(places, 0).reshape(-1))
        if lacking.any():
            taken[:, lacking.reshape(-1)] = 0
        samples, _, channels = taken.shape
        groups = self._layer.groups
        if groups == channels:
            return np.asarray(taken.reshape(samples * len(positions), -1, channels).transpose(2, 0, 1))
        split = taken.reshape(samples, *places.shape, groups, channels // groups).transpose(3, 0, 1, 4, 2)
        return np.ascontiguousarray(split.reshape(groups, samples * len(positions), -1))

    def _places(self, positions: Integers, spatial: tuple[int, ...]) -> Integers:
        """Where each tap reads for each output position `[positions, taps]`, in the flattened input; < 0 for a zero."""
        if spatial not in self._reached:
            self._reached[spatial] = self._by_axis(spatial)
        places = np.zeros((len(positions), 1), np.int64)
        for along, output in zip(self._reached[spatial], np.unravel_index(positions, self._outputs), strict=True):
            places = (places[:, :, None] + along[output][:, None]).reshape(len(positions), -1)
        return places

    def _by_axis(self, spatial: tuple[int, ...]) -> list[Integers]:
        """What each output coordinate and tap of an axis adds to the place in the flattened input `[outputs, taps]`.

        Outside of the input, so much less than nothing that the sum over all axes stays negative.
        """
        rank, node = len(self._taps), self._layer.node
        strides, dilations = (_each(argument(node, name), rank) for name in ("stride", "dilation"))
        paddings = _padding(argument(node, "padding"), self._taps, dilations)
        tables = []
        for axis, (stride, dilation, padding) in enumerate(zip(strides, dilations, paddings, strict=True)):
            output, tap = np.arange(self._outputs[axis])[:, None], np.arange(self._taps[axis])
            if self._layer.kind == "conv_transposed":
                # Input i and tap k meet at output i * stride - padding + k * dilation.
                reach = output + padding - tap * dilation
                place, read = reach // stride, reach % stride == 0
            else:
                place = output * stride - padding + tap * dilation
                read = np.ones(place.shape, bool)
            read &= (place >= 0) & (place < spatial[axis])
            tables.append(np.where(read, place * math.prod(spatial[axis + 1 :]), -math.prod(spatial)))
        return tables


def _taken(rows: torch.Tensor, places: Integers) -> Array:
    """The rows at some places of every sample, a copy: `[samples, places, channels]`."""
    if rows.is_contiguous():
        # NumPy copies whole rows, torch one number after the other.
        return np.asarray(np.take(rows.numpy(), places, axis=1))
    return np.ascontiguousarray(rows[:, torch.from_numpy(places)].numpy())


def _padding(padding: Any, taps: tuple[int, ...], dilation: Integers) -> Integers:
    """Zeros before the first element of each spatial axis."""
    if padding == "same":
        return np.asarray(dilation * (np.array(taps) - 1) // 2)
    return np.zeros(len(taps), np.int64) if padding == "valid" else _each(padding, len(taps))


def _each(value: Any, rank: int) -> Integers:
    """One number for each spatial axis."""
    return np.broadcast_to(np.array(value, np.int64), (rank,))
