"""Small networks for integer programs: between them they use every operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["NETWORKS", "Network"]


class Convolutions(nn.Module):
    """Strides, dilations, groups, uneven padding; clamps behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, (3, 5), padding="same", dilation=(1, 2), groups=8)
        self.grouped = nn.Conv2d(8, 6, 3, groups=2, bias=False)
        self.last = nn.Conv2d(6, 5, 1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.depthwise(F.relu(self.first(x))))
        return F.hardtanh(self.last(self.grouped(x).clamp(min=-0.5, max=0.5)), -0.3, 0.7)


class Signals(nn.Module):
    """Convolutions along one axis, linear layers on the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 6, 5, stride=2, padding=2)
        self.pool = nn.AvgPool1d(2)
        self.linear, self.head = nn.Linear(4, 7), nn.Linear(7, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.linear(self.pool(F.gelu(self.conv(x))))))


class Arithmetic(nn.Module):
    """Sums, differences, products and concatenations, of equal and of different shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.gate = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.left(x), torch.tanh(self.right(x))
        gate = torch.sigmoid(self.gate(F.adaptive_avg_pool2d(a, 1)))
        joined = torch.cat([a + b, a - b, a * gate, 2 * b + 1], dim=1)
        return F.relu(joined), torch.cat([F.relu(a), F.relu(b)], dim=1)


class Pools(nn.Module):
    """Every kind of pool."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.conv(x)
        return (
            F.max_pool2d(x, 3, stride=2, padding=1),
            F.max_pool2d(x, 2, stride=3, dilation=2, ceil_mode=True),
            F.avg_pool2d(x, 3, stride=2, padding=1),
            F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False, ceil_mode=True),
            F.avg_pool2d(x, (2, 3), stride=(1, 2)),
            F.adaptive_avg_pool2d(x, (3, 2)),
            x.mean((2, 3)),
            x.mean(1, keepdim=True),
        )


class Moves(nn.Module):
    """Values in other places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 12 * 12, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.conv(x)
        shuffled = F.pixel_shuffle(x, 2)
        large = F.interpolate(shuffled[:, :1, ::2], scale_factor=(2, 1), mode="nearest")
        first, second = x.chunk(2, dim=1)
        padded = F.pad(first[:, :, 1:, ::2], (1, 2, 0, 3)) + F.pad(second[:, :, 1:, ::2], (1, 2, 0, 3))
        tokens = x.flatten(2).transpose(1, 2).flip(1)
        return self.head(shuffled.reshape(len(x), -1)), large, padded, tokens, x.unsqueeze(1).squeeze(1)


class Functions(nn.Module):
    """Functions of single values, as tables."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.prelu = nn.PReLU()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.conv(x)
        functions = (F.silu, F.hardswish, F.gelu, F.elu, F.mish, F.leaky_relu, F.hardsigmoid, torch.abs, torch.exp)
        return *(function(x) for function in functions), self.prelu(x), F.relu(F.softplus(x)), x * 3 - 1


@dataclass(frozen=True)
class Network:
    """A network and its inputs."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 12, 12)


NETWORKS = {
    "convolutions": Network(Convolutions),
    "signals": Network(Signals, (2, 16)),
    "arithmetic": Network(Arithmetic),
    "pools": Network(Pools),
    "moves": Network(Moves),
    "functions": Network(Functions),
}
