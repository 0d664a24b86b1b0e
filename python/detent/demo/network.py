"""`DigitsNet`: a small network with everything that makes quantizing interesting, and its trained weights."""

from __future__ import annotations

from importlib import resources

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from detent.demo.data import Split
from detent.errors import FormatError

__all__ = ["WEIGHTS_FILE", "DigitsNet", "accuracy", "load_network"]

WEIGHTS_FILE = "digits.safetensors"


class Separable(nn.Module):
    """Depthwise 3x3, then pointwise 1x1 with a linear output, as in MobileNetV2 (arXiv:1801.04381).

    Maps `[N, inputs, H, W]` to `[N, outputs, H/stride, W/stride]`.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(inputs)
        self.clip = nn.ReLU6()
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.pointwise_norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        x = self.clip(self.depthwise_norm(self.depthwise(x)))
        y: Tensor = self.pointwise_norm(self.pointwise(x))
        return y


class DigitsNet(nn.Module):
    """Classifies handwritten digits: images `[N, 1, 8, 8]` in 0..1 to logits `[N, 10]`."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.clip = nn.ReLU6()
        self.block1 = Separable(width, width)
        self.relu1 = nn.ReLU()
        self.down = Separable(width, 2 * width, stride=2)
        self.relu2 = nn.ReLU()
        self.block2 = Separable(2 * width, 2 * width)
        self.relu3 = nn.ReLU()
        self.classify = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        x = self.clip(self.stem_norm(self.stem(x)))
        x = self.relu1(x + self.block1(x))
        x = self.relu2(self.down(x))
        x = self.relu3(x + self.block2(x))
        logits: Tensor = self.classify(x.mean(dim=(2, 3)))
        return logits


def load_network() -> DigitsNet:
    """The trained network, in evaluation mode.

    Raises:
        FormatError: the weights of this installation are damaged.
    """
    network = DigitsNet()
    data = (resources.files("detent.demo") / WEIGHTS_FILE).read_bytes()
    try:
        network.load_state_dict(load(data))
    except (SafetensorError, RuntimeError) as error:
        raise FormatError(
            f"the demo's weights cannot be read: {error}", where=WEIGHTS_FILE, remedy="install detent again"
        ) from None
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network.eval()


def accuracy(network: nn.Module, split: Split) -> float:
    """Top-1: share of the images whose largest logit is at the label."""
    with torch.inference_mode():
        hits = network(split.images).argmax(1) == split.labels
    return float(hits.double().mean())
