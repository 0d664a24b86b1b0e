"""Small networks for calibration tests: deterministic weights, a few values each."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from detent.graph import Graph, capture

SHAPE = (3, 8, 8)
"""One sample of `Residual`."""


class Residual(nn.Module):
    """Convolution, depthwise convolution, skip connection, view, linear: layouts and fan-out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.linear = nn.Linear(8 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.conv(x))
        y = F.max_pool2d(y + self.depthwise(y), 2)
        return self.linear(y.view(y.shape[0], -1))


class TwoInputs(nn.Module):
    """Images and vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(4, 6)
        self.right = nn.Linear(3, 6)

    def forward(self, image: torch.Tensor, extra: torch.Tensor) -> torch.Tensor:
        return F.relu(self.left(image) + self.right(extra))


class Constant(nn.Module):
    """Holds a value that no input can change: the embedding of all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(4, 6)
        self.linear = nn.Linear(6, 6)
        self.register_buffer("index", torch.arange(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x + self.positions(self.index))


class Stacked(nn.Module):
    """Joins two views of the batch along the batch axis, so rows of padding cannot be told apart by position."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.cat([x, -x], dim=0))


class Shuffled(nn.Module):
    """One row per sample at the end, but each made from two samples."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.cat([x, -x], dim=0).reshape(x.shape[0], -1))


class SequenceFirst(nn.Module):
    """Attention with time before samples, inside merged with heads: samples lie on other axes than the first."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.transpose(0, 1)
        return self.linear(self.attention(y, y, y, need_weights=False)[0])


class Masked(nn.Module):
    """Takes a second input that is shared by all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.linear(x * (mask + 1.0))


class Reciprocal(nn.Module):
    """Infinite where the input is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inverse = 1.0 / x
        return self.linear(inverse)


def build(kind: type[nn.Module]) -> nn.Module:
    """The network with weights that are the same every time."""
    torch.manual_seed(7)
    return kind().eval()


@cache
def residual_graph(*, dynamic_batch: bool = True, batch: int = 2) -> Graph:
    """`Residual`, captured once."""
    return capture(build(Residual), torch.zeros(batch, *SHAPE), dynamic_batch=dynamic_batch)


def samples(count: int, *shape: int, seed: int = 0) -> torch.Tensor:
    """Normal noise with a few large entries, float32 `[count, *shape]`."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *(shape or SHAPE), generator=generator)
    return torch.where(x.abs() > 2.5, 10 * x, x)
