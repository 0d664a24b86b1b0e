"""Small networks, one for each way a model can be built; tests draw from `MODELS`.

Every network is made with a fixed seed and random batch-norm statistics, in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MODELS", "Case", "build"]


class ConvChain(nn.Module):
    """conv-bn-relu twice, pooling, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, stride=2),
            nn.BatchNorm2d(12),
            nn.ReLU6(inplace=True),
            nn.Dropout(0.5),
        )
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), 1)
        return self.head(x.flatten(1))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.conv2(y)
        y += x
        return F.relu(y)


class Mobile(nn.Module):
    """Inverted residual with a depthwise convolution, hard activations, squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(4, 16, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.depthwise = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6()
        )
        self.squeeze = nn.Conv2d(16, 4, 1)
        self.excite = nn.Conv2d(4, 16, 1)
        self.project = nn.Sequential(nn.Conv2d(16, 4, 1, bias=False), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        gate = F.hardsigmoid(self.excite(F.silu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return x + self.project(y * gate)


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, groups=2, padding="same")
        self.shuffle = nn.ChannelShuffle(2)
        self.act = nn.PReLU(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.shuffle(self.conv(x)))


class Decoder(nn.Module):
    """Transposed convolutions, resizing, padding, pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 8, 2, stride=2, groups=2)
        self.norm = nn.BatchNorm2d(8)
        self.shuffle = nn.PixelShuffle(2)
        self.pad = nn.ReflectionPad2d(1)
        self.last = nn.Conv2d(2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.norm(self.up(x)))
        x = F.interpolate(self.shuffle(x), scale_factor=2.0, mode="nearest")
        x = F.interpolate(x, size=(10, 10), mode="bilinear", align_corners=False)
        return torch.tanh(self.last(F.pad(self.pad(x), (1, 0, 0, 1))))


class Audio(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 6, 5, stride=2, padding=2)
        self.norm = nn.BatchNorm1d(6)
        self.up = nn.ConvTranspose1d(6, 2, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.elu(self.norm(self.conv(x))))


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.up = nn.ConvTranspose3d(4, 2, 2, stride=2)
        self.instance = nn.InstanceNorm3d(2, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool3d(F.mish(self.norm(self.conv(x))), 2)
        return self.instance(self.up(x))


class Perceptron(nn.Module):
    """Linear layers with batch norm between them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.GELU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.layers(x), dim=-1)


class FunctionalNorm(nn.Module):
    """Convolution and batch norm written as function calls."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3, 3, 3))
        self.register_buffer("mean", torch.randn(6))
        self.register_buffer("var", torch.rand(6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, padding=1)
        return F.relu(F.batch_norm(x, self.mean, self.var, eps=1e-3))


class Transformer(nn.Module):
    """Embedding, attention of torch.nn with its batch merged into heads and time, a feed-forward part."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.positions = nn.Parameter(torch.randn(5, 8))
        self.norm1 = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm2 = nn.RMSNorm(8)
        self.feed = nn.Sequential(nn.Linear(8, 16), nn.GELU(approximate="tanh"), nn.Linear(16, 8))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.positions
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.feed(self.norm2(x))
        # The output layer is tied to the embedding.
        return F.linear(x, self.embedding.weight)


class Attention(nn.Module):
    """Attention spelled out with heads split by reshapes, in both forms."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, time, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        fused = F.scaled_dot_product_attention(q, k, v)
        weights = torch.softmax(q @ k.transpose(-2, -1) / 2.0, dim=-1)
        merged = (fused + torch.matmul(weights, v)).transpose(1, 2).reshape(batch, time, 8)
        return self.out(merged)


class StoredMatrix(nn.Module):
    """Products with stored matrices on either side, a transposed parameter, weight norm, an einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.right = nn.Parameter(torch.randn(6, 5))
        self.left = nn.Parameter(torch.randn(3, 4))
        self.bias = nn.Parameter(torch.randn(5))
        self.tall = nn.Parameter(torch.randn(7, 2))
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(5, 7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.left @ (x @ self.right + self.bias)
        x = self.normed(x)
        y = torch.einsum("bij,bkj->bik", x, x)
        return F.linear(torch.bmm(y, x), self.tall.t())


class DictInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(3, 4, 3)
        self.scalars = nn.Linear(5, 4)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.image(batch["image"]).mean((2, 3)) + self.scalars(batch["scalars"])


class TwoInputs(nn.Module):
    """Two positional inputs, one of them a pair; several outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, first: Tensor, pair: tuple[Tensor, Tensor]) -> dict[str, Any]:
        left, right = pair
        merged = torch.cat([self.linear(first), left], dim=1)
        a, b = merged.chunk(2, dim=1)
        return {"sum": a - b, "parts": (torch.stack([a, right], dim=1), merged[:, ::2])}


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.relu(self.conv(x))
        return x


class InPlace(nn.Module):
    """Writes through views and into values that are read again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        kept = y[:, 0]
        y[:, 1] = 0.5
        y.relu_()
        return y + kept.unsqueeze(1)


class Recurrent(nn.Module):
    """An operator without a role among operators with one."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class FixedBatch(nn.Module):
    """The batch size is written into the code."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.reshape(4, 3, 6).transpose(0, 1)).permute(1, 0, 2)


@dataclass(frozen=True)
class Case:
    """A network and how to call it.

    Args:
        make: builds the module.
        inputs: makes the positional inputs for a number of samples.
        dynamic: whether any number of samples runs.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Any, ...]]
    dynamic: bool = True


def _image(channels: int, size: int = 8) -> Callable[[int], tuple[Tensor]]:
    return lambda n: (torch.randn(n, channels, size, size),)


MODELS: dict[str, Case] = {
    "conv_chain": Case(ConvChain, _image(3)),
    "residual": Case(Residual, _image(4)),
    "mobile": Case(Mobile, _image(4)),
    "grouped": Case(Grouped, _image(4)),
    "decoder": Case(Decoder, _image(4, 4)),
    "audio": Case(Audio, lambda n: (torch.randn(n, 2, 16),)),
    "volume": Case(Volume, lambda n: (torch.randn(n, 1, 4, 4, 4),)),
    "perceptron": Case(Perceptron, lambda n: (torch.randn(n, 6),)),
    "functional_norm": Case(FunctionalNorm, _image(3)),
    "transformer": Case(Transformer, lambda n: (torch.randint(0, 11, (n, 5)),)),
    "attention": Case(Attention, lambda n: (torch.randn(n, 5, 8),)),
    "stored_matrix": Case(StoredMatrix, lambda n: (torch.randn(n, 4, 6),)),
    "dict_input": Case(DictInput, lambda n: ({"image": torch.randn(n, 3, 6, 6), "scalars": torch.randn(n, 5)},)),
    "two_inputs": Case(TwoInputs, lambda n: (torch.randn(n, 4), (torch.randn(n, 4), torch.randn(n, 4)))),
    "reused": Case(Reused, _image(4)),
    "in_place": Case(InPlace, _image(3)),
    "recurrent": Case(Recurrent, lambda n: (torch.randn(n, 3, 4),)),
    "fixed_batch": Case(FixedBatch, lambda n: (torch.randn(n, 3, 6),), dynamic=False),
}
"""Name to case. Inputs are drawn from torch's global generator: seed it first where values matter."""

_SEED = 20


def build(name: str) -> nn.Module:
    """The network of a case, reproducible, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = MODELS[name].make()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.2, 3.0)
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.eval()
