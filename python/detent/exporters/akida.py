"""ONNX files in the quantized dialect of BrainChip's converter for Akida of the second generation.

The file is the integer program, operation by operation, in operators of the domain `com.brainchip`. Each is a function
of standard operators that lies in the file, so that onnxruntime computes it too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from detent.errors import ExportError
from detent.exporters.akida_functions import AKIDA_DOMAIN, AKIDA_VERSION, function_of
from detent.exporters.akida_operators import Translation
from detent.exporters.onnx_qdq import checked_bytes, describe_file, require_extra
from detent.exporters.report import ExportReport, require_writable, write_file
from detent.exporters.subject import ExportableModel
from detent.graph.names import NAME, describe_place
from detent.integer import IntegerProgram, QuantizeInput, lower
from detent.integer.operations import Convolution, LinearLayer, worst_accumulator
from detent.integer.windows import Average

__all__ = ["export_akida"]

_OPSET: Final = 21
_IR_VERSION: Final = 10
_BITS: Final = 8
_EXACT: Final = 1 << 24


def export_akida(qmodel: ExportableModel, path: str | Path) -> ExportReport:
    """Write a quantized model as the ONNX file that `cnn2snn.convert` reads.

    The same model gives the same bytes. It takes float32 pictures and gives float32 values. What the converter would
    refuse, round on its own or leave in float is refused before anything is written.

    Args:
        qmodel: a `QuantizedModel`, quantized for the target `akida2` or one that extends it.
        path: file to write; it is complete or not there.

    Raises:
        UnsupportedOpError: an operator or a grid has no integer form in Akida's arithmetic; the error names the layer.
        ExportError: the converter has no form for it, the package of the `onnx` extra is missing, or the file cannot be
            written.
    """
    path = Path(path)
    require_extra("onnx")
    require_writable(path)
    for side, dtype in (("inputs", qmodel.input_dtype), ("outputs", qmodel.output_dtype)):
        if dtype != "float32":
            raise ExportError(
                f"a file for Akida has float32 {side}, the model asks for {dtype}",
                remedy="quantize with input_dtype and output_dtype 'float32'",
            )
    places = {
        str(node.meta[NAME]): describe_place(node) for node in qmodel.graph_module.graph.nodes if NAME in node.meta
    }
    _check_widths(qmodel, places)
    program = lower(qmodel, runtime="akida")
    translation = Translation(program, _shapes(program, qmodel), places)
    translation.run(qmodel.output_names[0])
    proto = _model(qmodel, program, translation)
    describe_file(proto, qmodel, _ends(program))
    content = checked_bytes(proto, path)
    write_file(path, content)
    return ExportReport(
        path=path,
        format="akida",
        bytes=len(content),
        operators=Counter(node.op_type for node in proto.graph.node),
        rounding="int16x8",
        notes=tuple(_notes(program, lower(qmodel, runtime="onnxruntime"))),
    )


def _check_widths(qmodel: ExportableModel, places: Mapping[str, str]) -> None:
    for name in qmodel.plan.activations:
        grid = qmodel.plan.activation_grid(name)
        if grid is not None and grid.bits != _BITS:
            raise ExportError(
                f"the converter takes activations of {_BITS} bits, and this one has {grid.bits}",
                where=places.get(name, name),
                remedy="quantize for the target akida2; for the first generation there is no such file",
            )


def _shapes(program: IntegerProgram, qmodel: ExportableModel) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of the program, by running it once on zeros."""
    samples = []
    for spec in qmodel.inputs:
        shape = list(spec.shape)
        if spec.batch_axis is not None and qmodel.dynamic_batch:
            shape[spec.batch_axis] = 1
        samples.append(np.zeros(shape, np.float32))
    run = program.run(*samples, all_tensors=True)
    return {name: codes.shape for name, codes in run.codes.items()}


def _model(qmodel: ExportableModel, program: IntegerProgram, translation: Translation) -> Any:
    from onnx import TensorProto, helper

    (spec,), (output,) = qmodel.inputs, qmodel.output_names
    (last,) = program.outputs
    batch: int | str = "batch" if qmodel.dynamic_batch else spec.shape[0]
    results = translation.shapes[last]
    graph = helper.make_graph(
        translation.nodes,
        "detent",
        [helper.make_tensor_value_info(program.inputs[0], TensorProto.FLOAT, [batch, *spec.shape[1:]])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, *results[1:]])],
        translation.initializers,
    )
    names = sorted({node.op_type for node in translation.nodes})
    return helper.make_model(
        graph,
        functions=[function_of(name) for name in names],
        opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid(AKIDA_DOMAIN, AKIDA_VERSION)],
        ir_version=_IR_VERSION,
    )


def _ends(program: IntegerProgram) -> dict[str, Any]:
    """What goes in and comes out, as the metadata of ONNX files say it."""
    read = {one.inputs[0]: one.grid for one in program.operations if isinstance(one, QuantizeInput)}
    written = {name: program.grid(tensor) for tensor, name in zip(program.outputs, program.output_names, strict=True)}
    return {
        side: {
            name: {"dtype": "float32", "codes_dtype": grid.storage, "scale": grid.scale, "zero_point": grid.zero_point}
            for name, grid in ends.items()
        }
        for side, ends in (("inputs", read), ("outputs", written))
    }


def _notes(program: IntegerProgram, plain: IntegerProgram) -> list[str]:
    notes = [
        "the quantized dialect of Akida 2: cnn2snn.convert reads it, and no quantizeml.models.quantize comes before",
        "as rounding says, factors are multiplied and rounded upward; they have 8 bits here, biases 7 and a sign, "
        "while the quantized model computes with the plan's",
    ]
    factor, bias = 0.0, 0.0
    usual = {one.output: one for one in plain.operations}
    for one in program.operations:
        other = usual[one.output]
        if isinstance(one, Convolution | LinearLayer) and isinstance(other, Convolution | LinearLayer):
            factor = max(factor, float(np.abs(one.factors / other.factors - 1).max()))
            moved = np.abs(one.bias - other.bias) * np.broadcast_to(other.factors, other.bias.shape)
            bias = max(bias, float(moved.max(initial=0)))
        elif isinstance(one, Average) and one.factor is not None:
            exact = one.source.scale / (one.grid.scale * float(one.counts))
            factor = max(factor, abs(one.factor / exact - 1))
    notes.append(f"that changes a factor by up to {factor:.2%}, a bias by up to {bias:.2f} steps of the output")
    wide = [
        one.output
        for one in program.operations
        if isinstance(one, Convolution | LinearLayer) and worst_accumulator(one.kernel, one.bias, one.source) > _EXACT
    ]
    if wide:
        notes.append(f"accumulators that float32, in which onnxruntime adds, may round: {', '.join(wide)}")
    return notes
