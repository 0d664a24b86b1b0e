"""Quantized models as one safetensors file: packed codes, steps, the plan and the network; `load` reads it back."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import fx, nn

from detent import _core
from detent.config import Preprocessing
from detent.errors import ConfigError, DetentError, ExportError, FormatError
from detent.exporters.packing import Packing, compress_steps, pack_tensor, refers, unpack_tensor
from detent.exporters.plan_vectors import joined_plan, split_plan
from detent.exporters.quantizers import (
    code_bits,
    quantizer_argument,
    quantizer_name,
    require_cpu,
    stored_tensor,
    with_stored_codes,
)
from detent.exporters.report import ExportReport, require_writable, write_file
from detent.exporters.subject import ExportableModel
from detent.graph import InputSpec
from detent.graph.description import described_graph, restored_graph
from detent.graph.tensors import copy_module, read_tensor
from detent.graph.values import record_values
from detent.quantized import QuantizedModel
from detent.records.plan import QuantPlan
from detent.records.tensor_file import read_tensor_file, tensor_file

__all__ = ["export_weights", "load"]

_KIND: Final = "detent.weights"
_VERSION: Final = 1
_NETWORK: Final = "network:zlib"
"""Array that holds the network, compressed JSON; paths of tensors have no colon."""
_REMEDY: Final = "export the quantized model again"


def export_weights(qmodel: ExportableModel, path: str | Path) -> ExportReport:
    """Write a quantized model as packed codes, with all that `detent.load` needs to build it again.

    The same model gives the same bytes. Kernels that are still being trained are stored as their present codes.

    Args:
        qmodel: a `QuantizedModel`.
        path: file to write; it is complete or not there.

    Raises:
        ExportError: the model is not on the CPU, a tensor has a type that safetensors has not, or the file cannot be
            written.
        UnsupportedOpError: the network calls operators of another package, or takes or returns objects that are no
            tuples, lists and dicts; the error names the layer.
    """
    path = Path(path)
    require_writable(path)
    module = copy_module(qmodel.graph_module)
    require_cpu(module)
    notes = _freeze_kernels(module)
    network = described_graph(module)
    packings = _packings(module, _widths(module, qmodel.plan))
    entries = {name: packing.entry for name, packing in packings.items() if packing.entry}
    packed = {name: entry for name, entry in entries.items() if "bits" in entry}
    network["tensors"] = {name: entry for name, entry in entries.items() if name not in packed}
    arrays = {name: packing.array for name, packing in packings.items() if packing.array is not None}
    plan, added = split_plan(qmodel.plan, {name: read_tensor(module, name).detach().numpy() for name in arrays})
    text = json.dumps(network, separators=(",", ":"))
    compressed = np.frombuffer(zlib.compress(text.encode(), 9), np.uint8)
    content = tensor_file(
        _KIND,
        _VERSION,
        {
            "writer": f"detent {_core.version}",
            "plan": plan,
            "packed": packed,
            "model": _described_model(qmodel),
        },
        {**arrays, **added, _NETWORK: compressed},
    )
    write_file(path, content)
    return ExportReport(path=path, format="safetensors", bytes=len(content), notes=notes)


def load(path: str | Path) -> QuantizedModel:
    """Read a quantized model that `detent.export` wrote as a `.safetensors` file.

    It computes what the model computed that was written, bit for bit. Nothing is unpickled, and the file can call no
    more than ATen's functional operators and detent's own. The user's source lines are not in the file, so errors of
    the loaded model name layers only.

    Args:
        path: the file.

    Raises:
        FormatError: the file is missing, damaged, of another kind or version, or holds an operator that this version
            of torch has not.
    """
    meta, arrays = read_tensor_file(Path(path), _KIND, _VERSION, _REMEDY)
    try:
        network = json.loads(zlib.decompress(arrays.pop(_NETWORK).tobytes()))
        entries, model = {**network["tensors"], **meta["packed"]}, meta["model"]
        own = {name for name in arrays if ":" not in name}
        tensors: dict[str, torch.Tensor] = {}
        for name in sorted({*own, *entries}, key=lambda name: (refers(entries.get(name, {})), name)):
            tensors[name] = unpack_tensor(arrays.get(name), entries.get(name, {}), tensors)
        whole = {**arrays, **{name: tensors[name].detach().numpy() for name in own}}
        plan = joined_plan(meta["plan"], whole, str(path))
        inputs = tuple(_restored_input(entry) for entry in model["inputs"])
        module = restored_graph(network, tensors)
        record_values(module, inputs, dynamic_batch=model["dynamic_batch"])
        return QuantizedModel(
            module,
            plan,
            inputs=inputs,
            outputs=tuple(model["outputs"]),
            dynamic_batch=model["dynamic_batch"],
            notes=list(model["notes"]),
            input_dtype=model["input_dtype"],
            output_dtype=model["output_dtype"],
        )
    except DetentError as error:
        raise FormatError(error.what, where=str(path), remedy=_REMEDY) from error
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError, zlib.error) as error:
        what = f"not a complete weights file ({type(error).__name__}: {error})"
        raise FormatError(what, where=str(path), remedy=_REMEDY) from None


def _freeze_kernels(module: fx.GraphModule) -> tuple[str, ...]:
    """Put codes in place of kernels in training."""
    nodes = [node for node in module.graph.nodes if quantizer_name(node) is not None]
    frozen = sum(with_stored_codes(module, node) is not node for node in nodes)
    module.graph.eliminate_dead_code()
    module.recompile()
    if not frozen:
        return ()
    return (f"{frozen} kernels were being trained: they are written as their present codes and load as those",)


def _widths(module: fx.GraphModule, plan: QuantPlan) -> dict[str, int]:
    """Width of codes by the path of their tensor, where it is less than that of their type."""
    widths: dict[str, int] = {}
    for node in module.graph.nodes:
        if quantizer_name(node) in ("dequantize", "lut_dequantize"):
            codes = quantizer_argument(node, 0, "codes")
            kind = stored_tensor(module, codes).dtype
            bits = code_bits(node, str(codes.target).removesuffix("_codes"), plan)
            if bits is not None and kind != torch.int32:
                widths[str(codes.target)] = bits
    return widths


def _packings(module: fx.GraphModule, widths: dict[str, int]) -> dict[str, Packing]:
    """Every tensor that the graph reads as it lies in the file, by path."""
    paths = sorted({str(node.target) for node in module.graph.nodes if node.op == "get_attr"})
    first: dict[int, str] = {}
    packings: dict[str, Packing] = {}
    for path in paths:
        tensor = read_tensor(module, path)
        tied = first.setdefault(id(tensor), path)
        if tied != path:
            packings[path] = Packing(entry={"same_as": tied}, array=None)
            continue
        try:
            packings[path] = pack_tensor(tensor, widths.get(path))
        except ConfigError as error:
            raise ExportError(error.what, where=path, remedy=error.remedy) from None
        if isinstance(tensor, nn.Parameter):
            packings[path].entry["parameter"] = {"trained": tensor.requires_grad}
    compress_steps(packings)
    return packings


def _described_model(qmodel: ExportableModel) -> dict[str, Any]:
    return {
        "inputs": [_described_input(spec) for spec in qmodel.inputs],
        "outputs": list(qmodel.output_names),
        "dynamic_batch": qmodel.dynamic_batch,
        "notes": list(qmodel.notes),
        "input_dtype": qmodel.input_dtype,
        "output_dtype": qmodel.output_dtype,
    }


def _described_input(spec: InputSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "key": spec.key,
        "shape": list(spec.shape),
        "dtype": str(spec.dtype).removeprefix("torch."),
        "batch_axis": spec.batch_axis,
        "preprocessing": None if spec.preprocessing is None else spec.preprocessing.to_dict(),
    }


def _restored_input(entry: dict[str, Any]) -> InputSpec:
    record = entry["preprocessing"]
    dtype = getattr(torch, entry["dtype"])
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"torch.{entry['dtype']} is no type")
    return InputSpec(
        name=entry["name"],
        key=entry["key"],
        shape=tuple(entry["shape"]),
        dtype=dtype,
        batch_axis=entry["batch_axis"],
        preprocessing=None if record is None else Preprocessing.from_dict(record, f"input {entry['name']!r}"),
    )
