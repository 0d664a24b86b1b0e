"""Networks for TensorFlow Lite files: between them they use every operator that is written."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.integer.networks import Network
from torch import Tensor, nn

__all__ = ["TFLITE_NETWORKS"]


class Convolutions(nn.Module):
    """Strides, dilations, groups, multipliers, padding that is SAME and padding that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 16, (3, 5), padding="same", dilation=(1, 2), groups=8)
        self.grouped = nn.Conv2d(16, 6, 3, groups=2, bias=False)
        self.wide = nn.Conv2d(6, 6, 3, padding=(2, 1), groups=6)
        self.last = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.depthwise(F.relu(self.first(x))))
        x = self.grouped(x)
        return self.last(F.relu(self.wide(x)))


class Signals(nn.Module):
    """Convolutions along one axis, linear layers on the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depthwise = nn.Conv1d(2, 6, 5, stride=2, padding=2), nn.Conv1d(6, 6, 3, groups=6)
        self.pool = nn.MaxPool1d(2)
        self.linear, self.head = nn.Linear(3, 7), nn.Linear(7, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.depthwise(F.relu(self.conv(x)))))
        return self.head(F.relu(self.linear(x)))


class Arithmetic(nn.Module):
    """Sums, differences, products and concatenations, of equal and of different shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.gate = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.left(x), torch.tanh(self.right(x))
        gate = torch.sigmoid(self.gate(a.mean((2, 3), keepdim=True)))
        joined = torch.cat([F.relu(a + b), a - b, a * gate], dim=1)
        return joined, torch.cat([F.relu(a), F.relu(b)], dim=2)


class Pools(nn.Module):
    """Every kind of pool."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.conv(x)
        return (
            F.max_pool2d(x, 3, stride=2, padding=1),
            F.max_pool2d(x, 2, stride=3),
            F.avg_pool2d(x, 3, stride=2, padding=1),
            F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False),
            F.avg_pool2d(x, (2, 3), stride=(1, 2)),
            F.adaptive_avg_pool2d(x, (3, 2)),
            F.adaptive_avg_pool2d(x, 1),
            x.mean((2, 3)),
            x.mean(1, keepdim=True),
            x.mean(2),
        )


class Moves(nn.Module):
    """Values in other places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 12 * 12, 4)
        self.norm = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.conv(x)
        shuffled = F.pixel_shuffle(x, 2)
        large = F.interpolate(shuffled[:, :1, ::2], scale_factor=2, mode="nearest")
        first, second = x.chunk(2, dim=1)
        padded = F.pad(first[:, :, 1:, ::2], (1, 2, 0, 3)) + F.pad(second[:, :, 1:, ::2], (1, 2, 0, 3))
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        mixed = x.view(-1, 2, 4, 12, 12).transpose(1, 2).reshape(-1, 8, 12, 12).flip(1)
        return self.head(x.flatten(1)), large, padded, tokens, mixed, self.norm(x.permute(0, 2, 3, 1))


class Functions(nn.Module):
    """Functions of single values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.conv(x)
        return torch.sigmoid(x), torch.tanh(x), F.hardswish(x), F.leaky_relu(x, 0.2), F.relu(x), F.silu(x)


class Transposed(nn.Module):
    """Transposed convolutions: none, some and uneven cuts."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.twice, self.even = nn.ConvTranspose2d(6, 4, 2, stride=2), nn.ConvTranspose2d(4, 5, 4, stride=2, padding=1)
        self.uneven = nn.ConvTranspose2d(6, 3, 3, stride=(2, 3), padding=(1, 0), output_padding=(1, 0), bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.down(x)
        return self.even(F.relu(self.twice(x))), self.uneven(x)


class Shortcut(nn.Module):
    """A residual block whose shortcut takes every other pixel and pads channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2))
        return F.relu(self.second(F.relu(self.first(x))) + short)


TFLITE_NETWORKS = {
    "shortcut": Network(Shortcut),
    "transposed": Network(Transposed),
    "convolutions": Network(Convolutions),
    "signals": Network(Signals, (2, 16)),
    "arithmetic": Network(Arithmetic),
    "pools": Network(Pools),
    "moves": Network(Moves),
    "functions": Network(Functions),
}
