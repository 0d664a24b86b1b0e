"""Operations of an integer program as Akida's operators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detent.errors import ExportError
from detent.exporters.akida_functions import AKIDA_DOMAIN
from detent.integer import CodeGrid, IntegerProgram
from detent.integer.operations import Convolution, LinearLayer, Move, Operation, QuantizeInput, Sum
from detent.integer.powers_of_two import alignment
from detent.integer.windows import Average

__all__ = ["Translation"]

_CHANNELS: Final = (1, 3)
_WEIGHT_LIMIT: Final = 127
Array = npt.NDArray[Any]


class Translation:
    """The nodes and the initializers of the file, from the operations of a program.

    Args:
        program: of the arithmetic `"akida"`.
        shapes: of all its tensors.
        places: where the user can find what computes a tensor, by its name.
    """

    def __init__(
        self, program: IntegerProgram, shapes: Mapping[str, tuple[int, ...]], places: Mapping[str, str]
    ) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._program = program
        self.shapes = shapes
        self._places = places
        # Tensors of the program, by the name of the value that holds their codes in the file.
        self._names: dict[str, str] = {}
        self._readers: dict[str, list[Operation]] = {}
        for one in program.operations:
            for name in one.inputs:
                self._readers.setdefault(name, []).append(one)

    def run(self, output: str) -> None:
        """Translate all operations; the output's values are called `output`.

        Raises:
            ExportError: an operation has no form that the converter takes; the error names the place.
        """
        self._check_ends()
        rules: dict[type[Operation], Any] = {
            QuantizeInput: self._quantize,
            Convolution: self._convolve,
            LinearLayer: self._multiply,
            Sum: self._add_up,
            Average: self._average,
            Move: self._move,
        }
        for operation in self._program.operations:
            rule = rules.get(type(operation))
            if rule is None:
                raise self._refusal(operation, f"Akida's dialect has no {type(operation).__name__} here")
            rule(operation)
        (last,) = self._program.outputs
        grid, channels = self._program.grid(last), self.shapes[last][1]
        scale = self._store(f"{last}/step", np.full(channels, grid.scale, np.float32))
        self._node("Dequantizer", [self._names[last], scale], f"{last}/values", value=output)

    def _refusal(self, operation: Operation, what: str, remedy: str | None = None) -> ExportError:
        name = operation.inputs[0] if isinstance(operation, QuantizeInput) else operation.output
        return ExportError(what, where=self._places.get(name, name), remedy=remedy)

    def _check_ends(self) -> None:
        program = self._program
        if len(program.inputs) != 1 or len(program.outputs) != 1:
            raise ExportError(
                f"the converter takes one input and one output, and there are {len(program.inputs)} and "
                f"{len(program.outputs)}",
                where=", ".join([*program.inputs, *program.output_names]),
            )
        (last,) = program.outputs
        made = next(one for one in program.operations if one.output == last)
        if isinstance(made, Move | Average | QuantizeInput) or self._readers.get(last):
            raise self._refusal(
                made, "the converter wants a network to end in a layer or a sum that nothing else reads"
            )

    def _quantize(self, operation: QuantizeInput) -> None:
        grid, shape = operation.grid, self.shapes[operation.output]
        readers = self._readers.get(operation.output, [])
        signed = grid.storage == "int8"
        if (grid.lowest, grid.highest, grid.zero_point) not in ((0, 255, 0), (-128, 127, 0)):
            raise self._refusal(
                operation,
                f"Akida reads inputs of 8 bits without zero point, and this one has {grid.lowest}..{grid.highest} with "
                f"zero point {grid.zero_point}",
                "quantize for the target akida2",
            )
        if np.frexp(grid.scale)[0] != 0.5:
            raise self._refusal(operation, "the step of this input is no power of two", "give it a power_of_two grid")
        if len(shape) != 4 or not (signed or shape[1] in _CHANNELS):
            raise self._refusal(operation, f"Akida reads pictures of 1 or 3 channels, this input is {list(shape[1:])}")
        if len(readers) != 1 or not isinstance(readers[0], Convolution) or readers[0].groups != 1:
            raise self._refusal(operation, "one plain convolution must read the input, and nothing else")
        (name,) = operation.inputs
        scale = self._store(f"{operation.output}/step", np.full(shape[1], grid.scale, np.float32))
        zero = self._store(f"{operation.output}/zero", np.zeros(shape[1], grid.dtype))
        self._names[operation.output] = self._node(
            "InputQuantizer", [name, scale, zero], operation.output, f"{name}_quantized", perm=[0, 1, 2, 3]
        )

    def _convolve(self, operation: Convolution) -> None:
        source = operation.source
        channels, filters = self.shapes[operation.inputs[0]][1], len(operation.kernel)
        first = source.storage == "uint8"
        self._check_convolution(operation)
        if operation.groups == 1:
            name = "InputConv2D" if first else "Conv2D"
        elif operation.groups == channels == filters:
            name = "Depthwise2D"
        else:
            raise self._refusal(
                operation, f"Akida has no convolution of {channels} channels in {operation.groups} groups"
            )
        pads = [0, 0, *operation.before, 0, 0, *operation.after]
        given: dict[str, Any] = {"strides": list(operation.stride)}
        if name == "Depthwise2D":
            given["groups"] = operation.groups
        ends: dict[str, Any] = {"pads": np.array(pads, np.int64), "rank": 4}
        if first:
            ends["filling"] = np.array(0, np.int32)
        made = self._layer(operation, name, operation.kernel, operation.factors, operation.bias, ends, given)
        if first and len(self._readers.get(operation.output, [])) > 1:
            # What reads pictures may have one reader only.
            made = self._same(operation.output, made, filters)
        self._names[operation.output] = made

    def _check_convolution(self, operation: Convolution) -> None:
        rows, columns = operation.kernel.shape[2:]
        if operation.single or operation.spread != (1, 1) or operation.dilation != (1, 1):
            raise self._refusal(operation, "Akida's dialect has no convolutions along one axis, transposed or dilated")
        if rows != columns or operation.stride[0] != operation.stride[1]:
            raise self._refusal(operation, "Akida has square kernels and equal strides along both axes")
        sizes = self.shapes[operation.inputs[0]][2:]
        needed = []
        for size in sizes:
            rest = size % operation.stride[0]
            needed.append(max(rows - (rest or operation.stride[0]), 0))
        low, high = tuple(one // 2 for one in needed), tuple(one - one // 2 for one in needed)
        kinds = {"valid": ((0, 0), (0, 0)), "lower": (low, high), "upper": (high, low), "both": (high, high)}
        found = next((kind for kind, ends in kinds.items() if ends == (operation.before, operation.after)), None)
        if found in ("upper", "both") and (operation.stride[0] != 2 or rows not in (3, 5, 7)):
            found = None
        if found is None:
            raise self._refusal(
                operation,
                f"Akida pads as much as keeps the size or not at all, and this convolution has {operation.before} "
                f"before and {operation.after} after",
            )

    def _multiply(self, operation: LinearLayer) -> None:
        ends: dict[str, Any] = {"rank": 2}
        self._names[operation.output] = self._layer(
            operation, "Dense1DFlatten", operation.kernel, operation.factors, operation.bias, ends, {}
        )

    def _average(self, operation: Average) -> None:
        shape = self.shapes[operation.inputs[0]]
        if operation.window is not None or tuple(axis % 4 for axis in operation.axes) != (2, 3) or len(shape) != 4:
            raise self._refusal(operation, "Akida averages over all rows and columns of a picture, and nothing else")
        if not all(isinstance(one, LinearLayer | Move) for one in self._readers.get(operation.output, [])):
            raise self._refusal(operation, "Akida's dialect has means in front of linear layers only")
        if operation.grid.highest < 127 or operation.grid.lowest > operation.source.lowest:
            raise self._refusal(operation, "Akida has no ReLU behind a mean")
        assert operation.factor is not None
        ends: dict[str, Any] = {"pads": np.zeros(8, np.int64), "rank": 4, "pooled": True}
        if operation.source.lowest == 0:
            ends["relu"] = True
        kernel, factors = _identity(shape[1]), np.array([operation.factor])
        bias = np.zeros(shape[1], np.int64)
        made = self._layer(operation, "Conv2D", kernel, factors, bias, ends, {"strides": [1, 1]})
        self._names[operation.output] = made

    def _add_up(self, operation: Sum) -> None:
        first, second = operation.inputs
        if operation.negative or first == second or self.shapes[first] != self.shapes[second]:
            raise self._refusal(operation, "Akida adds two different tensors of one shape")
        scales = (operation.sources[0].scale, operation.sources[1].scale, operation.grid.scale)
        channels, rank = self.shapes[operation.output][1], len(self.shapes[operation.output])
        self._check_codes(operation)
        shape = (1, channels, *(1,) * (rank - 2))
        shifts = [np.full(shape, 2**shift, np.int64) for shift in alignment(scales)]
        names = [
            self._store(f"{operation.output}/sum_{end}", shift.astype(np.int32))
            for end, shift in zip("ab", shifts[:2], strict=True)
        ]
        names.append(self._store(f"{operation.output}/sum_shift", shifts[2].astype(np.float32)))
        inputs = [self._names[first], self._names[second], *names]
        grid = operation.grid
        plain = (grid.lowest, grid.highest) == (-128, 127)
        made = self._node("QuantizedAddScaled", inputs, operation.output if plain else f"{operation.output}/sum")
        if not plain or operation.output in self._program.outputs:
            # A sum has no ReLU of its own, and devices do not end with one.
            made = self._same(operation.output, made, channels, grid)
        self._names[operation.output] = made

    def _move(self, operation: Move) -> None:
        readers = self._readers.get(operation.output, [])
        if operation.places is not None or not all(isinstance(one, LinearLayer | Move) for one in readers):
            raise self._refusal(operation, "Akida moves no values, but for flattening them before a linear layer")
        self._names[operation.output] = self._names[operation.inputs[0]]

    def _same(self, name: str, source: str, channels: int, grid: CodeGrid | None = None) -> str:
        """A convolution that leaves codes as they are, but for limits of the grid."""
        grid = grid or CodeGrid.of(1.0, 0, -128, 127)
        operation = Convolution(
            inputs=(name,), output=name if grid.highest < 127 or grid.lowest == 0 else f"{name}/same", grid=grid,
            kernel=_identity(channels), scales=np.ones(1, np.float32), bits=8, bias=np.zeros(channels, np.int64),
            factors=np.ones(1), rule="int16x8", source=grid, stride=(1, 1), before=(0, 0), after=(0, 0),
            dilation=(1, 1), groups=1,
        )  # fmt: skip
        self._names[name] = source
        ends: dict[str, Any] = {"pads": np.zeros(8, np.int64), "rank": 4}
        return self._layer(
            operation, "Conv2D", operation.kernel, operation.factors, operation.bias, ends, {"strides": [1, 1]}
        )

    def _check_codes(self, operation: Operation) -> None:
        grid = operation.grid
        if grid.storage != "int8" or grid.zero_point or grid.lowest not in (-128, 0):
            raise self._refusal(
                operation,
                f"Akida computes with int8 codes around zero or from zero on, and these are {grid.storage} "
                f"{grid.lowest}..{grid.highest} with zero point {grid.zero_point}",
                "quantize for the target akida2",
            )
        if grid.lowest == -128 and grid.highest < 127:
            raise self._refusal(operation, "Akida limits values from above only behind a ReLU")

    def _layer(
        self,
        operation: Operation,
        name: str,
        kernel: Array,
        factors: Array,
        bias: Array,
        ends: Mapping[str, Any],
        attributes: Mapping[str, Any],
    ) -> str:
        """The node of a layer, with all that it reads."""
        self._check_codes(operation)
        if int(np.abs(kernel).max(initial=0)) > _WEIGHT_LIMIT:
            raise self._refusal(operation, "Akida has weights of 8 bits, -127..127", "quantize for the target akida2")
        grid, output, filters = operation.grid, operation.output, len(kernel)
        shape = (1, filters, *(1,) * (ends["rank"] - 2))
        scale, shift = _parts(np.broadcast_to(factors, filters))
        name = f"Quantized{name}"
        inputs = [self._names[operation.inputs[0]]]
        if "filling" in ends:
            inputs.append(self._store(f"{output}/filling", ends["filling"]))
        inputs.append(self._store(f"{output}/kernel", kernel.astype(np.int8)))
        if np.any(bias):
            name += "Biased"
            inputs.append(self._store(f"{output}/bias", bias.astype(np.int32)))
        if "pads" in ends:
            inputs.append(self._store(f"{output}/pads", ends["pads"]))
        name += "GlobalAvgPool" if ends.get("pooled") else ""
        name += "ReLU" if grid.lowest == 0 or ends.get("relu") else ""
        if grid.highest < 127:
            name += "Clipped"
            limits = np.array([self._limit(operation, grid.highest, *one) for one in zip(scale, shift, strict=True)])
            inputs.append(self._store(f"{output}/max_value", limits.astype(np.int32).reshape(shape)))
        inputs.append(self._store(f"{output}/scale", scale.astype(np.uint8).reshape(shape)))
        inputs.append(self._store(f"{output}/shift", shift.astype(np.float32).reshape(shape)))
        return self._node(f"{name}Scaled", inputs, output, **attributes)

    def _limit(self, operation: Operation, highest: int, scale: float, shift: float) -> int:
        """The least accumulator of 8 bits times a power of two that becomes the highest code."""
        least = int(np.ceil((highest - 0.5) * shift / scale))
        up = max(0, least.bit_length() - 8)
        limit = -(-least >> up) << up
        if least < 1 or int(np.floor(limit * scale / shift + 0.5)) != highest:
            raise self._refusal(operation, f"no limit of 8 bits ends its accumulators at code {highest}")
        return limit

    def _store(self, name: str, values: Array) -> str:
        from onnx import numpy_helper

        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def _node(self, op_type: str, inputs: list[str], name: str, value: str | None = None, **attributes: Any) -> str:
        from onnx import helper

        # Akida's layers are called as the nodes are; codes as in other ONNX files.
        value = value or f"{name}_quantized"
        self.nodes.append(helper.make_node(op_type, inputs, [value], name, domain=AKIDA_DOMAIN, **attributes))
        return value


def _identity(channels: int) -> npt.NDArray[np.int16]:
    return np.eye(channels, dtype=np.int16)[:, :, None, None]


def _parts(factors: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Whole numbers 128..255 and powers of two that factors are quotients of."""
    mantissa, exponent = np.frexp(factors)
    scale, shift = mantissa * 2.0**8, np.ldexp(1.0, 8 - exponent)
    assert np.array_equal(scale, np.rint(scale))
    return scale, shift
