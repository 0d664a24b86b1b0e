"""Encodings JSON for Qualcomm's converters, beside a float ONNX file whose tensors it names.

The converter quantizes the float file by the grids it is told. The kernels in it are the values of their codes, so that
it finds these codes again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from detent.errors import ConfigError
from detent.exporters.onnx_graph import OnnxGraph
from detent.exporters.onnx_lowering import fold_weight_transposes
from detent.exporters.onnx_names import name_values, strip_leftovers
from detent.exporters.onnx_qdq import checked_bytes, describe_file, require_extra
from detent.exporters.onnx_tagging import tag_quantizers
from detent.exporters.onnx_torch import translate
from detent.exporters.qualcomm_encodings import VERSIONS, Encoding, encode
from detent.exporters.qualcomm_lowering import check_axes, lower_to_encodings, values_without
from detent.exporters.report import ExportReport, require_writable, write_files
from detent.exporters.subject import ExportableModel, fix_batch

__all__ = ["export_qualcomm"]

_OPSET: Final = 18
"""The oldest that torch writes; a float graph needs no newer one."""
_NAMED: Final = 5
"""Values that a note names before it counts."""


def export_qualcomm(
    qmodel: ExportableModel, path: str | Path, *, version: str = "1.0.0", batch: int | None = None
) -> ExportReport:
    """Write an encodings file and, beside it with the suffix `.onnx`, the float model whose tensors it names.

    The same model gives the same bytes. Kernels are stored as the float values of their codes. Every shape is known.

    Args:
        qmodel: a `QuantizedModel`.
        path: the encodings file; both files are complete or not there.
        version: of the format: `"0.6.1"`, `"1.0.0"` or `"2.0.0"`, which alone holds 32-bit biases.
        batch: samples the model takes at a time; None takes the number it was captured with if that is fixed, else 1.

    Raises:
        ConfigError: an unknown version, a batch the model does not take, or a path that ends like the model's.
        ExportError: the packages of the `onnx` extra are missing, an operator has no ONNX form, a grid has no encoding
            (in this version), or a file cannot be written.
    """
    path, rules = Path(path), VERSIONS[version]
    require_writable(path)
    companion = path.with_suffix(".onnx")
    if companion == path:
        raise ConfigError(
            "the encodings and the model they belong to would be one file",
            where=str(path),
            remedy="end the path in .encodings; the model goes beside it as .onnx",
        )
    for package in ("onnx", "onnxscript"):
        require_extra(package)
    require_writable(companion)
    if batch is None and qmodel.dynamic_batch:
        batch = 1
    qmodel = fix_batch(qmodel, batch)
    tagged = tag_quantizers(qmodel)
    proto = translate(qmodel, tagged, _OPSET)
    graph = OnnxGraph(proto)
    fold_weight_transposes(graph)
    name_values(graph, tagged.quantizers, [spec.name for spec in qmodel.inputs], qmodel.output_names)
    encodings = lower_to_encodings(graph, tagged.quantizers)
    if not rules.states_axis:
        check_axes(graph, encodings, version)
    graph.write_back()
    notes = _notes(graph, encodings)
    strip_leftovers(proto)
    describe_file(proto, qmodel, _float_ends(graph))
    content = encode(encodings, version)
    write_files({path: content, companion: checked_bytes(proto, companion)})
    return ExportReport(
        path=path,
        format="qualcomm",
        bytes=len(content),
        operators=Counter(node.op_type for node in proto.graph.node),
        companions=(companion,),
        notes=notes,
    )


def _float_ends(graph: OnnxGraph) -> dict[str, Any]:
    """What goes in and comes out, as the metadata of ONNX files say it: floats, on the grids of their encodings."""
    sides = (("inputs", graph.inputs), ("outputs", graph.outputs))
    return {
        side: {name: {"dtype": "float32"} for name in names if graph.dtype(name) == "float"} for side, names in sides
    }


def _notes(graph: OnnxGraph, encodings: Sequence[Encoding]) -> tuple[str, ...]:
    notes: list[str] = []
    missing = values_without(graph, encodings)
    if missing:
        notes.append(f"the converter decides about what has no encoding: {_listed(missing)}")
    rounded = [one.name for one in encodings if one.bits == 32 and not _keeps_codes(graph, one)]
    if rounded:
        notes.append(f"biases whose 32-bit codes float32 holds only nearly: {_listed(rounded)}")
    return tuple(notes)


def _keeps_codes(graph: OnnxGraph, bias: Encoding) -> bool:
    """Whether a bias is sure to have its codes again when its float32 values, of 24 bits, are divided by its steps."""
    values = graph.array(bias.name)
    assert values is not None
    return bool(np.all(np.abs(values / bias.scale) < 1 << 22))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
