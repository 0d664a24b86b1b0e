"""ONNX files for Sony's IMX500 converter: float operators, with its own quantization operators between them.

The converter reads what Model Compression Toolkit writes: weights as floats that lie on their grids, each behind an
operator of the domain `mct_quantizers` that names the grid, and such an operator behind every value the sensor stores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import fx
from torch.utils import _pytree as pytree

from detent.errors import ExportError
from detent.exporters.imx500_checks import check_grids, check_places, moved_from
from detent.exporters.imx500_lowering import MCT_DOMAIN, MCT_VERSION, lower_to_mct
from detent.exporters.imx500_operators import TRIED_OPERATORS, check_operators
from detent.exporters.onnx_graph import OnnxGraph
from detent.exporters.onnx_lowering import fold_weight_transposes
from detent.exporters.onnx_names import name_batch_axis, name_values, strip_leftovers
from detent.exporters.onnx_qdq import checked_bytes, describe_file, require_extra
from detent.exporters.onnx_tagging import Tagged, tag_quantizers
from detent.exporters.onnx_torch import translate
from detent.exporters.report import ExportReport, require_writable, write_file
from detent.exporters.subject import ExportableModel

__all__ = ["export_imx500"]

_OPSET: Final = 18
"""The converter reads 15 to 20, torch writes 18 and newer."""


def export_imx500(qmodel: ExportableModel, path: str | Path) -> ExportReport:
    """Write a quantized model as the ONNX file that `imxconv-pt`, the converter for the IMX500, reads.

    The same model gives the same bytes. Inputs and outputs are float32; the metadata `detent.io` tell their grids. What
    the converter would refuse, or change without a word, is refused before anything is written.

    Args:
        qmodel: a `QuantizedModel`, quantized for the target `imx500` or one that extends it.
        path: file to write; it is complete or not there.

    Raises:
        ExportError: the packages of the `onnx` extra are missing, the converter does not take a grid, the place of a
            quantizer or an operator, or the file cannot be written.
    """
    path = Path(path)
    for package in ("onnx", "onnxscript"):
        require_extra(package)
    require_writable(path)
    _check_ends(qmodel)
    tagged = tag_quantizers(qmodel)
    check_grids(tagged)
    check_places(tagged)
    check_operators(tagged)
    proto = translate(qmodel, tagged, _OPSET)
    graph = OnnxGraph(proto)
    fold_weight_transposes(graph)
    name_values(graph, tagged.quantizers, [spec.name for spec in qmodel.inputs], qmodel.output_names)
    lower_to_mct(graph, tagged.quantizers)
    names = _plain_names(graph)
    graph.rename(names)
    graph.write_back()
    if qmodel.dynamic_batch:
        name_batch_axis(proto)
    strip_leftovers(proto, {MCT_DOMAIN: MCT_VERSION})
    # The converter asks for files of torch, whose exporter made this one; the metadata say that detent did.
    describe_file(proto, qmodel, _ends(qmodel, tagged, names), ("pytorch", torch.__version__.partition("+")[0]))
    content = checked_bytes(proto, path)
    write_file(path, content)
    return ExportReport(
        path=path,
        format="imx500",
        bytes=len(content),
        operators=Counter(node.op_type for node in proto.graph.node),
        notes=tuple(_notes(graph, names)),
    )


def _check_ends(qmodel: ExportableModel) -> None:
    for side, dtype in (("inputs", qmodel.input_dtype), ("outputs", qmodel.output_dtype)):
        if dtype != "float32":
            raise ExportError(
                f"a file for the IMX500 has float32 {side}, the model asks for {dtype}",
                remedy="quantize with input_dtype and output_dtype 'float32'; the converter makes them codes",
            )
    for spec in qmodel.inputs:
        if not spec.dtype.is_floating_point:
            raise ExportError(
                f"the converter takes real inputs, and this one is {str(spec.dtype).removeprefix('torch.')}",
                where=spec.name,
                remedy="convert it before the network, and give the network float32",
            )
        if not qmodel.dynamic_batch and spec.batch_axis is not None and spec.shape[spec.batch_axis] != 1:
            raise ExportError(
                f"the converter takes one sample at a time, and this input has {spec.shape[spec.batch_axis]}",
                where=spec.name,
                remedy="capture the model with one sample, or with a dynamic batch",
            )


def _plain_names(graph: OnnxGraph) -> dict[str, str]:
    """New names for values with a colon in theirs, behind which the converter looks for the number of an output."""
    graph.drop_unused()
    made = (name for node in graph.nodes for name in node.output)
    found = [name for name in dict.fromkeys([*graph.inputs, *graph.initializers, *made]) if ":" in name]
    return {name: graph.fresh(name.replace(":", "_")) for name in found}


def _ends(qmodel: ExportableModel, tagged: Tagged, names: Mapping[str, str]) -> Mapping[str, Any]:
    """Grids of inputs and outputs, in the words of other ONNX files."""
    graph = tagged.module.graph
    inputs = [next(iter(node.users)) for node in graph.nodes if node.op == "placeholder"]
    (end,) = (node for node in graph.nodes if node.op == "output")
    outputs = [moved_from(leaf) for leaf in pytree.tree_leaves(end.args[0])]
    sides = {
        "inputs": zip([spec.name for spec in qmodel.inputs], inputs, strict=True),
        "outputs": zip(qmodel.output_names, outputs, strict=True),
    }
    return {
        side: {names.get(name, name): _in_words(tagged, node) for name, node in pairs} for side, pairs in sides.items()
    }


def _in_words(tagged: Tagged, quantizer: fx.Node) -> dict[str, Any]:
    scale, low, high = quantizer.args[1], quantizer.args[3], quantizer.args[4]
    assert isinstance(scale, fx.Node)
    assert isinstance(low, int)
    assert isinstance(high, int)
    bits = (high - low).bit_length()
    return {
        "dtype": "float32",
        "codes_dtype": f"{'int' if low < 0 else 'uint'}{bits}",
        "scale": float(tagged.module.get_buffer(str(scale.target))),
        "zero_point": 0,
        "codes": [low, high],
    }


def _notes(graph: OnnxGraph, names: Mapping[str, str]) -> list[str]:
    notes = [
        "convert it with `imxconv-pt -i FILE -o FOLDER`; its memory report says whether the network fits",
        "the file names torch as its producer, as the converter wants; its metadata `detent.version` say who wrote it",
    ]
    untried = sorted({node.op_type for node in graph.nodes if node.domain != MCT_DOMAIN} - TRIED_OPERATORS)
    if untried:
        notes.append(f"operators that were not tried with the converter: {', '.join(untried)}")
    if names:
        notes.append(
            f"colons in names, which the converter cannot read, became underscores: {', '.join(names.values())}"
        )
    return notes
