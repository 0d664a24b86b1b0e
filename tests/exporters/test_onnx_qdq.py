"""ONNX export: what is in the file, and what onnxruntime makes of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from tests.exporters.hand_quantized import (
    HandQuantized,
    codebook,
    keep_float,
    mixed,
    power_of_two,
    quantize_by_hand,
    symmetric,
    uniform,
)
from tests.exporters.networks import Attention, Residual, TiedWeights
from torch import nn

from detent.config import Preprocessing
from detent.exporters import export, export_onnx, verify_onnx, verify_onnx_values
from detent.records.grid import Grid


def images(count: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def sequences(count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(2)
    return torch.randn(count, 5, 32, generator=random), torch.randn(count, 7, 32, generator=random)


@pytest.fixture(scope="module")
def residual() -> nn.Module:
    torch.manual_seed(0)
    return Residual()


@pytest.fixture(scope="module")
def exported(residual: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> tuple[HandQuantized, Path]:
    """The usual case: uint8 activations with zero points, int8 weights per channel, int32 biases."""
    qmodel = quantize_by_hand(residual, images())
    return qmodel, export(qmodel, tmp_path_factory.mktemp("onnx") / "residual.onnx").path


def initializers(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}


def kinds(path: Path) -> Counter[int]:
    return Counter(tensor.data_type for name, tensor in initializers(path).items() if name.endswith("_codes"))


def test_residual_network_agrees_with_onnxruntime(exported: tuple[HandQuantized, Path]) -> None:
    qmodel, path = exported
    for optimize in (False, True):
        agreement = verify_onnx(path, qmodel, images(), optimize=optimize)
        assert agreement.samples == 32
        assert agreement.largest_steps <= 1.0
        assert agreement.top1 is not None
        assert agreement.top1 >= 0.999


def test_every_value_agrees_given_the_same_inputs(exported: tuple[HandQuantized, Path]) -> None:
    qmodel, path = exported
    values = verify_onnx_values(path, qmodel, images())
    assert [value.name for value in values] == list(qmodel.plan.activations)
    assert max(value.largest_steps for value in values) <= 1.0
    assert max(value.off_fraction for value in values) <= 1e-4


def test_eight_bit_storage_holds_every_narrower_grid(residual: nn.Module, tmp_path: Path) -> None:
    """Signed, symmetric, narrow, per-channel and 5 to 7-bit grids: exact only behind a clip."""
    activations = {
        "x": symmetric(narrow_range=False),
        "stem": uniform(signed=True),
        "relu": power_of_two(6),
        "depthwise": uniform(7, axis=1),
        "relu6": uniform(5, signed=True),
        "pointwise": symmetric(8),
        "add": symmetric(6, axis=1),
    }
    weights = {"stem": symmetric(6, axis=0), "depthwise": symmetric(axis=0), "head": power_of_two(signed=True)}
    rules = mixed(power_of_two(), activations)
    qmodel = quantize_by_hand(
        residual, images(), activations=rules, weights=mixed(uniform(axis=0), weights), biases=False
    )
    path = export_onnx(qmodel, tmp_path / "model.onnx").path
    assert onnx.load(path).opset_import[0].version == 18
    assert kinds(path) == {TensorProto.INT8: 3, TensorProto.UINT8: 1}
    wide = 3.0 * images()  # beyond the limits of every grid
    agreement = verify_onnx(path, qmodel, wide)
    assert agreement.largest_steps <= 1.0
    assert agreement.top1 is not None
    assert agreement.top1 >= 0.999


def test_sixteen_and_four_bits_take_opset_21(residual: nn.Module, tmp_path: Path) -> None:
    activations = {
        "x": uniform(16),
        "stem": uniform(16, signed=True),
        "relu": symmetric(10, narrow_range=False),
        "depthwise": uniform(4),
        "relu6": power_of_two(3),
        "pointwise": uniform(12),
    }
    weights = {
        "stem": symmetric(4, axis=0),
        "depthwise": symmetric(3, axis=0, narrow_range=False),
        "pointwise": symmetric(16, axis=0),
        "head": uniform(4, axis=0),
    }
    qmodel = quantize_by_hand(
        residual,
        images(),
        activations=mixed(uniform(), activations),
        weights=mixed(symmetric(), weights),
        biases=False,
    )
    path = export_onnx(qmodel, tmp_path / "model.onnx").path
    assert onnx.load(path).opset_import[0].version == 21
    assert kinds(path) == {TensorProto.INT4: 2, TensorProto.INT16: 1, TensorProto.UINT4: 1}
    assert len(initializers(path)["stem.weight_codes"].raw_data) == 16 * 3 * 9 // 2
    for optimize in (False, True):
        assert verify_onnx(path, qmodel, 3.0 * images(), optimize=optimize).largest_steps <= 1.0


def test_quantizers_with_equal_numbers_are_kept_apart(tmp_path: Path) -> None:
    """Torch's exporter merges equal tensors: scales that agree must not make two values or widths one."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    for layer in (model[0], model[2]):
        nn.init.uniform_(layer.weight, 0.9, 1.0)  # one threshold for both kernels: 1
    data = torch.rand(8, 4)
    data[0] = 1.0
    weights = {
        "0": power_of_two(8, signed=True),
        "2": lambda value: Grid(kind="power_of_two", bits=4, signed=True, threshold=[0.0625]),  # the same step
    }
    qmodel = quantize_by_hand(
        model,
        data,
        activations=lambda value: Grid(kind="power_of_two", bits=8, signed=True, threshold=[4.0]),
        weights=mixed(keep_float, weights),
    )
    path = export_onnx(qmodel, tmp_path / "model.onnx").path
    names = {name for node in onnx.load(path).graph.node for name in node.output}
    assert {f"{name}_quantized" for name in qmodel.plan.activations} <= names
    assert kinds(path) == {TensorProto.INT8: 1, TensorProto.INT4: 1, TensorProto.INT32: 2}
    assert verify_onnx(path, qmodel, data).largest_steps == 0.0


def test_scales_per_group_become_blocks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    grouped = symmetric(4, axis=0, group_size=16, narrow_range=False)
    qmodel = quantize_by_hand(
        Attention(),
        sequences(),
        activations=keep_float,
        weights=mixed(keep_float, {"up": grouped, "down": symmetric(8, axis=0, group_size=8)}),
    )
    path = export_onnx(qmodel, tmp_path / "model.onnx").path
    blocks = [
        attribute.i
        for node in onnx.load(path).graph.node
        for attribute in node.attribute
        if attribute.name == "block_size"
    ]
    assert sorted(blocks) == [8, 16]
    assert verify_onnx(path, qmodel, sequences()).largest_steps <= 0.01
    assert verify_onnx(path, qmodel, sequences(), optimize=True).largest_steps <= 0.01


def test_codebooks_become_gathers(residual: nn.Module, tmp_path: Path) -> None:
    weights = mixed(
        symmetric(axis=0), {"stem": codebook(4, axis=0), "pointwise": codebook(5), "head": codebook(6, axis=0)}
    )
    qmodel = quantize_by_hand(residual, images(), weights=weights, biases=False)
    path = export_onnx(qmodel, tmp_path / "model.onnx").path
    assert kinds(path) == {TensorProto.UINT4: 1, TensorProto.UINT8: 2, TensorProto.INT8: 1}
    assert initializers(path)["stem.weight_table"].dims == [16]
    assert verify_onnx(path, qmodel, images()).largest_steps <= 1.0
    assert verify_onnx(path, qmodel, images(), optimize=True).largest_steps <= 2.0


def test_kernels_in_training_are_stored_as_their_present_codes(residual: nn.Module, tmp_path: Path) -> None:
    weights = mixed(symmetric(axis=0), {"stem": symmetric(4, axis=0), "head": uniform(16, axis=0)})
    qmodel = quantize_by_hand(residual, images(), weights=weights, trainable=True)
    before = qmodel.graph_module.state_dict().keys()
    path = export_onnx(qmodel, tmp_path / "model.onnx").path
    assert kinds(path) == {TensorProto.INT4: 1, TensorProto.INT8: 2, TensorProto.UINT16: 1}
    assert verify_onnx(path, qmodel, images()).largest_steps <= 1.0
    assert qmodel.graph_module.state_dict().keys() == before


def test_kernels_are_integers_and_no_float_copy_is_left(exported: tuple[HandQuantized, Path]) -> None:
    qmodel, path = exported
    assert kinds(path) == {TensorProto.INT8: 4, TensorProto.INT32: 4}
    stored = initializers(path)
    codes = numpy_helper.to_array(stored["stem.weight_codes"])
    assert codes.shape == (16, 3, 3, 3)
    assert np.array_equal(codes, qmodel.graph_module.get_buffer("stem.weight_codes").numpy())
    largest_float = max(t.dims[0] if t.dims else 1 for t in stored.values() if t.data_type == TensorProto.FLOAT)
    assert largest_float == 16  # scales per channel
    contents = [(t.data_type, tuple(t.dims), t.raw_data) for t in stored.values() if len(t.raw_data) > 8]
    assert len(contents) == len(set(contents))


def test_names_and_metadata_are_detents(exported: tuple[HandQuantized, Path]) -> None:
    model = onnx.load(exported[1])
    assert [value.name for value in model.graph.input] == ["x"]
    assert [value.name for value in model.graph.output] == ["head"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    names = {name for node in model.graph.node for name in node.output}
    assert {"x_quantized", "depthwise", "depthwise_dequantized", "relu6_quantized", "head_quantized"} <= names
    assert {node.domain for node in model.graph.node} == {""}
    assert [entry.domain for entry in model.opset_import] == [""]
    assert model.producer_name == "detent"
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["detent.target"] == "by hand"
    assert '"depthwise":"symmetric int8"' in properties["detent.plan"]
    assert not model.functions
    assert str(Path(torch.__file__).parent) not in model.SerializeToString().decode("latin-1")


def test_same_model_gives_the_same_bytes(exported: tuple[HandQuantized, Path], tmp_path: Path) -> None:
    qmodel, path = exported
    assert export(qmodel, tmp_path / "again.onnx").path.read_bytes() == path.read_bytes()


def test_several_inputs_and_outputs_and_transposed_kernels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    qmodel = quantize_by_hand(Attention(), sequences())
    path = export(qmodel, tmp_path / "attention.onnx").path
    model = onnx.load(path)
    assert [value.name for value in model.graph.input] == ["query", "memory"]
    assert [value.name for value in model.graph.output] == list(qmodel.output_names)
    assert numpy_helper.to_array(initializers(path)["up.weight_codes"]).shape == (32, 64)  # stored as MatMul reads it
    assert sum(node.op_type == "Transpose" for node in model.graph.node) == 1  # that of `memory`
    assert verify_onnx(path, qmodel, sequences(5)).largest_steps <= 1.0
    # Integer kernels round between operators in their own way.
    assert verify_onnx(path, qmodel, sequences(5), optimize=True).largest_steps <= 2.0


def test_fixed_batch_stays_fixed(residual: nn.Module, tmp_path: Path) -> None:
    qmodel = quantize_by_hand(residual, images(4), dynamic_batch=False)
    path = export(qmodel, tmp_path / "fixed.onnx").path
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4
    assert verify_onnx(path, qmodel, images(8)).largest_steps <= 1.0


def test_tied_kernel_is_stored_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(16, 8)
    qmodel = quantize_by_hand(TiedWeights(), inputs)
    path = export(qmodel, tmp_path / "tied.onnx").path
    assert kinds(path) == {TensorProto.INT8: 1}
    assert verify_onnx(path, qmodel, inputs).largest_steps <= 1.0


def test_newer_opset_and_preprocessing_on_request(residual: nn.Module, tmp_path: Path) -> None:
    qmodel = replace(quantize_by_hand(residual, images()), preprocessing={"x": Preprocessing(mean=0.5, layout="NCHW")})
    path = export(qmodel, tmp_path / "model.onnx", opset=23).path
    properties = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert properties["detent.preprocessing"] == '{"x":{"mean":[0.5],"dtype":"float32","layout":"NCHW"}}'
    assert onnx.load(path).opset_import[0].version == 23
    assert verify_onnx(path, qmodel, images()).largest_steps <= 1.0
