"""`IntegerProgram`: a network as operations on codes, which runs without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from detent.errors import ConfigError
from detent.integer.operations import CodeGrid, Convolution, LinearLayer, Operation, QuantizeInput, worst_accumulator
from detent.kernels.arrays import ArrayLike, as_array

__all__ = ["IntegerProgram", "IntegerRun"]

Codes = npt.NDArray[Any]
_NARROW: int = 2**31 - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class IntegerRun:
    """What a program computed.

    Args:
        outputs: values of the outputs, float32, in order.
        codes: by tensor: those of the outputs, or of all tensors.
        extremes: the least and the greatest accumulator, by the tensor they end in.
    """

    outputs: list[npt.NDArray[np.float32]]
    codes: Mapping[str, Codes]
    extremes: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class IntegerProgram:
    """A network as operations on codes; see `detent.lower`.

    Args:
        operations: in order of execution.
        inputs: names of the inputs, float32 values `[samples, ...]`.
        outputs: names of the tensors that hold the outputs' codes.
        output_names: names of the outputs.
    """

    operations: tuple[Operation, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    output_names: tuple[str, ...]

    def __post_init__(self) -> None:
        for operation in self.operations:
            layer = isinstance(operation, Convolution | LinearLayer)
            if not layer or operation.source.dtype.itemsize > 1:  # type: ignore[attr-defined]
                continue
            worst = worst_accumulator(operation.kernel, operation.bias, operation.source)  # type: ignore[attr-defined]
            if worst > _NARROW:
                raise ConfigError(
                    f"accumulators reach {worst}, which 32 bits do not hold",
                    where=operation.output,
                    remedy="use kernels or activations of fewer bits in this layer",
                )

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
        return IntegerRun(
            outputs=[self.grid(name).values(held[name]) for name in self.outputs],
            codes={name: codes for name, codes in held.items() if name in kept},
            extremes=extremes,
        )

    @property
    def quantized_inputs(self) -> tuple[str, ...]:
        """Tensors that hold the codes of the inputs."""
        return tuple(one.output for one in self.operations if isinstance(one, QuantizeInput))
