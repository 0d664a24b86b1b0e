"""A network with SiLU, a concatenation, a residual add and a shared kernel, and what calibration saw of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Gated", "gated", "images"]


class Block(nn.Module):
    """A convolution and SiLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class Gated(nn.Module):
    """Two blocks in a row, their concatenation, ReLU, a kernel used twice, an add, a linear layer and a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(Block(3, 6), Block(6, 6))
        self.mix = nn.Sequential(nn.Conv2d(12, 6, 1), nn.ReLU())
        self.twice = nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        first = self.features[0](x)
        second = self.features[1](first)
        y = self.mix(torch.cat([first, second], 1))
        y = self.twice(self.twice(y)) + y
        return torch.sigmoid(self.head(y.mean((2, 3))))


def gated() -> Gated:
    """The network with a fixed seed."""
    torch.manual_seed(3)
    return Gated().eval()


def images(count: int = 64) -> Tensor:
    """Float32 `[count, 3, 6, 6]`."""
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(4))
