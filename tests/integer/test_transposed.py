"""Transposed convolutions of codes against PyTorch's on the same whole numbers in float64, which are exact there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import detent
from detent.errors import UnsupportedOpError
from detent.integer.operations import Convolution
from detent.kernels.reference import integer as twin

CASES: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "doubling": {"kernel_size": 2, "stride": 2},
    "cut": {"kernel_size": 4, "stride": 2, "padding": 1},
    "longer": {"kernel_size": 3, "stride": (2, 3), "padding": 1, "output_padding": (1, 2)},
    "dilated": {"kernel_size": (2, 3), "stride": 2, "dilation": (3, 2), "padding": (0, 1)},
    "groups": {"kernel_size": 3, "stride": 2, "groups": 2},
    "without_bias": {"kernel_size": 3, "stride": 2, "bias": False},
}


def quantized(model: nn.Module, x: torch.Tensor, target: str) -> detent.QuantizedModel:
    return detent.quantize(model.eval(), [x], target=target, progress=False)


@pytest.mark.parametrize("runtime", ["onnxruntime", "tflite_micro"])
@pytest.mark.parametrize("name", CASES)
def test_accumulators_are_exact(name: str, runtime: str) -> None:
    torch.manual_seed(0)
    model, x = nn.ConvTranspose2d(4, 6, **CASES[name]), torch.randn(5, 4, 5, 6)
    qmodel = quantized(model, x, "tflite" if runtime == "tflite_micro" else runtime)
    program = detent.lower(qmodel)
    (layer,) = (one for one in program.operations if isinstance(one, Convolution))
    run = program.run(x, all_tensors=True)
    codes = torch.from_numpy(layer.source.centred(run.codes[layer.inputs[0]])).double()
    groups = layer.groups
    # Back to torch's order: inputs first, rows and columns as they were.
    parted = np.flip(layer.kernel, (2, 3)).reshape(groups, 6 // groups, 4 // groups, *layer.kernel.shape[2:])
    kernel = np.ascontiguousarray(parted.swapaxes(1, 2).reshape(4, 6 // groups, *layer.kernel.shape[2:]))
    options = {key: value for key, value in CASES[name].items() if key not in ("kernel_size", "bias")}
    acc = F.conv_transpose2d(
        codes, torch.from_numpy(kernel).double(), torch.from_numpy(layer.bias.copy()).double(), **options
    )
    whole = acc.numpy().astype(np.int64)
    how = layer.grid.requantization(layer.rule, layer.factors)
    wanted = twin.requantize(whole, how, layer.grid.dtype, axis=1)
    np.testing.assert_array_equal(run.codes[layer.output], wanted)
    assert run.extremes[layer.output] == (whole.min(), whole.max())


def test_along_one_axis_and_close_to_the_quantized_model() -> None:
    torch.manual_seed(0)
    model, x = nn.ConvTranspose1d(3, 4, 5, stride=3, padding=2, output_padding=1), torch.randn(6, 3, 9)
    qmodel = quantized(model, x, "onnxruntime")
    program = detent.lower(qmodel)
    step = program.grid(program.outputs[0]).scale
    apart = np.abs(program.run(x).outputs[0] - qmodel(x).detach().numpy()) / step
    assert apart.max() <= 1.01
    assert np.mean(apart > 0.5) < 0.01


def test_cuts_beyond_the_kernel_are_refused() -> None:
    model = nn.ConvTranspose2d(2, 3, 2, stride=3, padding=2)
    with pytest.raises(UnsupportedOpError, match="cuts off more"):
        detent.lower(quantized(model, torch.randn(4, 2, 6, 6), "onnxruntime"))
