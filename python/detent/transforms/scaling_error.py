"""How large the error of quantizing a layer would be if its input channels were divided by given factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from detent.graph.graph import Graph
from detent.transforms.channel_factors import grouped_kernel
from detent.transforms.channel_paths import Reader
from detent.transforms.observed import ChannelRange

__all__ = ["ScalingError"]

_SPAN = 6.0
"""A channel's range in standard deviations: calibration keeps no variance per channel."""


@dataclass(frozen=True)
class _Kernel:
    peak: torch.Tensor
    energy: torch.Tensor
    taps: int


class ScalingError:
    """Estimated squared error of the outputs of all readers of a value, summed over their channels.

    The rounding error of a grid of step d has variance d^2 / 12. The input has one grid for all channels, each reader's
    kernel one per output channel; E[x^2] of a channel is its mean squared plus (range / 6) squared.

    Args:
        graph: the network.
        readers: the layers that read the value.
        seen: what calibration saw of its channels.
        weights_bits: code width of kernels.
        activation_bits: code width of the value.
    """

    def __init__(
        self, graph: Graph, readers: Sequence[Reader], seen: ChannelRange, *, weights_bits: int, activation_bits: int
    ) -> None:
        self.seen = seen
        self.energy = seen.mean.square() + ((seen.maximum - seen.minimum) / _SPAN).square()
        self.top, self.levels = 2 ** (weights_bits - 1) - 1, 2**activation_bits - 1
        self.kernels = []
        for reader in readers:
            assert reader.layer.weight is not None
            kernel = grouped_kernel(graph.tensor(reader.layer.weight), reader.layer, reader.spread)
            self.kernels.append(_Kernel(kernel.abs().amax(-1), kernel.square().sum(-1), kernel.shape[-1]))

    @property
    def peaks(self) -> torch.Tensor:
        """max |W_j| of each input channel over all readers, float64 `[C]`."""
        return torch.stack([kernel.peak.amax(1).flatten() for kernel in self.kernels]).amax(0)

    def of(self, factors: torch.Tensor) -> float:
        """The error if the value's channels are divided, and the kernels' multiplied, by `factors` `[C]`."""
        low = torch.clamp((self.seen.minimum / factors).amin(), max=0)
        high = torch.clamp((self.seen.maximum / factors).amax(), min=0)
        input_step, energy = (high - low) / self.levels, self.energy / factors.square()
        total = 0.0
        for kernel in self.kernels:
            groups = kernel.peak.shape[0]
            scale = factors.reshape(groups, 1, -1)
            kernel_steps = (kernel.peak * scale).amax(-1, keepdim=True) / self.top
            by_input = (kernel.energy * scale.square()).sum() * input_step.square()
            by_kernel = (kernel_steps.square() * energy.reshape(groups, 1, -1)).sum() * kernel.taps
            total += float(by_input + by_kernel) / 12
        return total
