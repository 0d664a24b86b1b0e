"""ONNX files in the QDQ form: `QuantizeLinear`/`DequantizeLinear` pairs around float operators.

Weights are stored as integers of their own width and biases as int32, each behind a `DequantizeLinear`, so that one
file serves onnxruntime, OpenVINO, TensorRT and vendor tools that read the form.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from torch import fx
from torch.utils import _pytree as pytree

from detent import _core
from detent.errors import ExportError
from detent.exporters.onnx_dialects import choose_dialect
from detent.exporters.onnx_graph import OnnxGraph
from detent.exporters.onnx_io import IoChoice, resolve_io_types, set_io_types
from detent.exporters.onnx_lowering import fold_weight_transposes, lower_quantizers, tag_of
from detent.exporters.onnx_names import name_batch_axis, name_values, strip_leftovers
from detent.exporters.onnx_quantized import QdqGraph
from detent.exporters.onnx_tagging import least_opset, tag_quantizers
from detent.exporters.onnx_torch import DOMAIN, translate
from detent.exporters.report import ExportReport, require_writable, write_file
from detent.exporters.subject import ExportableModel, fix_batch
from detent.graph.shapes import is_float
from detent.records.grid import Grid

__all__ = [
    "UnfinishedFile",
    "build_qdq",
    "checked_bytes",
    "describe_file",
    "export_onnx",
    "finish_onnx",
    "require_extra",
]

_LARGEST_BYTES: Final = 2**31 - 1
"""A protobuf message cannot be larger."""


def export_onnx(
    qmodel: ExportableModel,
    path: str | Path,
    *,
    dialect: str | None = None,
    opset: int | None = None,
    inputs: IoChoice = None,
    outputs: IoChoice = None,
    batch: int | None = None,
) -> ExportReport:
    """Write a quantized model as a QDQ ONNX file.

    The same model gives the same bytes. The batch axis is named `batch` if the model was captured with a dynamic one.
    Kernels that are still being trained are stored as their present codes. The notes of the report say what the
    dialect's runtime needs to be told.

    Args:
        qmodel: a `QuantizedModel`.
        path: file to write; it is complete or not there.
        dialect: the runtime whose rules the file keeps, one of `DIALECTS`; None takes the plan's target where a dialect
            bears its name, and onnxruntime otherwise.
        opset: ONNX operator set; None takes the lowest that holds the model: 18, or 21 where codes of 4 or 16 bits or
            scales per group need it.
        inputs: element type of the float inputs, or types by name: `"float32"`, or `"int8"`, `"uint8"`, `"int16"`,
            `"uint16"` for the codes of their grids; None takes the target's. The metadata `detent.io` give scale and
            zero point.
        outputs: element type of the outputs, likewise.
        batch: number of samples the file takes, with every shape known; None leaves a dynamic batch dynamic, or takes 1
            where the dialect wants known shapes.

    Raises:
        ConfigError: an unknown dialect, element type or name, or a batch the model does not take.
        ExportError: the packages of the `onnx` extra are missing, an operator or grid has no ONNX form (at this opset)
            or none in this dialect, an input or output has no codes of the type asked for, the file would be larger
            than 2 GiB, or it cannot be written.
    """
    path, chosen = Path(path), choose_dialect(dialect, qmodel.plan.target)
    if batch is None and chosen.static and qmodel.dynamic_batch:
        batch = 1
    found = build_qdq(fix_batch(qmodel, batch), path, opset=opset, inputs=inputs, outputs=outputs)
    notes = chosen.check(found.qdq)
    return finish_onnx(found, path, format="onnx", rounding=chosen.rounding, notes=notes)


@dataclass(frozen=True, kw_only=True)
class UnfinishedFile:
    """A QDQ graph with inputs and outputs in float32, and what they shall become.

    Args:
        qdq: the graph.
        inputs: element type of each float input.
        outputs: element type of each output.
    """

    qdq: QdqGraph
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


def build_qdq(
    qmodel: ExportableModel, path: Path, *, opset: int | None, inputs: IoChoice, outputs: IoChoice
) -> UnfinishedFile:
    """Translate a model into a QDQ graph; arguments and errors as those of `export_onnx`."""
    for package in ("onnx", "onnxscript"):
        require_extra(package)
    require_writable(path)
    floats = [spec.name for spec in qmodel.inputs if spec.dtype.is_floating_point]
    input_types = resolve_io_types(inputs, floats, qmodel.input_dtype, "input")
    output_types = resolve_io_types(outputs, _float_outputs(qmodel), qmodel.output_dtype, "output")
    tagged = tag_quantizers(qmodel)
    chosen = _choose_opset(opset, least_opset(tagged))
    proto = translate(qmodel, tagged, chosen)
    found = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if found != chosen:
        raise ExportError(f"torch wrote opset {found} where {chosen} was asked for", remedy=f"use opset={found}")
    graph = OnnxGraph(proto)
    fold_weight_transposes(graph)
    name_values(graph, tagged.quantizers, [spec.name for spec in qmodel.inputs], qmodel.output_names)
    opaque = [node for node in graph.nodes if node.domain == DOMAIN]
    quantizers = {node.output[0]: tagged.quantizers[tag_of(node)] for node in opaque}
    lower_quantizers(graph, tagged.quantizers)
    qdq = QdqGraph(graph=graph, quantizers=quantizers, qmodel=qmodel)
    return UnfinishedFile(qdq=qdq, inputs=input_types, outputs=output_types)


def finish_onnx(
    file: UnfinishedFile,
    path: Path,
    *,
    format: str,
    rounding: str | None,
    notes: Sequence[str],
    rewrite: Callable[[QdqGraph], Sequence[str]] | None = None,
    domains: Mapping[str, int] = MappingProxyType({}),
) -> ExportReport:
    """Give inputs and outputs their types, describe, check and write the file.

    Args:
        file: the graph.
        path: file to write.
        format: name of the format.
        rounding: for the report.
        notes: likewise.
        rewrite: what else happens to the graph once inputs and outputs have their types; returns notes.
        domains: other domains than ONNX's own that operators have, with the version of each.

    Raises:
        ExportError: an input or output has no codes of its type, or the file cannot be written.
    """
    graph, qmodel = file.qdq.graph, file.qdq.qmodel
    ends = set_io_types(graph, file.inputs, file.outputs)
    more = [] if rewrite is None else rewrite(file.qdq)
    graph.write_back()
    proto = graph.proto
    if qmodel.dynamic_batch:
        name_batch_axis(proto)
    strip_leftovers(proto, domains)
    describe_file(proto, qmodel, ends)
    content = checked_bytes(proto, path)
    write_file(path, content)
    return ExportReport(
        path=path,
        format=format,
        bytes=len(content),
        operators=Counter(node.op_type for node in proto.graph.node),
        rounding=rounding,
        notes=(*notes, *more),
    )


def require_extra(package: str) -> Any:
    """Import a package of the `onnx` extra.

    Raises:
        ExportError: it is not installed; the error names the extra.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise ExportError(
            f"ONNX export needs the package {package!r}: {error}", remedy='pip install "detent[onnx]"'
        ) from error


def _float_outputs(qmodel: ExportableModel) -> list[str]:
    (output,) = (node for node in qmodel.graph_module.graph.nodes if node.op == "output")
    leaves = [leaf for leaf in pytree.tree_leaves(output.args[0]) if isinstance(leaf, fx.Node)]
    return [name for name, leaf in zip(qmodel.output_names, leaves, strict=True) if is_float(leaf)]


def _choose_opset(asked: int | None, least: tuple[int, str]) -> int:
    lowest, reason = least
    if asked is None:
        return lowest
    if asked < lowest:
        raise ExportError(f"opset {asked} is too old: {reason}", remedy=f"use opset={lowest} or newer")
    newest = import_module("onnx").defs.onnx_opset_version()
    if asked > newest:
        raise ExportError(f"the onnx package knows opsets up to {newest}, not {asked}", remedy=f"use opset={newest}")
    return asked


def describe_file(
    proto: Any, qmodel: ExportableModel, ends: Mapping[str, Any], producer: tuple[str, str] = ("detent", _core.version)
) -> None:
    """Write into a file who wrote it, from which plan, for which target, and what goes in and comes out.

    Args:
        proto: an `onnx.ModelProto`; changed in place.
        qmodel: the model it is made of.
        ends: what `set_io_types` tells of inputs and outputs.
        producer: name and version in the fields of ONNX for them; the metadata say `detent.version` in any case.
    """
    from onnx import helper

    plan = qmodel.plan
    proto.producer_name, proto.producer_version = producer
    proto.graph.name = "detent"
    widths = {
        "activations": {name: _in_words(plan.activation_grid(name)) for name in plan.activations},
        "weights": {name: _in_words(entry.grid) for name, entry in plan.weights.items()},
    }
    properties = {
        "detent.version": _core.version,
        "detent.target": plan.target,
        "detent.plan_sha256": hashlib.sha256(plan.to_json().encode()).hexdigest(),
        "detent.plan": _compact(widths),
        "detent.samples": str(plan.samples),
        "detent.io": _compact(ends),
    }
    if qmodel.preprocessing:
        records = {name: record.to_dict() for name, record in qmodel.preprocessing.items()}
        properties["detent.preprocessing"] = _compact(records)
    helper.set_model_props(proto, properties)


def _in_words(grid: Grid | None) -> str:
    return "float" if grid is None else f"{grid.kind} {'int' if grid.signed else 'uint'}{grid.bits}"


def _compact(data: Mapping[str, Any]) -> str:
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False)


def checked_bytes(proto: Any, path: Path) -> bytes:
    """The bytes of a file that passes ONNX's own check.

    Raises:
        ExportError: it does not, or is larger than 2 GiB.
    """
    import onnx

    size = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    if size > _LARGEST_BYTES:
        raise ExportError(
            f"the weights take {size / 2**30:.1f} GiB, and an ONNX file holds at most 2 GiB",
            where=str(path),
            remedy="quantize more layers, or use fewer bits",
        )
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"the exported graph does not pass ONNX's own check: {error}",
            where=str(path),
            remedy="this is a fault of detent or of torch's exporter; please report it with the model",
        ) from error
    content: bytes = proto.SerializeToString(deterministic=True)
    return content
