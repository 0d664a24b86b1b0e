"""TensorFlow Lite files with integer operators, for LiteRT and for microcontrollers.

The file is the integer program, operation by operation: codes, biases, scales and fused activations are those that
`detent.lower` computes with, and channels lie last, as the kernels want them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from detent import _core
from detent.errors import ConfigError, ExportError
from detent.exporters.onnx_io import IoChoice, resolve_io_types
from detent.exporters.report import ExportReport, require_writable, write_file
from detent.exporters.subject import ExportableModel
from detent.exporters.tflite_file import Tensor, require_flatbuffers
from detent.exporters.tflite_layout import choose_layouts, stored_shape
from detent.exporters.tflite_operators import Translation
from detent.exporters.tflite_parameters import Value, check_parameters, to_dictionary, to_json
from detent.integer import IntegerProgram, QuantizeInput, lower

__all__ = ["NARROW_FUNCTIONS", "TFLITE_OPERATORS", "TfliteContent", "export_tflite", "tflite_content"]

TFLITE_OPERATORS: Final = frozenset(
    (
        *("add", "avg_pool", "cat", "conv", "conv_transposed", "hardswish", "leaky_relu", "linear", "max_pool"),
        *("mean", "mul", "pad", "relu", "relu6", "resize_nearest", "sigmoid", "silu", "sub", "tanh"),
    )
)
"""What the file expresses on codes; and all that moves values from place to place."""

NARROW_FUNCTIONS: Final = frozenset(("hardswish", "sigmoid", "silu", "tanh"))
"""Those whose kernels for 16-bit codes integer programs do not have."""


def export_tflite(
    qmodel: ExportableModel,
    path: str | Path,
    *,
    batch: int = 1,
    runtime: str | None = None,
    inputs: IoChoice = None,
    outputs: IoChoice = None,
    parameters: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Write a quantized model as a TensorFlow Lite file.

    Pictures `[samples, channels, rows, columns]` are `[samples, rows, columns, channels]` in the file, signals
    `[samples, channels, columns]` that a convolution reads `[samples, 1, columns, channels]`.

    Args:
        qmodel: a `QuantizedModel`, for target `tflite` or one like it.
        path: file to write; it is complete or not there.
        batch: samples it takes at a time.
        runtime: whose arithmetic the report names, as `detent.lower` takes it; None takes the target's.
        inputs: element type of the inputs, or types by name: `"float32"`, `"int8"`, `"uint8"` or `"int16"`; None takes
            the target's.
        outputs: element type of the outputs, likewise.
        parameters: what an application wants to find in the file: names to numbers, texts or lists of these. They lie
            in the metadata `detent.parameters` as JSON, beside `detent.io` and `detent.preprocessing`, and in
            `SL_PARAMSv1` as MLTK's runtime reads them.

    Raises:
        ConfigError: an unknown element type or name, or parameters of another kind.
        UnsupportedOpError: an operator or a grid has no form in the file; the error names the layer.
        ExportError: the package of the `tflite` extra is missing, or the file cannot be written.
    """
    path = Path(path)
    require_writable(path)
    file = tflite_content(qmodel, batch=batch, runtime=runtime, inputs=inputs, outputs=outputs, parameters=parameters)
    write_file(path, file.content)
    return ExportReport(
        path=path, format="tflite", bytes=len(file.content), operators=file.operators, rounding=file.runtime
    )


@dataclass(frozen=True, kw_only=True)
class TfliteContent:
    """A finished file that is not written yet.

    Args:
        content: its bytes.
        ends: `"inputs"` and `"outputs"`: name to element type, shape, scale and zero point.
        parameters: of the application.
        operators: how many of each.
        runtime: whose arithmetic the program has that it was made from.
    """

    content: bytes
    ends: Mapping[str, Any]
    parameters: Mapping[str, Value]
    operators: Mapping[str, int]
    runtime: str


def tflite_content(
    qmodel: ExportableModel,
    *,
    batch: int,
    runtime: str | None,
    inputs: IoChoice,
    outputs: IoChoice,
    parameters: Mapping[str, Any] | None,
) -> TfliteContent:
    """The bytes of a TensorFlow Lite file; arguments and errors as `export_tflite` has them."""
    require_flatbuffers()
    if batch < 1:
        raise ConfigError(f"`batch` must be 1 or more, got {batch}")
    given = check_parameters(parameters or {})
    program = lower(qmodel, runtime=runtime)
    shapes = _shapes(program, qmodel, batch)
    translation = Translation(shapes, choose_layouts(program.operations, shapes))
    ends = _Ends(translation, program)
    ends.add_inputs(resolve_io_types(inputs, program.inputs, qmodel.input_dtype, "input"))
    for operation in program.operations:
        if not isinstance(operation, QuantizeInput):
            translation.add(operation)
    ends.add_outputs(resolve_io_types(outputs, program.output_names, qmodel.output_dtype, "output"))
    file = translation.file
    file.metadata = _metadata(qmodel, ends.described, given)
    return TfliteContent(
        content=file.to_bytes(f"detent {_core.version}"),
        ends=ends.described,
        parameters=given,
        operators=Counter(operator.name for operator in file.operators),
        runtime=program.runtime,
    )


def _shapes(program: IntegerProgram, qmodel: ExportableModel, batch: int) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of the program, by running it once on zeros."""
    samples = []
    for spec in qmodel.inputs:
        shape = list(spec.shape)
        if spec.batch_axis is not None:
            if not qmodel.dynamic_batch and shape[spec.batch_axis] != batch:
                raise ConfigError(
                    f"the model takes {shape[spec.batch_axis]} samples at a time, asked for are {batch}",
                    where=spec.name,
                    remedy=f"use batch={shape[spec.batch_axis]}",
                )
            shape[spec.batch_axis] = batch
        samples.append(np.zeros(shape, np.float32))
    run = program.run(*samples, all_tensors=True)
    return {name: codes.shape for name, codes in run.codes.items()}


class _Ends:
    """Inputs and outputs of the file, in the element types asked for."""

    def __init__(self, translation: Translation, program: IntegerProgram) -> None:
        self._to = translation
        self._program = program
        self.described: dict[str, dict[str, Any]] = {"inputs": {}, "outputs": {}}

    def add_inputs(self, types: Mapping[str, str]) -> None:
        """The inputs, and the codes they become."""
        to = self._to
        quantized = [one for one in self._program.operations if isinstance(one, QuantizeInput)]
        for name in self._program.inputs:
            readers = [one for one in quantized if one.inputs == (name,)]
            if not readers:
                raise ExportError("an input is not on a grid", where=name)
            if types[name] != "float32" and len(readers) > 1:
                raise ExportError(
                    "an input is on several grids, so it has no codes", where=name, remedy="use float32 inputs"
                )
            shape = stored_shape(to.shapes[readers[0].output], to.layouts[readers[0].output])
            own = types[name] == readers[0].grid.dtype.name
            number = -1 if own else to.file.add(self._end(name, readers[0], types[name], shape))
            for reader in readers:
                codes = to.output_of(reader)
                if own:
                    number = codes
                    to.file.tensors[codes] = self._end(name, reader, types[name], shape)
                else:
                    if to.file.tensors[codes].shape != shape:
                        raise ExportError("an input is read in two layouts", where=name)
                    to.operate("QUANTIZE", (number,), codes, version=1)
            to.file.inputs.append(number)
            self._describe("inputs", name, number)

    def add_outputs(self, types: Mapping[str, str]) -> None:
        """The outputs, from the codes they are."""
        to = self._to
        for tensor, name in zip(self._program.outputs, self._program.output_names, strict=True):
            number = to.numbers[tensor]
            codes = to.file.tensors[number]
            if types[name] != codes.dtype or number in (*to.file.inputs, *to.file.outputs):
                source = next(one for one in self._program.operations if one.output == tensor)
                end = to.file.add(self._end(f"{name}/{types[name]}", source, types[name], codes.shape))
                to.operate("DEQUANTIZE" if types[name] == "float32" else "QUANTIZE", (number,), end, version=2)
                number = end
            to.file.outputs.append(number)
            self._describe("outputs", name, number)

    def _end(self, name: str, operation: Any, dtype: str, shape: tuple[int, ...]) -> Tensor:
        grid = operation.grid
        if dtype == "float32":
            return Tensor(name=name, shape=shape, dtype=dtype)
        moved = {("uint8", "int8"): 128, ("int8", "uint8"): -128}
        own = grid.dtype.name
        if dtype != own and (dtype, own) not in moved:
            raise ExportError(f"its codes are {own}, asked for is {dtype}", where=name, remedy=f"use {own} or float32")
        zero_point = grid.zero_point + moved.get((dtype, own), 0)
        return Tensor(
            name=name,
            shape=shape,
            dtype=dtype,
            scales=np.array([grid.scale], np.float32),
            zero_points=np.array([zero_point], np.int64),
        )

    def _describe(self, side: str, name: str, number: int) -> None:
        tensor = self._to.file.tensors[number]
        entry: dict[str, Any] = {"dtype": tensor.dtype, "shape": list(tensor.shape)}
        if tensor.scales is not None and tensor.zero_points is not None:
            entry.update(scale=float(tensor.scales[0]), zero_point=int(tensor.zero_points[0]))
        self.described[side][name] = entry


def _metadata(qmodel: ExportableModel, ends: Mapping[str, Any], parameters: Mapping[str, Value]) -> dict[str, bytes]:
    found = {"detent.io": _json(ends)}
    if qmodel.preprocessing:
        found["detent.preprocessing"] = _json({name: one.to_dict() for name, one in qmodel.preprocessing.items()})
    if parameters:
        found["detent.parameters"] = to_json(parameters)
        found["SL_PARAMSv1"] = to_dictionary(parameters)
    return found


def _json(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()
