"""Small networks for the export tests: every shape of operator the exporter treats on its own."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["Attention", "Residual", "TiedWeights"]


class Residual(nn.Module):
    """Convolution, depthwise and pointwise convolutions with a residual sum, linear head; `[N, 3, 12, 12]`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pointwise = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.pointwise(functional.relu6(self.depthwise(x))))
        return self.head(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))


class Attention(nn.Module):
    """Two inputs `[N, 5, 32]` and `[N, 7, 32]`, two outputs in a dict; `Linear` on three axes becomes `MatMul`."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(32, 64)
        self.down = nn.Linear(64, 32, bias=False)
        self.norm = nn.LayerNorm(32)

    def forward(self, query: torch.Tensor, memory: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.down(functional.gelu(self.up(query)))
        scores = torch.softmax(hidden @ memory.transpose(1, 2), -1)
        return {"mixed": self.norm(scores @ memory + query), "scores": scores}


class TiedWeights(nn.Module):
    """One kernel used twice, once as it is and once transposed; `[N, 8]`."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(torch.relu(functional.linear(x, self.kernel)), self.kernel)
