"""PT2E programs: what is in them, what torch computes with them, and what is refused."""

from __future__ import annotations

import io
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.exporters.hand_quantized import (
    codebook,
    keep_float,
    mixed,
    power_of_two,
    quantize_by_hand,
    symmetric,
    uniform,
)
from tests.exporters.networks import Attention, Residual, TiedWeights
from tests.integer.networks import NETWORKS
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

import detent
from detent.errors import ConfigError, ExportError, UnsupportedOpError
from detent.exporters import to_exported_program
from detent.graph.quiet import quiet_torch


def images(count: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def residual() -> nn.Module:
    torch.manual_seed(0)
    return Residual()


def run(program: ExportedProgram, *inputs: torch.Tensor) -> Any:
    with quiet_torch(), torch.no_grad():
        return program.module()(*inputs)


def differences(qmodel: Any, program: ExportedProgram, *inputs: torch.Tensor) -> int:
    """Values of the program that are not the quantized model's, bit for bit."""
    with torch.no_grad():
        wanted, structure = pytree.tree_flatten(qmodel(*inputs))
    found, as_found = pytree.tree_flatten(run(program, *inputs))
    assert structure == as_found
    return sum(int((a != b).sum()) for a, b in zip(found, wanted, strict=True))


def calls(program: ExportedProgram) -> Counter[str]:
    return Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")


def arguments(program: ExportedProgram, operator: str) -> list[tuple[Any, ...]]:
    return [node.args for node in program.graph.nodes if operator in str(node.target)]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_programs_compute_what_the_model_computes(name: str, signed: bool) -> None:
    torch.manual_seed(0)
    data = torch.randn(64, *NETWORKS[name].shape)
    qmodel = detent.quantize(NETWORKS[name].make(), data, target="onnxruntime", progress=False)
    data = data if qmodel.dynamic_batch else data[: len(qmodel.example[0])]
    program = to_exported_program(qmodel, signed=signed)
    assert differences(qmodel, program, 1.5 * data) == 0
    kinds = {args[-1] for args in arguments(program, "quantize_per_tensor")}
    assert kinds == {torch.int8 if signed else torch.uint8}


def test_kernels_are_int8_buffers_and_biases_float(residual: nn.Module) -> None:
    qmodel = quantize_by_hand(residual, images())
    program = to_exported_program(qmodel)
    kernels = arguments(program, "dequantize_per_channel")
    assert [args[3:] for args in kernels] == [(0, -128, 127, torch.int8)] * 4
    state = program.state_dict
    assert state["stem.weight_codes"].dtype == torch.int8
    assert torch.equal(state["stem.weight_codes"], qmodel.graph_module.get_buffer("stem.weight_codes"))
    parts = [qmodel.graph_module.get_buffer(f"stem.bias_{leaf}") for leaf in ("codes", "scale", "zero_point")]
    assert torch.equal(state["stem.bias_codes_values"], torch.ops.detent.dequantize(*parts, 0))
    assert not any(tensor.dtype == torch.int32 for tensor in state.values())


def test_a_pair_stands_directly_before_every_layer() -> None:
    """ExecuTorch does not give a linear layer to XNNPACK where a reshape stands between."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(100, 6), nn.ReLU(), nn.Linear(6, 2)
    )
    program = to_exported_program(detent.quantize(model, images(), target="onnxruntime", progress=False))
    layers = [
        node for node in program.graph.nodes if str(node.target) in ("aten.linear.default", "aten.conv2d.default")
    ]
    assert len(layers) == 3
    for layer in layers:
        data, kernel = layer.args[:2]
        assert str(data.target) == "quantized_decomposed.dequantize_per_tensor.default"
        assert str(data.args[0].target) == "quantized_decomposed.quantize_per_tensor.default"
        assert str(kernel.target) == "quantized_decomposed.dequantize_per_channel.default"
    flat = next(node for node in program.graph.nodes if "flatten" in str(node.target))
    (quantize,) = flat.users
    pool = flat.args[0]
    assert quantize.args[1:] == pool.args[1:]  # the same grid on both sides


def test_a_value_goes_to_the_code_of_its_product_with_the_reciprocal() -> None:
    """Where PT2E can differ from a division: at the middle between two codes, by one code."""
    qmodel = quantize_by_hand(nn.ReLU(), torch.tensor([[-1.0, 3.0]]), activations=uniform(signed=True))
    program = to_exported_program(qmodel)
    _, scale, zero_point, qmin, qmax, _ = arguments(program, "quantize_per_tensor")[0]
    middles = (np.arange(-128, 127) - zero_point + 0.5) * scale
    near = np.float32(middles)
    values = np.stack([near, np.nextafter(near, np.float32(-9)), np.nextafter(near, np.float32(9))]).reshape(1, -1)
    codes = np.clip(np.rint(values * np.float32(1 / scale)) + zero_point, qmin, qmax)
    wanted = np.maximum((codes - zero_point).astype(np.float32) * np.float32(scale), 0)
    x = torch.from_numpy(values)
    found = run(program, x.expand(2, -1)[:, :2])
    assert found.shape == (2, 2)
    wide = quantize_by_hand(nn.ReLU(), x, activations=lambda value: qmodel.plan.activations["input"].grid)
    wide_program = to_exported_program(wide)
    assert np.array_equal(run(wide_program, x).numpy(), wanted)
    off = np.abs(run(wide_program, x).numpy() - wide(x).numpy()) / scale
    assert 0 < np.count_nonzero(off) < off.size / 4
    assert np.rint(off).max() == 1


def test_every_grid_that_pt2e_has(residual: nn.Module) -> None:
    activations = {
        "x": symmetric(narrow_range=False),
        "stem": uniform(16, signed=True),
        "relu": power_of_two(6),
        "depthwise": uniform(7, axis=1),
        "relu6": uniform(16),
        "add": symmetric(6, axis=1),
    }
    weights = {
        "stem": symmetric(4, axis=0),
        "depthwise": symmetric(16, axis=0),
        "pointwise": symmetric(3),
        "head": uniform(4, axis=0),
    }
    rules = {"activations": mixed(power_of_two(), activations), "weights": mixed(symmetric(), weights)}
    qmodel = quantize_by_hand(residual, images(), biases=False, **rules)
    for signed in (True, False):
        assert differences(qmodel, to_exported_program(qmodel, signed=signed), 3 * images()) == 0
    unsigned = arguments(to_exported_program(qmodel, signed=False), ".quantize_per_")
    assert {args[-1] for args in unsigned} == {torch.int8, torch.uint8, torch.int16, torch.uint16}
    ends = {args[-3:] for args in arguments(to_exported_program(qmodel), ".quantize_per_")}
    assert {(-32, 31, torch.int8), (-64, 63, torch.int8), (-32768, 32767, torch.int16)} <= ends


@pytest.mark.parametrize(("inputs", "limits"), [(6, (-8, 7)), (7, (-128, 127))])
def test_four_bits_are_told_where_xnnpack_computes_with_them(inputs: int, limits: tuple[int, int]) -> None:
    """It gives wrong values for an odd number of inputs, and does not lower convolutions of four bits."""
    torch.manual_seed(0)
    data = torch.randn(8, inputs)
    qmodel = detent.quantize(nn.Linear(inputs, 5), data, target="onnxruntime", weights_bits=4, progress=False)
    program = to_exported_program(qmodel)
    assert arguments(program, "dequantize_per_channel")[0][3:] == (0, *limits, torch.int8)
    assert differences(qmodel, program, data) == 0
    pixels = torch.randn(8, 6, 4, 4)
    conv = detent.quantize(nn.Conv2d(6, 4, 1), pixels, target="onnxruntime", weights_bits=4, progress=False)
    assert arguments(to_exported_program(conv), "dequantize_per_channel")[0][3:] == (0, -128, 127, torch.int8)


def test_structures_groups_ties_and_kernels_in_training(residual: nn.Module) -> None:
    torch.manual_seed(0)
    sequences = torch.randn(8, 5, 32), torch.randn(8, 7, 32)
    grouped = {
        "up": symmetric(4, axis=0, group_size=16, narrow_range=False),
        "down": symmetric(8, axis=0, group_size=8),
    }
    cases: list[tuple[nn.Module, Any, dict[str, Any]]] = [
        (Attention(), sequences, {}),
        (Attention(), sequences, {"activations": keep_float, "weights": mixed(keep_float, grouped)}),
        (TiedWeights(), (torch.randn(16, 8),), {}),
        (residual, (images(),), {"trainable": True}),
    ]
    for model, inputs, options in cases:
        qmodel = quantize_by_hand(model, inputs, **options)
        assert differences(qmodel, to_exported_program(qmodel), *inputs) == 0
    assert "quantized_decomposed.dequantize_per_channel.default" in calls(to_exported_program(qmodel))


def test_files_are_the_same_bytes_and_name_no_machine(residual: nn.Module, tmp_path: Path) -> None:
    qmodel = quantize_by_hand(residual, images())
    report = detent.export(qmodel, tmp_path / "model.pt2")
    detent.export(qmodel, tmp_path / "again.pt2")
    content = report.path.read_bytes()
    assert content == (tmp_path / "again.pt2").read_bytes()
    for place in (str(Path(torch.__file__).parent), str(Path(detent.__file__).parent), "networks.py", "detent_"):
        assert place.encode() not in content
    assert report.format == "pt2e"
    assert report.bytes == len(content)
    assert report.operators["quantized_decomposed.dequantize_per_channel.default"] == 4
    with quiet_torch():
        loaded = torch.export.load(io.BytesIO(content))
    assert differences(qmodel, loaded, images(5)) == 0


def test_the_operators_register_without_a_warning() -> None:
    code = "import torch.ao.quantization.fx._decomposed"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_batches(residual: nn.Module) -> None:
    qmodel = quantize_by_hand(residual, images())
    dynamic, one = to_exported_program(qmodel), to_exported_program(qmodel, batch=1)
    for count in (1, 2, 9):
        assert differences(qmodel, dynamic, images(count)) == 0
    assert differences(qmodel, one, images(1)) == 0
    with pytest.raises(Exception, match=r"(?i)guard|size|shape"):
        run(one, images(2))
    fixed = quantize_by_hand(residual, images(4), dynamic_batch=False)
    assert differences(fixed, to_exported_program(fixed, batch=4), images(4)) == 0
    with pytest.raises(ConfigError, match=r"(?s)4 samples at a time, not 3.*dynamic batch"):
        to_exported_program(fixed, batch=3)
    for wrong in (0, -1, 1.5, True, "2"):
        with pytest.raises(ConfigError, match="positive whole number"):
            to_exported_program(qmodel, batch=wrong)


def test_what_pt2e_cannot_express_is_refused_by_layer(residual: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    books = quantize_by_hand(residual, images(), weights=mixed(symmetric(axis=0), {"stem": codebook(4)}), biases=False)
    with pytest.raises(UnsupportedOpError, match=r"(?s)codebooks.*stem\.weight.*networks\.py.*uniform"):
        detent.export(books, path)
    groups = mixed(symmetric(axis=0), {"pointwise": symmetric(8, axis=0, group_size=8)})
    with pytest.raises(UnsupportedOpError, match=r"(?s)groups.*linear.*pointwise\.weight.*group_size"):
        detent.export(quantize_by_hand(residual, images(), weights=groups, biases=False), path)
    values = quantize_by_hand(nn.Linear(4, 8), torch.randn(4, 4))
    node = next(n for n in values.graph_module.graph.nodes if n.target is torch.ops.detent.fake_quantize.default)
    node.target, node.args = torch.ops.detent.lut_fake_quantize.default, (*node.args[:2], node.args[1], None)
    with pytest.raises(UnsupportedOpError, match=r"(?s)codebooks.*where: input"):
        detent.export(values, path)
    elsewhere = quantize_by_hand(nn.Linear(4, 8), torch.randn(4, 4))
    elsewhere.graph_module.to("meta")
    with pytest.raises(ExportError, match=r"(?s)lies on meta.*qmodel\.cpu\(\)"):
        detent.export(elsewhere, path)
    with pytest.raises(ConfigError, match=r"(?s)'opset'"):
        detent.export(elsewhere, path, opset=18)
    with pytest.raises(ExportError, match="folder does not exist"):
        detent.export(quantize_by_hand(residual, images()), tmp_path / "no" / "model.pt2")
    assert not list(tmp_path.iterdir())
