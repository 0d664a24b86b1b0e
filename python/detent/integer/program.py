"""`IntegerProgram`: a network as operations on codes, which runs without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from detent._registry import unknown_name
from detent.errors import ConfigError
from detent.integer.code_grid import CodeGrid
from detent.integer.operations import Convolution, LinearLayer, Operation, worst_accumulator
from detent.integer.storage import described, restored
from detent.kernels.arrays import ArrayLike, as_array
from detent.records.files import write_atomically
from detent.records.tensor_file import read_tensor_file, tensor_file

__all__ = ["IntegerProgram", "IntegerRun", "Overflow"]

Codes = npt.NDArray[Any]
Overflow = Literal["error", "note"]
_SETTINGS: Final = ("runtime", "buffer_bits", "overflow")
_KIND: Final = "detent.program"
_VERSION: Final = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class IntegerRun:
    """What a program computed.

    Args:
        outputs: values of the outputs, float32, in order.
        codes: by tensor: those of the outputs, or of all tensors.
        extremes: the least and the greatest accumulator, by the tensor they end in.
        notes: layers whose accumulators left the program's buffers, where that is no error.
    """

    outputs: list[npt.NDArray[np.float32]]
    codes: Mapping[str, Codes]
    extremes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class IntegerProgram:
    """A network as operations on codes; see `detent.lower`.

    Args:
        operations: in order of execution.
        inputs: names of the inputs, float32 values `[samples, ...]`.
        outputs: names of the tensors that hold the outputs' codes.
        output_names: names of the outputs.
        runtime: whose arithmetic this is, of `detent.integer.RUNTIMES`.
        buffer_bits: of the device's accumulators; those of layers with 16-bit activations have 64 bits here.
        overflow: whether a layer whose accumulators could leave the buffers is an `"error"` or a `"note"`.
    """

    operations: tuple[Operation, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    output_names: tuple[str, ...]
    runtime: str
    buffer_bits: int = 32
    overflow: Overflow = "error"

    def __post_init__(self) -> None:
        if not 2 <= self.buffer_bits <= 32:
            raise ConfigError(f"`buffer_bits` must be 2 to 32, got {self.buffer_bits}")
        if self.overflow not in get_args(Overflow):
            raise unknown_name("way to treat overflows", self.overflow, get_args(Overflow))
        risks = self._risks()
        if risks and self.overflow == "error":
            layer, worst = next(iter(risks.items()))
            raise ConfigError(
                f"accumulators reach {worst}, which {self.buffer_bits} bits do not hold",
                where=layer,
                remedy="use kernels or activations of fewer bits in this layer, or overflow='note'",
            )

    @property
    def notes(self) -> tuple[str, ...]:
        """Layers whose accumulators could leave the buffers for some input, by the bound of their weights."""
        return tuple(
            f"{layer}: accumulators could reach {worst}, which {self.buffer_bits} bits do not hold"
            for layer, worst in self._risks().items()
        )

    def _risks(self) -> dict[str, int]:
        """Layers whose accumulators could leave the buffers, each with what they could reach."""
        most = 2 ** (self.buffer_bits - 1) - 1
        return {
            layer.output: worst for layer, worst in self._bounds() if worst > most and layer.source.dtype.itemsize == 1
        }

    def _bounds(self) -> Iterator[tuple[Convolution | LinearLayer, int]]:
        """Layers, each with what its accumulators cannot exceed in magnitude."""
        for operation in self.operations:
            if isinstance(operation, Convolution | LinearLayer):
                yield operation, worst_accumulator(operation.kernel, operation.bias, operation.source)

    def grid(self, tensor: str) -> CodeGrid:
        """The grid of a tensor's codes.

        Raises:
            ConfigError: there is no such tensor.
        """
        for operation in self.operations:
            if operation.output == tensor:
                return operation.grid
        raise ConfigError(f"the program has no tensor {tensor!r}")

    def run(self, *inputs: ArrayLike, all_tensors: bool = False) -> IntegerRun:
        """Run the program.

        Args:
            inputs: float32 values, one array or CPU tensor for each input.
            all_tensors: give the codes of all tensors, not of the outputs only.

        Raises:
            ConfigError: their number does not fit.
            ValueError: an array has another type or shape than the network takes.
        """
        if len(inputs) != len(self.inputs):
            raise ConfigError(f"the program takes {len(self.inputs)} inputs, got {len(inputs)}")
        held: dict[str, Codes] = {}
        for name, given in zip(self.inputs, inputs, strict=True):
            held[name] = as_array(given, name)
        last = {name: place for place, one in enumerate(self.operations) for name in one.inputs}
        extremes = {}
        for place, operation in enumerate(self.operations):
            found, reached = operation.run(*(held[name] for name in operation.inputs))
            held[operation.output] = found
            if reached is not None:
                extremes[operation.output] = reached
            for name in operation.inputs:
                if not all_tensors and last[name] == place and name not in self.outputs:
                    held.pop(name, None)
        kept = {one.output for one in self.operations} if all_tensors else set(self.outputs)
        most = 2 ** (self.buffer_bits - 1) - 1
        layers = [one for one in self.operations if isinstance(one, Convolution | LinearLayer)]
        narrow = {layer.output for layer in layers if layer.source.dtype.itemsize == 1}
        left = [name for name, ends in extremes.items() if name in narrow and max(ends[1], -ends[0]) > most]
        return IntegerRun(
            notes=tuple(f"{name}: accumulators left {self.buffer_bits} bits: {extremes[name]}" for name in left),
            outputs=[self.grid(name).values(held[name]) for name in self.outputs],
            codes={name: codes for name, codes in held.items() if name in kept},
            extremes=extremes,
        )

    def save(self, path: str | Path) -> None:
        """Write the program as a safetensors file, which is complete or not there.

        Raises:
            FormatError: it cannot be written.
        """
        entries, arrays = described(self.operations)
        ends = {name: list(getattr(self, name)) for name in ("inputs", "outputs", "output_names")}
        settings = {name: getattr(self, name) for name in _SETTINGS}
        meta = {**ends, **settings, "operations": entries}
        write_atomically(Path(path), tensor_file(_KIND, _VERSION, meta, arrays))

    @classmethod
    def load(cls, path: str | Path) -> IntegerProgram:
        """Read a program that `save` wrote.

        Raises:
            FormatError: the file is missing, damaged, of another kind or of another version.
        """
        meta, arrays = read_tensor_file(Path(path), _KIND, _VERSION, "lower the quantized model again")
        ends: dict[str, Any] = {name: tuple(meta[name]) for name in ("inputs", "outputs", "output_names")}
        settings = {name: meta[name] for name in _SETTINGS}
        return cls(operations=restored(meta["operations"], arrays), **settings, **ends)

    def summary(self, console: Console | None = None) -> None:
        """Print a table of all operations: codes they give, bytes they keep, bits their accumulators need at most."""
        console = console or Console()
        bounds = {layer.output: worst for layer, worst in self._bounds()}
        table = Table("tensor", "operation", "codes", title=f"{len(self.operations)} operations on codes")
        table.add_column("bytes", justify="right")
        table.add_column("accumulator", justify="right")
        for operation in self.operations:
            grid = operation.grid
            values = [getattr(operation, item.name) for item in fields(operation)]
            stored = sum(value.nbytes for value in values if isinstance(value, np.ndarray))
            bits = f"{bounds[operation.output].bit_length() + 1} bits" if operation.output in bounds else ""
            codes = f"{grid.dtype.name} {grid.lowest}..{grid.highest}"
            table.add_row(operation.output, type(operation).__name__, codes, str(stored or ""), bits)
        console.print(table)
