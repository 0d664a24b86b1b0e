"""Running an exported file where it will run, and comparing every tensor with the integer program."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

from detent._registry import unknown_name
from detent.errors import ConfigError
from detent.exporters.akida_functions import AKIDA_DOMAIN
from detent.exporters.onnx_codes import onnx_codes
from detent.exporters.onnx_verify import batches_of
from detent.exporters.subject import ExportableModel
from detent.exporters.tflite_codes import tflite_codes
from detent.integer import IntegerProgram, lower

__all__ = ["TensorAgreement", "Verification", "open_runtime", "verify"]

Codes = Mapping[str, npt.NDArray[Any]]
Runner = Callable[[list[npt.NDArray[Any]]], Codes]


@dataclass(frozen=True, kw_only=True)
class TensorAgreement:
    """One tensor of codes in the runtime and in the integer program.

    Args:
        name: of the tensor.
        count: codes compared.
        differing: how many of them differ.
        largest: largest difference.
    """

    name: str
    count: int
    differing: int
    largest: int


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What a comparison found.

    Args:
        path: the file.
        runtime: that ran it.
        samples: how many were run.
        tensors: in the program's order of execution.
        missing: tensors of the program that the file does not show.
    """

    path: Path
    runtime: str
    samples: int
    tensors: tuple[TensorAgreement, ...]
    missing: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether there was something to compare, and every code is the same."""
        return bool(self.tensors) and all(tensor.differing == 0 for tensor in self.tensors)

    @property
    def first(self) -> TensorAgreement | None:
        """The first tensor that differs; those behind it may only inherit its differences."""
        return next((tensor for tensor in self.tensors if tensor.differing), None)

    def __str__(self) -> str:
        count = sum(tensor.count for tensor in self.tensors)
        differing = sum(tensor.differing for tensor in self.tensors)
        text = (
            f"{self.path.name} in {self.runtime}: {differing} of {count} codes differ from the integer program, "
            f"{len(self.tensors)} tensors, {self.samples} samples"
        )
        return text if self.first is None else f"{text}; first in {self.first.name!r}, by up to {self.first.largest}"

    def show(self, console: Console | None = None) -> None:
        """Print a table of all tensors, then the sum of it."""
        console = console or Console()
        table = Table("tensor", box=None, pad_edge=False)
        for heading in ("codes", "differing", "largest"):
            table.add_column(heading, justify="right")
        for tensor in self.tensors:
            table.add_row(tensor.name, str(tensor.count), str(tensor.differing), str(tensor.largest))
        console.print(table)
        console.print(str(self), markup=False, soft_wrap=True)


_RUNNERS: Final[dict[str, Callable[..., Runner]]] = {
    "onnxruntime": onnx_codes,
    "tflite_micro": tflite_codes,
    "litert": tflite_codes,
    "litert_reference": tflite_codes,
    "akida": onnx_codes,
}
_BY_SUFFIX: Final = {".onnx": "onnxruntime", ".tflite": "tflite_micro"}


def open_runtime(path: Path, program: IntegerProgram) -> Runner:
    """A function from inputs to the codes of all tensors that a file shows, by the program's names.

    Args:
        path: the file.
        program: it was made from; its runtime runs the file.

    Raises:
        ExportError: the runtime is not installed, or cannot load the file.
    """
    return _RUNNERS[program.runtime](path, program)


def verify(
    path: str | os.PathLike[str],
    qmodel: ExportableModel,
    inputs: torch.Tensor | Sequence[torch.Tensor],
    *,
    runtime: str | None = None,
    batch_size: int = 64,
) -> Verification:
    """Run an exported file and compare all its codes with those of the integer program.

    Args:
        path: an ONNX file with integer operators or quantizers, or a TensorFlow Lite file.
        qmodel: the quantized model it came from.
        inputs: one tensor per input of the model, `[N, ...]`.
        runtime: that runs it: `"onnxruntime"`, `"tflite_micro"`, or with the package ai-edge-litert `"litert"` (its
            optimized kernels) and `"litert_reference"`, or `"akida"` for files in its dialect, which onnxruntime runs.
            None takes the one that fits the file.
        batch_size: samples that are held at once.

    Raises:
        ConfigError: an unknown runtime or suffix, or inputs that do not fit the model.
        ExportError: the runtime is not installed, or cannot load or run the file.
        UnsupportedOpError: the model has no integer program.
    """
    path = Path(path)
    if runtime is None and path.suffix not in _BY_SUFFIX:
        raise ConfigError(
            f"no runtime at hand reads {path.suffix!r} files", where=str(path), remedy="verify .onnx or .tflite files"
        )
    name = _runtime_for(path) if runtime is None else runtime
    if name not in _RUNNERS:
        raise unknown_name("runtime", name, _RUNNERS)
    program = lower(qmodel, runtime=name)
    run = open_runtime(path, program)
    tensors = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs)
    tally = _Tally(program)
    samples = 0
    for batch in batches_of(qmodel, tensors, batch_size):
        arrays = [np.ascontiguousarray(tensor.numpy()) for tensor in batch]
        wanted = program.run(*arrays, all_tensors=True).codes
        tally.add(wanted, run(arrays))
        samples += len(arrays[0])
    found = tuple(tally.result())
    names = {tensor.name for tensor in found}
    missing = tuple(one.output for one in program.operations if one.output not in names)
    return Verification(path=path, runtime=name, samples=samples, tensors=found, missing=missing)


def _runtime_for(path: Path) -> str:
    """The runtime of a file, by its suffix and, of ONNX files, by whose operators are in it."""
    akida = path.suffix == ".onnx" and path.is_file() and AKIDA_DOMAIN.encode() in path.read_bytes()
    return "akida" if akida else _BY_SUFFIX[path.suffix]


class _Tally:
    def __init__(self, program: IntegerProgram) -> None:
        self._order = [operation.output for operation in program.operations]
        self._found: dict[str, tuple[int, int, int]] = {}

    def add(self, wanted: Codes, got: Codes) -> None:
        for name in self._order:
            if name not in got:
                continue
            # A file may keep the axes of a mean.
            same = got[name].reshape(wanted[name].shape)
            apart = np.abs(wanted[name].astype(np.int64) - same.astype(np.int64))
            count, differing, largest = self._found.get(name, (0, 0, 0))
            most = int(apart.max(initial=0))
            self._found[name] = (count + apart.size, differing + int((apart > 0).sum()), max(largest, most))

    def result(self) -> Iterator[TensorAgreement]:
        for name in self._order:
            if name in self._found:
                count, differing, largest = self._found[name]
                yield TensorAgreement(name=name, count=count, differing=differing, largest=largest)
