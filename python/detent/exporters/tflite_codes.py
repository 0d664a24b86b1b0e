"""All codes that TensorFlow Lite's runtimes compute in a file, by the names that integer programs have for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detent.errors import ExportError
from detent.exporters.tflite_layout import choose_layouts, from_stored, to_stored
from detent.integer import IntegerProgram, QuantizeInput

__all__ = ["tflite_codes"]

Array = npt.NDArray[Any]
Codes = Mapping[str, Array]
_ARENA: Final = 64 * 1024 * 1024
"""Bytes of working memory that are offered to tflite-micro, which says no to too few and takes what it needs."""


def tflite_codes(path: Path, program: IntegerProgram) -> Callable[[list[Array]], Codes]:
    """A function from inputs to codes of all tensors that the file shows.

    Args:
        path: the file.
        program: it was made from, for runtime `"tflite_micro"`, `"litert"` or `"litert_reference"`.

    Raises:
        ExportError: the package is missing, or the file cannot be read or run.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ExportError(f"cannot read the file: {error.strerror}", where=str(path)) from error
    if content[4:8] != b"TFL3":
        raise ExportError("this is no TensorFlow Lite file", where=str(path))
    micro = program.runtime == "tflite_micro"
    opened = _Micro(content, path) if micro else _LiteRt(content, path, program.runtime)
    return _Run(opened, program)


class _Run:
    def __init__(self, interpreter: Any, program: IntegerProgram) -> None:
        self._interpreter = interpreter
        self._program = program

    def __call__(self, arrays: list[Array]) -> Codes:
        grids = {one.inputs[0]: one for one in self._program.operations if isinstance(one, QuantizeInput)}
        shapes = self._shapes(arrays)
        layouts = choose_layouts(self._program.operations, shapes)
        batch = self._interpreter.batch
        found: dict[str, list[Array]] = {}
        for begin in range(0, len(arrays[0]), batch):
            for place, (name, values) in enumerate(zip(self._program.inputs, arrays, strict=True)):
                reader = grids[name]
                part = to_stored(values[begin : begin + batch], layouts[reader.output])
                self._interpreter.feed(place, _encoded(part, reader, self._interpreter.dtype(place)))
            self._interpreter.invoke()
            for name, codes in self._codes(grids, set(shapes)):
                found.setdefault(name, []).append(from_stored(codes, layouts[name], shapes[name]))
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def _codes(self, readers: Mapping[str, QuantizeInput], wanted: set[str]) -> Iterator[tuple[str, Array]]:
        """Tensors by the program's names; an input that takes codes is the tensor that the program quantizes to."""
        for name, codes in self._interpreter.tensors(wanted | set(readers)).items():
            if name in wanted:
                yield name, codes
            elif codes.dtype == readers[name].grid.dtype:
                yield readers[name].output, codes

    def _shapes(self, arrays: list[Array]) -> dict[str, tuple[int, ...]]:
        batch = self._interpreter.batch
        if len(arrays[0]) % batch:
            raise ExportError(f"the file takes {batch} samples at a time, which do not divide {len(arrays[0])}")
        run = self._program.run(*(array[:batch] for array in arrays), all_tensors=True)
        return {name: codes.shape for name, codes in run.codes.items()}


def _encoded(values: Array, reader: QuantizeInput, dtype: np.dtype[Any]) -> Array:
    """Values as the file takes them: real ones, or codes."""
    if dtype == np.float32:
        return values.astype(np.float32)
    (codes, _), own = reader.run(values.astype(np.float32)), reader.grid.dtype
    return codes if dtype == own else (codes.astype(np.int16) + (128 if own == np.int8 else -128)).astype(dtype)


class _Micro:
    """tflite-micro's own interpreter, all tensors kept."""

    def __init__(self, content: bytes, path: Path) -> None:
        module = _package("tflite_micro.python.tflite_micro.runtime", "tflite-micro")
        schema = _package("tflite_micro.tensorflow.lite.micro.python.schema_py_generated", "tflite-micro")
        graph = schema.ModelT.InitFromPackedBuf(content, 0).subgraphs[0]
        stored = {number for number, tensor in enumerate(graph.tensors) if tensor.buffer}
        self._names = {tensor.name.decode(): n for n, tensor in enumerate(graph.tensors) if n not in stored}
        keep = module.InterpreterConfig.kPreserveAllTensors
        try:
            self._interpreter = module.Interpreter.from_bytes(
                content, arena_size=_ARENA + 8 * len(content), intrepreter_config=keep
            )
        except (RuntimeError, ValueError) as error:
            raise ExportError(f"tflite-micro cannot load the file: {error}", where=str(path)) from error
        self._details = [self._interpreter.get_input_details(place) for place in range(len(graph.inputs))]
        self.batch = int(self._details[0]["shape"][0])

    def dtype(self, place: int) -> np.dtype[Any]:
        found: np.dtype[Any] = np.dtype(self._details[place]["dtype"])
        return found

    def feed(self, place: int, values: Array) -> None:
        self._interpreter.set_input(np.ascontiguousarray(values), place)

    def invoke(self) -> None:
        self._interpreter.invoke()

    def tensors(self, wanted: set[str]) -> dict[str, Array]:
        return {
            name: np.array(self._interpreter.GetTensor(number, 0)["tensor_data"])
            for name, number in self._names.items()
            if name in wanted
        }


class _LiteRt:
    """LiteRT without delegates, all tensors kept."""

    def __init__(self, content: bytes, path: Path, runtime: str) -> None:
        module = _package("ai_edge_litert.interpreter", "ai-edge-litert")
        kinds = module.OpResolverType
        kind = kinds.BUILTIN_REF if runtime == "litert_reference" else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        try:
            self._interpreter = module.Interpreter(
                model_content=content, experimental_op_resolver_type=kind, experimental_preserve_all_tensors=True
            )
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise ExportError(f"LiteRT cannot load the file: {error}", where=str(path)) from error
        self._details = self._interpreter.get_input_details()
        self.batch = int(self._details[0]["shape"][0])

    def dtype(self, place: int) -> np.dtype[Any]:
        found: np.dtype[Any] = np.dtype(self._details[place]["dtype"])
        return found

    def feed(self, place: int, values: Array) -> None:
        self._interpreter.set_tensor(self._details[place]["index"], np.ascontiguousarray(values))

    def invoke(self) -> None:
        self._interpreter.invoke()

    def tensors(self, wanted: set[str]) -> dict[str, Array]:
        return {
            entry["name"]: self._interpreter.get_tensor(entry["index"])
            for entry in self._interpreter.get_tensor_details()
            if entry["name"] in wanted
        }


def _package(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ExportError(
            f"running the file needs the package {package!r}: {error}", remedy=f"pip install {package}"
        ) from error
