"""Kernel rows times patches, plus bias, is what the layer computes: every kind of layer, at every output position."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import detent
from detent.graph.patches import Windows, has_rows, kernel_rows

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (3, 6)),
    "linear on tokens": (lambda: nn.Linear(6, 4, bias=False), (2, 5, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, padding=1), (2, 4, 6, 5)),
    "strided": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (2, 4, 9, 8)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding="same", bias=False), (2, 4, 5, 5)),
    "same, dilated, even kernel": (lambda: nn.Conv2d(4, 6, (2, 4), padding="same", dilation=2), (2, 4, 7, 8)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), (2, 4, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, stride=(1, 2, 1), padding=1), (2, 2, 4, 5, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (2, 4, 5, 4)),
    "transposed, grouped": (lambda: nn.ConvTranspose2d(4, 6, (2, 3), stride=3, groups=2), (2, 4, 3, 4)),
    "transposed, wide padding": (lambda: nn.ConvTranspose1d(4, 2, 3, padding=3, dilation=2), (2, 4, 9)),
}


CASES = [(name, last) for name, (_, shape) in LAYERS.items() for last in (False, True)[: 1 + (len(shape) == 4)]]


@pytest.mark.parametrize(("name", "channels_last"), CASES)
def test_rows_times_patches_is_the_output(name: str, channels_last: bool) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(3)
    x = torch.randn(*shape)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    graph = detent.capture(make().eval(), x)
    (layer,) = [node for node in graph.nodes() if has_rows(node)]
    assert layer.weight is not None
    kernel = graph.tensor(layer.weight).detach().numpy()
    wanted = graph(x).detach()
    windows = Windows(layer, kernel.shape)
    patches = windows.at(x, np.arange(windows.positions(x)))
    found = torch.from_numpy(np.einsum("goi,gri->rgo", kernel_rows(layer, kernel), patches))
    found = found.reshape(found.shape[0], -1)
    if layer.bias is not None:
        found = found + graph.tensor(layer.bias).detach()
    expected = wanted.reshape(-1, 4) if name.startswith("linear") else wanted.flatten(2).transpose(1, 2).flatten(0, 1)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_some_positions_are_the_rows_at_those_positions() -> None:
    x = torch.randn(3, 4, 6, 5)
    graph = detent.capture(nn.Conv2d(4, 6, 3, padding=1), x)
    (layer,) = [node for node in graph.nodes() if has_rows(node)]
    windows = Windows(layer, (6, 4, 3, 3))
    everywhere = windows.at(x, np.arange(30)).reshape(1, 3, 30, 36)
    assert np.array_equal(windows.at(x, np.array([4, 17, 29])), everywhere[:, :, [4, 17, 29]].reshape(1, 9, 36))
