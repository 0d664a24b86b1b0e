"""Random networks for laws about transforms: a hypothesis strategy of descriptions, and the modules they describe.

A description is a frozen value with a readable `repr`, so a failing example can be built again by pasting it:
`RandomNetwork(Description(...))`. Parameters come from the description's seed alone. Blocks are drawn rather than
single operators, so that the patterns rewrites look for (a layer and its norm, two layers in a row, a sum with a
shortcut, a value with two readers) are frequent. Ranges are chosen so that float32 rounding stays near 1e-6.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

__all__ = ["Block", "Conv", "Description", "RandomNetwork", "example", "networks"]

ACTIVATIONS: Final = ("none", "relu", "relu6", "prelu", "leaky_relu", "silu", "gelu", "hardswish")
NORMS: Final = ("none", "none", "module", "functional", "written_out")
SPATIAL: Final = 8
"""Entries along each axis of the input a kernel slides along."""


@dataclass(frozen=True, kw_only=True)
class Conv:
    """A convolution, then perhaps a norm and an activation."""

    outputs: int
    kind: str = "full"
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    padding: str = "zeros"
    bias: bool = True
    norm: str = "none"
    activation: str = "none"


@dataclass(frozen=True, kw_only=True)
class Block:
    """A few layers in one arrangement; see `_ARRANGEMENTS`."""

    arrangement: str
    convs: tuple[Conv, ...] = ()
    activation: str = "none"
    norm: str = "module"
    returned: bool = False


@dataclass(frozen=True, kw_only=True)
class Description:
    """All there is to know of a random network."""

    dims: int
    channels: int
    blocks: tuple[Block, ...]
    tail: str
    channels_last: bool = False
    seed: int = field(default=0)


class _Norm(nn.Module):
    """A batch norm in one of the forms users write it, with statistics as training would leave them."""

    def __init__(self, channels: int, dims: int, form: str) -> None:
        super().__init__()
        self.form, self.dims = form, dims
        self.norm = (nn.BatchNorm1d, nn.BatchNorm2d)[dims - 1](channels) if dims else nn.BatchNorm1d(channels)
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        self.norm.running_mean.normal_(std=0.5)
        self.norm.running_var.uniform_(0.3, 2.0)
        sign = torch.randint(0, 2, (channels,)) * 2.0 - 1
        self.norm.weight.data.uniform_(0.5, 1.5).mul_(sign)
        self.norm.bias.data.normal_(std=0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "module":
            return self.norm(x)
        mean, var, gamma, beta = self.norm.running_mean, self.norm.running_var, self.norm.weight, self.norm.bias
        if self.form == "functional":
            return F.batch_norm(x, mean, var, gamma, beta, eps=1e-3)
        shape = (1, -1, *[1] * self.dims)
        mean, var, gamma, beta = (t.reshape(shape) for t in (mean, var, gamma, beta))
        return (x - mean) * torch.rsqrt(var + 1e-3) * gamma + beta


def _activation(name: str, channels: int) -> nn.Module:
    if name == "prelu":
        module = nn.PReLU(channels)
        module.weight.data.uniform_(-0.3, 0.5)
        return module
    made: dict[str, nn.Module] = {
        "none": nn.Identity(),
        "relu": nn.ReLU(inplace=True),
        "relu6": nn.ReLU6(),
        "leaky_relu": nn.LeakyReLU(0.1),
        "silu": nn.SiLU(),
        "gelu": nn.GELU(),
        "hardswish": nn.Hardswish(),
    }
    return made[name]


class _ConvLayer(nn.Sequential):
    def __init__(self, inputs: int, conv: Conv, dims: int) -> None:
        groups = {"grouped": 2, "depthwise": inputs}.get(conv.kind, 1)
        reach = conv.dilation * (conv.kernel - 1) // 2
        padding: int | str = {"none": 0, "same": "same"}.get(conv.padding, reach)
        if conv.kind == "transposed":
            kind = (nn.ConvTranspose1d, nn.ConvTranspose2d)[dims - 1]
            layer = kind(inputs, conv.outputs, conv.kernel, conv.stride, reach, bias=conv.bias, dilation=conv.dilation)
        else:
            mode = "circular" if conv.padding == "circular" else "zeros"
            layer = (nn.Conv1d, nn.Conv2d)[dims - 1](
                inputs, conv.outputs, conv.kernel, conv.stride, padding, conv.dilation, groups, conv.bias, mode
            )
        steps: list[nn.Module] = [layer]
        if conv.norm != "none":
            steps.append(_Norm(conv.outputs, dims, conv.norm))
        super().__init__(*steps, _activation(conv.activation, conv.outputs))


class _Arrangement(nn.Module):
    """The layers of a block and how values flow through them."""

    def __init__(self, block: Block, inputs: int, dims: int) -> None:
        super().__init__()
        self.arrangement, self.dims = block.arrangement, dims
        parallel = block.arrangement in ("sum", "cat")
        sources = [inputs, *([inputs] * len(block.convs) if parallel else [c.outputs for c in block.convs])]
        self.layers = nn.ModuleList(
            _ConvLayer(source, conv, dims) for source, conv in zip(sources, block.convs, strict=False)
        )
        self.outputs = sum(c.outputs for c in block.convs) if block.arrangement == "cat" else inputs
        if block.convs and block.arrangement != "cat":
            self.outputs = block.convs[-1].outputs
        self.norm = _Norm(inputs, dims, block.norm) if block.arrangement == "norm_first" else nn.Identity()
        self.act = _activation(block.activation, self.outputs)

    def forward(self, x: Tensor) -> Tensor:
        if self.arrangement == "max_pool":
            return F.max_pool1d(x, 2) if self.dims == 1 else F.max_pool2d(x, 2)
        if self.arrangement == "avg_pool":
            return F.avg_pool1d(x, 2) if self.dims == 1 else F.avg_pool2d(x, 3, 1, 1)
        if self.arrangement == "sum":
            return self.act(self.layers[0](x) + self.layers[1](x))
        if self.arrangement == "cat":
            return self.act(torch.cat([layer(x) for layer in self.layers], 1))
        if self.arrangement == "reused":
            return self.act(self.layers[0](self.act(self.layers[0](x))))
        y = self.norm(x)
        for layer in self.layers:
            y = layer(y)
        if self.arrangement == "residual":
            y = y + x
        if self.arrangement == "residual_reversed":
            y = x + y
        return self.act(y)


class _Attention(nn.Module):
    """A transformer block on `[N, T, C]`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.up, self.down = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)
        for norm in (self.norm1, self.norm2):
            norm.weight.data.uniform_(0.5, 1.5)
            norm.bias.data.normal_(std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        shape = (x.shape[0], x.shape[1], 2, -1)
        q, k, v = (t.reshape(shape).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(y)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class _Tail(nn.Module):
    """What comes after the blocks."""

    def __init__(self, kind: str, channels: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "linear":
            steps = (
                nn.Linear(channels, 6),
                _Norm(6, 0, "module"),
                nn.ReLU(),
                nn.Linear(6, 5),
                nn.Linear(5, 3),
                nn.Softmax(-1),
            )
            self.layers = nn.Sequential(*steps)
        elif kind == "tokens":
            # A layer norm over two channels is all but a sign: it would blow up any rounding.
            self.layers = nn.Sequential(nn.Linear(channels, 8), _Attention(8), nn.LayerNorm(8), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "linear":
            return self.layers(x.flatten(2).mean(2))
        if self.kind == "tokens":
            return self.layers(x.flatten(2).transpose(1, 2))
        return x


class RandomNetwork(nn.Module):
    """The network of a description, in evaluation mode."""

    def __init__(self, description: Description) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(description.seed)
            blocks, channels = [], description.channels
            for block in description.blocks:
                blocks.append(_Arrangement(block, channels, description.dims))
                channels = blocks[-1].outputs
            self.blocks = nn.ModuleList(blocks)
            self.tail = _Tail(description.tail, channels)
        self.returned = [block.returned for block in description.blocks]
        if description.channels_last:
            self.to(memory_format=torch.channels_last)
        self.eval()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = []
        for block, returned in zip(self.blocks, self.returned, strict=True):
            x = block(x)
            if returned:
                values.append(x)
        return (self.tail(x), *values)


def example(description: Description, samples: int = 3) -> Tensor:
    """Inputs for the network of a description, the same at each call, in its memory format."""
    generator = torch.Generator().manual_seed(description.seed + 1)
    shape = (samples, description.channels, *[SPATIAL] * description.dims)
    x = torch.randn(shape, generator=generator)
    return x.contiguous(memory_format=torch.channels_last) if description.channels_last else x


_CHANNELS: Final = st.sampled_from((2, 4, 6))


@st.composite
def _convs(draw: st.DrawFn, inputs: int, size: int, *, outputs: int | None = None, keep: bool = False) -> Conv:
    """A convolution that fits; `keep` asks for one whose output is as large as its input."""
    kind = draw(st.sampled_from(("full", "full", "pointwise", "grouped", "depthwise", "transposed")))
    if kind == "transposed" and keep:
        kind = "full"
    outputs = draw(_CHANNELS) if outputs is None else outputs
    if kind == "depthwise" and outputs % inputs:
        kind = "full"
    kernel = 1 if kind == "pointwise" else draw(st.sampled_from((1, 3, 3, 5)))
    dilation = draw(st.sampled_from((1, 1, 2))) if size >= 4 else 1
    reach = dilation * (kernel - 1) // 2
    paddings = ["zeros", "same"] + ["none"] * (size > 2 * reach + 1 and not keep) + ["circular"] * (size >= reach)
    stride = 1 if keep else draw(st.sampled_from((1, 1, 2)))
    padding = draw(st.sampled_from(paddings)) if kind != "transposed" else "zeros"
    if padding == "same":
        stride = 1
    return Conv(
        outputs=outputs,
        kind=kind,
        kernel=kernel,
        stride=stride,
        dilation=dilation,
        padding=padding,
        bias=draw(st.booleans()),
        norm=draw(st.sampled_from(NORMS)),
        activation=draw(st.sampled_from(ACTIVATIONS)),
    )


def _size_after(conv: Conv, size: int) -> int:
    reach = conv.dilation * (conv.kernel - 1) // 2
    if conv.kind == "transposed":
        return (size - 1) * conv.stride + 1
    return (size - (2 * reach if conv.padding == "none" else 0) - 1) // conv.stride + 1


@st.composite
def _blocks(draw: st.DrawFn, inputs: int, size: int) -> Block:
    arrangements = ["chain", "chain", "pair", "norm_first", "residual", "residual_reversed", "sum", "cat", "reused"]
    if size >= 4:
        arrangements += ["max_pool", "avg_pool"]
    arrangement = draw(st.sampled_from(arrangements))
    activation = draw(st.sampled_from(ACTIVATIONS))
    returned = draw(st.sampled_from((False, False, False, True)))
    convs: list[Conv] = []
    if arrangement in ("sum", "cat"):
        outputs = draw(_CHANNELS) if arrangement == "sum" else 2
        convs = [draw(_convs(inputs, size, outputs=outputs, keep=True)) for _ in range(2)]
    elif arrangement in ("residual", "residual_reversed"):
        bare = draw(st.booleans())
        conv = draw(_convs(inputs, size, outputs=inputs, keep=True))
        convs = [_bare(conv, keep_norm=True) if bare else conv]
    elif arrangement == "reused":
        convs = [draw(_convs(inputs, size, outputs=inputs, keep=True))]
    elif arrangement == "pair":
        first = _bare(draw(_convs(inputs, size)), keep_norm=draw(st.booleans()))
        after = _size_after(first, size)
        second = draw(_convs(first.outputs, after))
        if draw(st.booleans()):
            second = Conv(outputs=second.outputs, kernel=1, bias=second.bias, norm=second.norm)
        convs = [first, second]
    elif arrangement in ("chain", "norm_first"):
        convs = [draw(_convs(inputs, size))]
    norm = draw(st.sampled_from(NORMS[2:]))
    return Block(arrangement=arrangement, convs=tuple(convs), activation=activation, norm=norm, returned=returned)


def _bare(conv: Conv, *, keep_norm: bool) -> Conv:
    """The convolution without its activation, so that the next layer reads it directly."""
    fields = {**vars(conv), "activation": "none"}
    return Conv(**(fields if keep_norm else {**fields, "norm": "none"}))


def _after(block: Block, inputs: int, size: int) -> tuple[int, int]:
    """Channels and size of a block's output."""
    if block.arrangement == "max_pool" or block.arrangement == "avg_pool":
        # Average pooling keeps the size of images and halves that of sequences; the smaller is safe for both.
        return inputs, size // 2
    if block.arrangement == "cat":
        return sum(conv.outputs for conv in block.convs), size
    if block.arrangement not in ("sum", "reused"):
        for conv in block.convs:
            size = _size_after(conv, size)
    return block.convs[-1].outputs, size


@st.composite
def networks(draw: st.DrawFn, max_blocks: int = 4) -> Description:
    """Descriptions of networks on `[N, C, 8]` or `[N, C, 8, 8]`: blocks of convolutions, then perhaps a head."""
    dims = draw(st.sampled_from((2, 2, 2, 1)))
    channels = first = draw(_CHANNELS)
    size, blocks = SPATIAL, []
    for _ in range(draw(st.integers(1, max_blocks))):
        blocks.append(draw(_blocks(channels, size)))
        channels, size = _after(blocks[-1], channels, size)
    return Description(
        dims=dims,
        channels=first,
        blocks=tuple(blocks),
        tail=draw(st.sampled_from(("none", "linear", "tokens"))),
        channels_last=dims == 2 and draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)),
    )
