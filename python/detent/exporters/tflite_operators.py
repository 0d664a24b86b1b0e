"""From operations of an integer program to operators of a TensorFlow Lite file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from detent.errors import UnsupportedOpError
from detent.exporters.tflite_file import FlatFile, Operator, code_tensor
from detent.exporters.tflite_layout import Layout, channels_last, plain, stored_shape
from detent.exporters.tflite_moves import add_move, relay, transposed
from detent.exporters.tflite_weights import add_bias, add_kernel
from detent.exporters.tflite_windows import VALID, input_of_convolution, input_of_pool, pair
from detent.integer.code_grid import CodeGrid
from detent.integer.fixed_functions import PRESCRIBED
from detent.integer.operations import Concatenate, Convolution, LinearLayer, Move, Operation, Product, Sum, Table
from detent.integer.windows import Average, MaximumPool

__all__ = ["Translation"]

_ACTIVATIONS: Final = {"NONE": 0, "RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}
_LIMITS: Final = {
    "NONE": (-np.inf, np.inf),
    "RELU": (0.0, np.inf),
    "RELU6": (0.0, 6.0),
    "RELU_N1_TO_1": (-1.0, 1.0),
}
_FUNCTIONS: Final = {
    "hardswish": "HARD_SWISH",
    "leaky_relu": "LEAKY_RELU",
    "relu": "RELU",
    "sigmoid": "LOGISTIC",
    "tanh": "TANH",
}


class Translation:
    """A file in the making, and the tensors of the program that it has.

    Args:
        shapes: of the program's tensors, samples included.
        layouts: of the same.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], layouts: Mapping[str, Layout]) -> None:
        self.file = FlatFile()
        self.shapes = shapes
        self.layouts = layouts
        self.numbers: dict[str, int] = {}
        self.grids: dict[str, CodeGrid] = {}

    def add(self, operation: Operation) -> None:
        """The operators of one operation.

        Raises:
            UnsupportedOpError: TensorFlow Lite has none for it; the error names the tensor.
        """
        try:
            _BUILDERS[type(operation)](self, operation)
        except UnsupportedOpError as error:
            raise UnsupportedOpError(error.what, where=error.where or operation.output, remedy=error.remedy) from None

    def codes(self, name: str, grid: CodeGrid, *, shape: tuple[int, ...], layout: Layout | None = None) -> int:
        """The number of a new tensor of codes, whose shape is that of the network's."""
        stored = shape if layout is None else stored_shape(shape, layout)
        return self.file.add(code_tensor(name, grid, stored))

    def output_of(self, operation: Operation) -> int:
        """The number of the tensor an operation writes, in the layout chosen for it."""
        name = operation.output
        number = self.codes(name, operation.grid, shape=self.shapes[name], layout=self.layouts[name])
        self.numbers[name], self.grids[name] = number, operation.grid
        return number

    def read(self, name: str, layout: Layout) -> int:
        """The number of a tensor in the layout asked for; it is transposed where it lies otherwise."""
        if self.layouts[name] == layout:
            return self.numbers[name]
        return transposed(self, name, layout)

    def operate(self, name: str, inputs: tuple[int, ...], output: int, *, version: int = 1, **options: Any) -> None:
        """Add an operator."""
        self.file.operators.append(
            Operator(name=name, inputs=inputs, outputs=(output,), options=options, version=version)
        )


def activation_of(grid: CodeGrid) -> int:
    """The fused activation that leaves just the codes of a grid.

    Raises:
        UnsupportedOpError: there is none.
    """
    for name, limits in _LIMITS.items():
        clamped = grid.whole.clamped(*limits)
        if (clamped.lowest, clamped.highest) == (grid.lowest, grid.highest):
            return _ACTIVATIONS[name]
    raise UnsupportedOpError(
        f"no activation of TensorFlow Lite leaves codes {grid.lowest}..{grid.highest}",
        remedy="clamp with relu, relu6 or to -1..1, and use all codes of 8 or 16 bits",
    )


def _convolution(tensor: Translation, operation: Convolution) -> None:
    if operation.spread != (1, 1):
        _transposed_convolution(tensor, operation)
        return
    number, padding = input_of_convolution(tensor, operation)
    outputs, inputs = operation.kernel.shape[:2]
    # With one group and one channel the two operators are alike, and CONV_2D has more kernels.
    depthwise = inputs == 1 and operation.groups > 1
    kernel = add_kernel(tensor.file, operation, depthwise=depthwise)
    options: dict[str, Any] = {
        "padding": padding,
        "stride_w": operation.stride[1],
        "stride_h": operation.stride[0],
        "activation": activation_of(operation.grid),
        "dilation_w": operation.dilation[1],
        "dilation_h": operation.dilation[0],
    }
    if depthwise:
        options["multiplier"] = outputs // operation.groups
    wide = operation.source.dtype.itemsize > 1
    tensor.operate(
        "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D",
        (number, kernel, add_bias(tensor.file, operation)),
        tensor.output_of(operation),
        version=4 if wide and not depthwise else 5 if wide else 3,
        **options,
    )


def _transposed_convolution(tensor: Translation, operation: Convolution) -> None:
    """TRANSPOSE_CONV without padding, and a slice of what it gives where the layer cuts something off."""
    if operation.groups > 1 or operation.dilation != (1, 1):
        raise UnsupportedOpError("TensorFlow Lite has no transposed convolutions with groups or dilation")
    name = operation.inputs[0]
    layout = channels_last(len(tensor.shapes[name]))
    number = tensor.read(name, layout)
    shape = tensor.file.tensors[number].shape
    sizes = operation.kernel.shape[2:]
    full = tuple((size - 1) * step + wide for size, step, wide in zip(shape[1:3], operation.spread, sizes, strict=True))
    begin = tuple(wide - 1 - first for wide, first in zip(sizes, operation.before, strict=True))
    wanted = stored_shape(tensor.shapes[operation.output], layout)
    if any(first + size > most for first, size, most in zip(begin, wanted[1:3], full, strict=True)):
        raise UnsupportedOpError(
            "its output reaches beyond what its kernel does", remedy="use output_padding of no more than padding"
        )
    whole = (shape[0], *full, wanted[3])
    between = tensor.file.add(code_tensor(f"{operation.output}/whole", operation.grid, whole))
    end = tensor.output_of(operation) if whole == wanted else between
    tensor.operate(
        "TRANSPOSE_CONV",
        (
            tensor.file.constant(f"{operation.output}/shape", whole),
            add_kernel(tensor.file, operation, turned=True),
            number,
            add_bias(tensor.file, operation),
        ),
        end,
        version=4,
        padding=VALID,
        stride_w=operation.spread[1],
        stride_h=operation.spread[0],
        activation=activation_of(operation.grid),
    )
    if whole != wanted:
        ends = [first + size for first, size in zip((0, *begin, 0), wanted, strict=True)]
        parameters = tuple(
            tensor.file.constant(f"{operation.output}/{word}", values)
            for word, values in (("begin", (0, *begin, 0)), ("end", ends), ("strides", (1, 1, 1, 1)))
        )
        tensor.operate("STRIDED_SLICE", (between, *parameters), tensor.output_of(operation), version=2)


def _linear(tensor: Translation, operation: LinearLayer) -> None:
    (name,) = operation.inputs
    rank = len(tensor.shapes[name])
    number = tensor.read(name, plain(rank))
    _written_plainly(
        tensor,
        operation,
        "FULLY_CONNECTED",
        (number, add_kernel(tensor.file, operation), add_bias(tensor.file, operation)),
        version=7 if operation.source.dtype.itemsize > 1 else 4,
        activation=activation_of(operation.grid),
        keep_num_dims=rank > 2,
    )


def _written_plainly(
    tensor: Translation, operation: Operation, name: str, inputs: tuple[int, ...], *, version: int = 1, **options: Any
) -> None:
    """An operator that gives its result in the network's order, and what brings it into the layout chosen."""
    order = plain(len(tensor.shapes[operation.output]))
    _written(tensor, operation, name, inputs, order, version=version, **options)


def _written(
    tensor: Translation,
    operation: Operation,
    name: str,
    inputs: tuple[int, ...],
    layout: Layout,
    *,
    version: int = 1,
    **options: Any,
) -> None:
    output, chosen = operation.output, tensor.layouts[operation.output]
    if chosen == layout:
        tensor.operate(name, inputs, tensor.output_of(operation), version=version, **options)
        return
    number = tensor.codes(f"{output}/before", operation.grid, shape=tensor.shapes[output], layout=layout)
    tensor.operate(name, inputs, number, version=version, **options)
    relay(tensor, output, (number, layout), (tensor.output_of(operation), chosen))


def _single_values(name: str, version: int) -> Callable[[Translation, Any], None]:
    def build(tensor: Translation, operation: Sum | Product) -> None:
        kind = "SUB" if isinstance(operation, Sum) and operation.negative else name
        layout = tensor.layouts[operation.output]
        tensor.operate(
            kind,
            tuple(tensor.read(one, layout) for one in operation.inputs),
            tensor.output_of(operation),
            version=version,
            activation=activation_of(operation.grid),
        )

    return build


def _table(tensor: Translation, operation: Table) -> None:
    (name,) = operation.inputs
    grid = operation.grid
    number = tensor.read(name, tensor.layouts[operation.output])
    kind = _FUNCTIONS.get(operation.function)
    if operation.function == "requantize":
        kind = "QUANTIZE" if activation_of(grid) == _ACTIVATIONS["NONE"] else "RELU"
    if kind is None:
        raise UnsupportedOpError(f"TensorFlow Lite has no operator for {operation.function} on codes")
    given = PRESCRIBED.get(operation.function)
    if given is not None and (given.scale, given.zero_point) != (grid.scale, grid.zero_point):
        raise UnsupportedOpError(
            f"{kind} prescribes the grid of its output", remedy="quantize for target 'tflite', whose rules say which"
        )
    allowed = {"RELU": (0, 1)}.get(kind, (0,))
    if activation_of(grid) not in allowed:
        raise UnsupportedOpError(f"{kind} cannot clamp its result", remedy="leave out the clamp behind it")
    options = {"alpha": operation.slope} if kind == "LEAKY_RELU" else {}
    tensor.operate(kind, (number,), tensor.output_of(operation), version=2 if kind != "HARD_SWISH" else 1, **options)


def _concatenate(tensor: Translation, operation: Concatenate) -> None:
    layout = tensor.layouts[operation.output]
    parts = tuple(tensor.read(one, layout) for one in operation.inputs)
    tensor.operate("CONCATENATION", parts, tensor.output_of(operation), version=2, axis=layout.index(operation.axis))


def _window_of(operation: MaximumPool | Average, padding: int) -> dict[str, Any]:
    window = operation.window
    assert window is not None
    size, stride = pair(window.size, 1), pair(window.stride, 1)
    return {
        "padding": padding,
        "stride_w": stride[1],
        "stride_h": stride[0],
        "filter_w": size[1],
        "filter_h": size[0],
    }


def _maximum_pool(tensor: Translation, operation: MaximumPool) -> None:
    number, padding = input_of_pool(tensor, operation)
    # Codes that are there stay within their clamps.
    options = {**_window_of(operation, padding), "activation": _ACTIVATIONS["NONE"]}
    tensor.operate("MAX_POOL_2D", (number,), tensor.output_of(operation), version=2, **options)


def _average(tensor: Translation, operation: Average) -> None:
    (name,) = operation.inputs
    if operation.window is not None:
        number, padding = input_of_pool(tensor, operation)
        options = {**_window_of(operation, padding), "activation": activation_of(operation.grid)}
        tensor.operate("AVERAGE_POOL_2D", (number,), tensor.output_of(operation), version=2, **options)
        return
    if activation_of(operation.grid):
        raise UnsupportedOpError("MEAN cannot clamp its result", remedy="leave out the clamp behind it")
    layout = tensor.layouts[name]
    rank = len(tensor.shapes[name])
    axes = tuple(axis % rank for axis in operation.axes)
    places = tensor.file.constant(f"{operation.output}/axes", sorted(layout.index(axis) for axis in axes))
    inputs = (tensor.numbers[name], places)
    if operation.keep:
        _written(tensor, operation, "MEAN", inputs, layout, version=2, keep_dims=True)
        return
    left = [axis for axis in layout if axis not in axes]
    names = sorted(left)
    _written(tensor, operation, "MEAN", inputs, tuple(names.index(axis) for axis in left), version=2, keep_dims=False)


def _move(tensor: Translation, operation: Move) -> None:
    add_move(tensor, operation)


_BUILDERS: Final[dict[type[Operation], Callable[[Translation, Any], None]]] = {
    Average: _average,
    Concatenate: _concatenate,
    Convolution: _convolution,
    LinearLayer: _linear,
    MaximumPool: _maximum_pool,
    Move: _move,
    Product: _single_values("MUL", 2),
    Sum: _single_values("ADD", 2),
    Table: _table,
}
