"""Weights files: what is in them, what comes back, and what is refused."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load as parse_safetensors
from safetensors.numpy import save_file
from tests.exporters.hand_quantized import (
    codebook,
    keep_float,
    mixed,
    quantize_by_hand,
    symmetric,
    uniform,
)
from tests.exporters.networks import Attention, Residual, TiedWeights
from tests.integer.networks import NETWORKS
from torch import nn
from torch.utils import _pytree as pytree

import detent
from detent.errors import ConfigError, ExportError, FormatError, UnsupportedOpError
from detent.exporters import verify_onnx
from detent.records.tensor_file import read_tensor_file, tensor_file

KIND, VERSION, NETWORK = "detent.weights", 1, "network:zlib"


def images(count: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def residual() -> nn.Module:
    torch.manual_seed(0)
    return Residual()


def round_trip(qmodel: Any, folder: Path, *inputs: torch.Tensor) -> tuple[detent.QuantizedModel, Path]:
    """Write and load; everything a user can see of the model must be the same."""
    path = detent.export(qmodel, folder / "weights.safetensors").path
    loaded = detent.load(path)
    with torch.no_grad():
        ours, theirs = (pytree.tree_flatten(model(*inputs)) for model in (qmodel, loaded))
    assert ours[1] == theirs[1]
    assert all(torch.equal(a, b) for a, b in zip(ours[0], theirs[0], strict=True))
    assert loaded.plan.to_json() == qmodel.plan.to_json()
    for name in ("inputs", "output_names", "dynamic_batch", "input_dtype", "output_dtype", "preprocessing", "notes"):
        assert getattr(loaded, name) == getattr(qmodel, name), name
    detent.export(loaded, folder / "again.safetensors")
    assert (folder / "again.safetensors").read_bytes() == path.read_bytes()
    return loaded, path


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"target": "onnxruntime"},
    "four bits": {"target": "onnxruntime", "weights_bits": 4},
    "powers of two": {"target": "imx500"},
    "gptq": {"target": "imx500", "weights_bits": 4, "rounding": "gptq"},
    "learned": {"target": "imx500", "weights_bits": 4, "rounding": "learned", "learned": {"steps": 20}},
    "equalized": {"target": "tflite", "equalization": "cross_layer", "linear_collapsing": True},
    "sequential": {"target": "imx500", "bias_correction": "sequential", "gain_correction": "second_moment"},
    "shifted": {"target": "imx500", "shift_negative": True},
    "per channel": {"target": "default", "activation_per_channel": True},
    "mixed": {
        "target": "onnxruntime",
        "budget": {"weights": "60%"},
        "mixed_precision": {"samples": 8, "probes": 4, "evaluated": 2},
    },
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_what_is_loaded_computes_the_same_bits(residual: nn.Module, options: dict[str, Any], tmp_path: Path) -> None:
    qmodel = detent.quantize(residual, images(64), progress=False, **options)
    round_trip(qmodel, tmp_path, 2 * images())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_operator_comes_back(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = torch.randn(32, *NETWORKS[name].shape)
    qmodel = detent.quantize(NETWORKS[name].make(), data, target="onnxruntime", progress=False)
    data = data if qmodel.dynamic_batch else data[: len(qmodel.example[0])]
    loaded, _ = round_trip(qmodel, tmp_path, data)
    ours, theirs = (detent.lower(model).run(data, all_tensors=True).codes for model in (qmodel, loaded))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[tensor], theirs[tensor]) for tensor in ours)


def test_the_loaded_model_exports_as_the_first_one(residual: nn.Module, tmp_path: Path) -> None:
    qmodel = detent.quantize(residual, images(), target="onnxruntime", progress=False)
    loaded, _ = round_trip(qmodel, tmp_path, images())
    for suffix in (".onnx", ".pt2"):
        first, second = (tmp_path / f"{name}{suffix}" for name in ("first", "second"))
        detent.export(qmodel, first)
        detent.export(loaded, second)
        assert first.read_bytes() == second.read_bytes()
    assert verify_onnx(tmp_path / "second.onnx", loaded, images()).largest_steps <= 1.0
    assert loaded(images(1)).shape == (1, 10)


def test_hand_made_grids_ties_structures_and_fixed_batches(residual: nn.Module, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sequences = torch.randn(8, 5, 32), torch.randn(8, 7, 32)
    books = {"stem": codebook(4, axis=0), "pointwise": codebook(5), "head": codebook(6, axis=0)}
    grouped = {"up": symmetric(4, axis=0, group_size=16, narrow_range=False), "down": symmetric(8, axis=0)}
    wide = {"stem": symmetric(12, axis=0), "head": uniform(3, axis=0)}
    cases: list[tuple[nn.Module, Any, dict[str, Any]]] = [
        (residual, images(), {"weights": mixed(symmetric(axis=0), books), "biases": False}),
        (residual, images(), {"weights": mixed(symmetric(axis=0), wide), "biases": False}),
        (residual, images(4), {"dynamic_batch": False}),
        (Attention(), sequences, {}),
        (Attention(), sequences, {"activations": keep_float, "weights": mixed(keep_float, grouped)}),
        (TiedWeights(), torch.randn(16, 8), {}),
    ]
    for model, inputs, options in cases:
        given = inputs if isinstance(inputs, tuple) else (inputs,)
        round_trip(quantize_by_hand(model, inputs, **options), tmp_path, *given)


def test_kernels_in_training_come_back_as_codes(residual: nn.Module, tmp_path: Path) -> None:
    graph = detent.capture(residual, images())
    plan = detent.plan(graph, detent.calibrate(graph, images(), progress=False), target="onnxruntime")
    trained = detent.apply(graph, plan, trainable=True)
    report = detent.export(trained, tmp_path / "weights.safetensors")
    assert "4 kernels were being trained" in report.notes[0]
    loaded = detent.load(report.path)
    with torch.no_grad():
        assert torch.equal(trained(images()), loaded(images()))
    assert any(name.endswith("codes") for name, _ in loaded.named_buffers())


def test_raw_input_stays_raw(residual: nn.Module, tmp_path: Path) -> None:
    raw = torch.randint(0, 256, (16, 3, 12, 12), dtype=torch.uint8)
    graph = detent.capture(residual, raw, preprocessing=detent.Preprocessing(mean=127.5, std=64.0, dtype="uint8"))
    plan = detent.plan(graph, detent.calibrate(graph, raw, progress=False), target="onnxruntime")
    round_trip(detent.apply(graph, plan), tmp_path, raw)


def test_transposed_and_tied_tensors_keep_their_memory(tmp_path: Path) -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Parameter(torch.randn(6, 8).t())
            self.table = nn.Parameter(torch.randn(8, 5, 3).permute(2, 0, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x @ self.first) @ self.first.t() @ self.table

    torch.manual_seed(0)
    qmodel = quantize_by_hand(Turned(), torch.randn(4, 8), activations=keep_float, weights=keep_float)
    loaded, _ = round_trip(qmodel, tmp_path, torch.randn(4, 8))
    ours, theirs = (dict(model.graph_module.named_parameters()) for model in (qmodel, loaded))
    assert {name: (p.stride(), p.requires_grad) for name, p in ours.items()} == {
        name: (p.stride(), p.requires_grad) for name, p in theirs.items()
    }


def contents(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return json.loads(header["__metadata__"]["detent"]), parse_safetensors(raw)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 7])
def test_codes_are_packed_as_the_page_says(bits: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    kernel = symmetric(bits, axis=0, narrow_range=False)
    qmodel = quantize_by_hand(nn.Linear(7, 5), torch.randn(4, 7), weights=kernel)
    _, path = round_trip(qmodel, tmp_path, torch.randn(4, 7))
    meta, arrays = contents(path)
    (name,) = meta["packed"]
    entry, packed = meta["packed"][name], arrays[name]
    assert (entry["bits"], entry["signed"], entry["shape"], packed.dtype) == (bits, True, [5, 7], np.uint8)
    assert packed.nbytes == -(-35 * bits // 8)
    stream = int.from_bytes(packed.tobytes(), "little")
    codes = [(stream >> (bits * place)) & ((1 << bits) - 1) for place in range(35)]
    signed = [code - (1 << bits) if code >> (bits - 1) else code for code in codes]
    assert signed == qmodel.graph_module.state_dict()[name].flatten().tolist()
    assert len(set(signed)) > 2


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_file_is_about_as_large_as_its_integers(bits: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512))
    qmodel = quantize_by_hand(model, torch.randn(4, 512), weights=symmetric(bits, axis=0, narrow_range=False))
    written = detent.export(qmodel, tmp_path / "weights.safetensors").bytes
    integers = 2 * (512 * 512 * bits // 8 + 512 * 4)
    steps = 2 * 512 * 4
    assert integers < written < integers + steps + 8_000


def test_codes_of_learned_kernels_are_stored_once(residual: nn.Module, tmp_path: Path) -> None:
    options = {"target": "imx500", "weights_bits": 4, "progress": False}
    nearest, rounded = (
        detent.export(detent.quantize(residual, images(64), rounding=how, **options), tmp_path / f"{how}.safetensors")
        for how in ("nearest", "gptq")
    )
    assert rounded.bytes < nearest.bytes + 1_500


def weights_file(tmp_path: Path, residual: nn.Module) -> Path:
    qmodel = detent.quantize(residual, images(), target="onnxruntime", progress=False, weights_bits=4)
    return detent.export(qmodel, tmp_path / "weights.safetensors").path


def test_damaged_files(residual: nn.Module, tmp_path: Path) -> None:
    path = weights_file(tmp_path, residual)
    raw = path.read_bytes()
    random = np.random.default_rng(0)
    damaged = [raw[:size] for size in (0, 1, 7, 8, 9, 100, *random.integers(200, len(raw) - 1, 12), len(raw) - 1)]
    for place in random.integers(0, len(raw), 24):
        changed = bytearray(raw)
        changed[place] ^= 1 << int(random.integers(8))
        damaged.append(bytes(changed))
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(FormatError):
            detent.load(path)


def test_foreign_files(residual: nn.Module, tmp_path: Path) -> None:
    qmodel = detent.quantize(residual, images(), target="onnxruntime", progress=False)
    path = tmp_path / "file"
    detent.lower(qmodel).save(path)
    with pytest.raises(FormatError, match=r"holds 'detent\.program', not 'detent\.weights'"):
        detent.load(path)
    qmodel.plan.save(path)
    with pytest.raises(FormatError, match="not a complete weights file"):
        detent.load(path)
    save_file({"stem.weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(FormatError, match="not a complete weights file"):
        detent.load(path)
    torch.save(residual.state_dict(), path)
    with pytest.raises(FormatError, match="not a complete weights file"):
        detent.load(path)
    for missing in (tmp_path / "nothing", tmp_path, "no\0path"):
        with pytest.raises(FormatError, match="cannot read the file"):
            detent.load(missing)
    good = weights_file(tmp_path, residual)
    meta, arrays = read_tensor_file(good, KIND, VERSION, "")
    rest = {name: value for name, value in meta.items() if name not in ("format", "version")}
    for version in (0, 2):
        path.write_bytes(tensor_file(KIND, version, rest, arrays))
        with pytest.raises(FormatError, match=rf"(?s)version {version}.*reads version 1.*export the quantized"):
            detent.load(path)


def first(network: dict[str, Any], **wanted: Any) -> dict[str, Any]:
    return next(n for n in network["nodes"] if all(n.get(key) == value for key, value in wanted.items()))


def without_tensor(meta: dict[str, Any], network: dict[str, Any], arrays: dict[str, Any]) -> None:
    arrays.pop("stem.weight_scale")


def with_other_shape(meta: dict[str, Any], network: dict[str, Any], arrays: dict[str, Any]) -> None:
    meta["packed"]["stem.weight_codes"]["shape"] = [16, 27, 1, 1]


def with_more_codes(meta: dict[str, Any], network: dict[str, Any], arrays: dict[str, Any]) -> None:
    meta["packed"]["stem.weight_codes"]["shape"] = [17, 3, 3, 3]


def with_other_plan(meta: dict[str, Any], network: dict[str, Any], arrays: dict[str, Any]) -> None:
    meta["plan"] = meta["plan"].replace('"bits":4', '"bits":44', 1)


def with_target(target: str) -> Callable[..., None]:
    def craft(meta: dict[str, Any], network: dict[str, Any], arrays: dict[str, Any]) -> None:
        first(network, op="call_function", target="aten.relu.default")["target"] = target

    return craft


def with_node(key: str, value: Any, **wanted: Any) -> Callable[..., None]:
    def craft(meta: dict[str, Any], network: dict[str, Any], arrays: dict[str, Any]) -> None:
        first(network, **wanted)[key] = value

    return craft


INJECTED = "x: __import__('pathlib').Path('injected').touch()"
CRAFTED: dict[str, Callable[..., None]] = {
    "a tensor less": without_tensor,
    "another shape": with_other_shape,
    "more codes": with_more_codes,
    "a plan that makes no sense": with_other_plan,
    "a file operator": with_target("aten.from_file.default"),
    "an operator in place": with_target("aten.relu_.default"),
    "no operator": with_target("aten.no_such.default"),
    "another package": with_target("os.system"),
    "another namespace": with_target("detent_export.dequantize.default"),
    "an attribute": with_target("aten.relu.__class__"),
    "code as name": with_node("name", INJECTED, op="placeholder"),
    "code as input": with_node("target", INJECTED, op="placeholder"),
    "code as path": with_node("target", INJECTED, target="stem.weight_scale"),
    "code as keyword": with_node("kwargs", {INJECTED: 1}, op="call_function"),
    "a call of a module": with_node("op", "call_module", op="call_function"),
    "an unknown node": with_node("args", [{"node": "nobody"}], target="aten.relu.default"),
    "an unknown word": with_node("args", [{"dtype": "load"}], target="aten.relu.default"),
    "two words": with_node("args", [{"dtype": "float32", "node": "x"}], target="aten.relu.default"),
    "no arguments": with_node("args", [], target="aten.relu.default"),
}


@pytest.mark.parametrize("craft", CRAFTED.values(), ids=CRAFTED.keys())
def test_a_crafted_file_does_nothing_but_fail(
    craft: Callable[..., None], residual: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = weights_file(tmp_path, residual)
    meta, arrays = read_tensor_file(path, KIND, VERSION, "")
    network = json.loads(zlib.decompress(arrays[NETWORK].tobytes()))
    craft(meta, network, arrays)
    arrays[NETWORK] = np.frombuffer(zlib.compress(json.dumps(network).encode()), np.uint8)
    rest = {name: value for name, value in meta.items() if name not in ("format", "version")}
    path.write_bytes(tensor_file(KIND, VERSION, rest, arrays))
    with pytest.raises(FormatError, match=r"(?s)weights\.safetensors.*export the quantized model again"):
        detent.load(path)
    assert not (tmp_path / "injected").exists()


def test_what_cannot_be_written_is_refused_first(residual: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"

    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))

    with pytest.raises(UnsupportedOpError, match=r"(?s)a branch of the network.*where: .*torch\.cond"):
        detent.export(quantize_by_hand(nn.Sequential(nn.Linear(4, 4), Branch()), torch.randn(2, 4)), path)
    elsewhere = quantize_by_hand(nn.Linear(4, 8), torch.randn(4, 4))
    elsewhere.graph_module.to("meta")
    with pytest.raises(ExportError, match=r"(?s)lies on meta.*qmodel\.cpu\(\)"):
        detent.export(elsewhere, path)
    odd = quantize_by_hand(nn.Linear(4, 8), torch.randn(4, 4), activations=keep_float, weights=keep_float)
    odd.graph_module.bias = nn.Parameter(odd.graph_module.bias.detach().to(torch.bfloat16))
    with pytest.raises(ExportError, match=r"(?s)bfloat16 cannot be written.*where: bias"):
        detent.export(odd, path)
    with pytest.raises(ConfigError, match="quantized model"):
        detent.export(residual, path)
    with pytest.raises(ConfigError, match="'opset'"):
        detent.export(elsewhere, path, opset=18)
    with pytest.raises(ExportError, match="folder does not exist"):
        detent.export(quantize_by_hand(residual, images()), tmp_path / "no" / "weights.safetensors")
    assert not list(tmp_path.iterdir())
