"""Integer programs give the codes that onnxruntime gives, tensor by tensor."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import detent
from detent import edit
from detent.errors import ConfigError, UnsupportedOpError
from detent.integer.operations import Sum
from tests.exporters.tapped import tapped_codes
from tests.fanout import VARIANTS, running
from tests.integer.networks import NETWORKS
from tests.models import MODELS, build

SAMPLES = 24
WIDTHS: dict[str, dict[str, Any]] = {
    "8": {},
    "kernels_of_4": {"weights_bits": 4},
    "kernels_of_7": {"weights_bits": 7},
    "learned_codes": {"weights_bits": 4, "rounding": "gptq"},
}


@functools.cache
def data(name: str) -> Tensor:
    return torch.randn(SAMPLES, *NETWORKS[name].shape, generator=torch.Generator().manual_seed(3))


@functools.cache
def quantized(name: str, width: str = "8") -> detent.QuantizedModel:
    torch.manual_seed(1)
    model = NETWORKS[name].make().eval()
    return detent.quantize(model, [data(name)], target="onnxruntime", progress=False, **WIDTHS[width])


def taps(qmodel: detent.QuantizedModel, inputs: list[Tensor], folder: Path) -> dict[str, np.ndarray]:
    """The codes of all tensors in onnxruntime, by the names that a program has for them."""
    return tapped_codes(detent.export(qmodel, folder / "model.onnx").path, inputs, optimize=True)


def assert_same_codes(program: detent.IntegerProgram, inputs: list[Tensor], wanted: Mapping[str, np.ndarray]) -> None:
    run = program.run(*inputs, all_tensors=True)
    assert set(wanted) <= set(run.codes)
    for name, codes in wanted.items():
        np.testing.assert_array_equal(run.codes[name], codes, err_msg=name)


@pytest.mark.parametrize(
    ("name", "width"),
    [(name, width) for name in NETWORKS for width in ("8", "kernels_of_4")]
    + [("convolutions", "kernels_of_7"), ("convolutions", "learned_codes")],
)
def test_the_codes_are_those_of_onnxruntime(name: str, width: str, tmp_path: Path) -> None:
    qmodel = quantized(name, width)
    inputs = [data(name)]
    assert_same_codes(detent.lower(qmodel), inputs, taps(qmodel, inputs, tmp_path))


@pytest.mark.parametrize("name", ["conv_chain", "residual", "mobile", "functional_norm", "reused"])
def test_models_of_all_kinds(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = list(MODELS[name].inputs(16))
    qmodel = detent.quantize(build(name), inputs, target="onnxruntime", progress=False)
    assert_same_codes(detent.lower(qmodel), inputs, taps(qmodel, inputs, tmp_path))


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_those_of_the_quantized_model(name: str) -> None:
    program = detent.lower(quantized(name))
    run = program.run(data(name))
    wanted = pytree.tree_leaves(quantized(name)(data(name)))
    for tensor, output, values in zip(program.outputs, run.outputs, wanted, strict=True):
        step = program.grid(tensor).scale
        # A code may differ where a float sum falls on the other side of a tie.
        off = np.abs(output - values.detach().numpy()) / step
        assert off.max() <= 1.01
        assert np.mean(off > 0.5) < 0.01


def test_the_same_codes_on_every_variant_and_in_any_batch() -> None:
    program, x = detent.lower(quantized("convolutions")), data("convolutions")
    wanted = program.run(x).outputs[0]
    for variant in VARIANTS:
        with running(variant):
            np.testing.assert_array_equal(program.run(x).outputs[0], wanted)
    for begin in range(0, SAMPLES, 5):
        np.testing.assert_array_equal(program.run(x[begin : begin + 5]).outputs[0], wanted[begin : begin + 5])


def test_runs_forget_what_is_not_asked_for() -> None:
    program, x = detent.lower(quantized("convolutions")), data("convolutions")
    assert set(program.run(x).codes) == set(program.outputs)
    run = program.run(x.numpy(), all_tensors=True)
    assert set(run.codes) == {operation.output for operation in program.operations}
    assert len(run.extremes) == 4
    for least, greatest in run.extremes.values():
        assert least < greatest


def test_sums_behind_padding_are_not_fused() -> None:
    sums = [one for one in detent.lower(quantized("moves")).operations if isinstance(one, Sum)]
    assert [one.rule for one in sums] == ["float"]
    sums = [one for one in detent.lower(quantized("arithmetic")).operations if isinstance(one, Sum)]
    assert {one.rule for one in sums if not one.negative} == {"fused_float"}


REFUSED = {
    "grouped": "prelu with numbers for channels",
    "decoder": "upsample_bilinear2d has no integer form yet",
    "volume": "conv3d has no integer form yet",
    "perceptron": "log_softmax has no integer form yet",
    "transformer": "embedding has no integer form",
    "attention": "its samples do not lie along its first axis",
    "stored_matrix": "its kernel is not on a grid",
    "in_place": "slice_scatter has no integer form",
    "recurrent": "getitem has no integer form",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_layer_and_the_line(name: str) -> None:
    torch.manual_seed(0)
    inputs = MODELS[name].inputs(8)
    qmodel = detent.quantize(build(name), [inputs[0]], target="onnxruntime", progress=False)
    with pytest.raises(UnsupportedOpError, match=REFUSED[name]) as found:
        detent.lower(qmodel)
    assert found.value.where is not None
    assert "tests/models.py:" in found.value.where


def test_outputs_and_kernels_without_grids() -> None:
    rules = [edit.rule(edit.name("head"), edit.weights(keep_float=True))]
    qmodel = detent.quantize(NETWORKS["moves"].make().eval(), [data("moves")], rules=rules, progress=False)
    with pytest.raises(UnsupportedOpError, match=r"has no integer form|not on a grid"):
        detent.lower(qmodel)


def test_numbers_that_moves_put_among_values() -> None:
    class Filled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.register_buffer("mask", torch.arange(12) > 8)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.conv(x)).masked_fill(self.mask, -1e9)

    qmodel = detent.quantize(Filled().eval(), [data("pools")], target="onnxruntime", progress=False)
    with pytest.raises(UnsupportedOpError, match="has no integer form yet") as found:
        detent.lower(qmodel)
    assert "masked_fill" in str(found.value)


@pytest.mark.parametrize(
    "choose",
    [
        lambda x: x.amax(1),
        lambda x: x.amin((2, 3)),
        lambda x: x.max(2)[0],
        lambda x: F.adaptive_max_pool2d(x, 3),
        lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    ],
)
def test_what_chooses_among_values_is_no_move(choose: Callable[[Tensor], Tensor]) -> None:
    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return choose(self.conv(x))

    qmodel = detent.quantize(Chosen().eval(), [data("pools")], target="onnxruntime", progress=False)
    with pytest.raises(UnsupportedOpError, match="has no integer form"):
        detent.lower(qmodel)


def test_accumulators_that_32_bits_do_not_hold() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(100_000, 1, bias=False)
            nn.init.constant_(self.linear.weight, 1.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x)

    qmodel = detent.quantize(Wide(), [torch.rand(8, 100_000)], target="onnxruntime", progress=False)
    with pytest.raises(ConfigError, match=r"accumulators reach 26\d{8}, which 32 bits do not hold"):
        detent.lower(qmodel)


def test_a_layer_may_have_the_name_of_an_input_s_codes() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x_codes = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.x_codes(x)

    program = detent.lower(detent.quantize(Named().eval(), [torch.randn(8, 4)], target="onnxruntime", progress=False))
    names = [operation.output for operation in program.operations]
    assert len(set(names)) == 2
    assert program.run(torch.zeros(1, 4)).outputs[0].shape == (1, 4)


def test_wrong_inputs() -> None:
    program = detent.lower(quantized("convolutions"))
    with pytest.raises(ConfigError, match="takes 1 inputs, got 2"):
        program.run(data("convolutions"), data("convolutions"))
    with pytest.raises(ConfigError, match="must be a quantized model, got a Convolutions"):
        detent.lower(NETWORKS["convolutions"].make())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no tensor 'nothing'"):
        program.grid("nothing")
    with pytest.raises(ValueError, match="x must have dtype float32, got float64"):
        program.run(data("convolutions").double())
    with pytest.raises(ValueError, match="do not fit x"):
        program.run(data("convolutions")[:, :2].contiguous())
    with pytest.raises(TypeError, match="must be a NumPy array"):
        program.run([1.0])  # type: ignore[arg-type]
