"""Checking an exported ONNX file value by value, each computed from the runtime's own inputs.

Float sums are rounded in another order by every convolution library. Where a sum falls next to a rounding boundary the
code differs by one, about once in 10^5 to 10^6 values, and a deep network spreads that one step over later values.
Comparing outputs alone therefore mixes faults of an export with the network's own sensitivity; here the two are told
apart, because no value inherits a difference.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from detent.errors import ExportError
from detent.exporters.onnx_qdq import require_extra
from detent.exporters.onnx_verify import batches_of, has_channel_steps, open_session, run_session
from detent.exporters.subject import ExportableModel
from detent.graph.names import NAME

__all__ = ["ValueAgreement", "ValueComparison", "tap_values", "verify_onnx_values"]


@dataclass(frozen=True, kw_only=True)
class ValueAgreement:
    """How far one quantized value of the file is from PyTorch's, given the same inputs.

    Args:
        name: detent's name of the value.
        largest_steps: largest difference, in steps of its grid.
        off_fraction: part of its elements that differ.
    """

    name: str
    largest_steps: float
    off_fraction: float


def verify_onnx_values(
    path: str | os.PathLike[str],
    qmodel: ExportableModel,
    inputs: torch.Tensor | Sequence[torch.Tensor],
    *,
    optimize: bool = False,
    batch_size: int = 64,
) -> list[ValueAgreement]:
    """Compare every quantized activation of an exported file, in order of execution.

    Each operation is run by PyTorch on the values onnxruntime computed before it.

    Args:
        path: the ONNX file.
        qmodel: the quantized model it came from.
        inputs: one tensor per input of the model, `[N, ...]` where the input has a batch axis.
        optimize: let onnxruntime rewrite the graph, with integer kernels where it has them.
        batch_size: samples per call; all quantized values of so many samples are held at once.

    Raises:
        ConfigError: the inputs do not fit the model.
        ExportError: onnxruntime is missing or cannot run the file, or the file lacks a quantized value of the model.
    """
    path = Path(path)
    content, taps = tap_values(path)
    session = open_session(content, optimize, path, fusing=not has_channel_steps(qmodel.plan))
    comparison = ValueComparison(qmodel.graph_module, path)
    tensors = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs)
    with torch.inference_mode():
        for batch in batches_of(qmodel, tensors, batch_size):
            feeds = {spec.name: value.numpy() for spec, value in zip(qmodel.inputs, batch, strict=True)}
            found = run_session(session, feeds, path, list(taps.values()))
            comparison.compare(batch, dict(zip(taps, found, strict=True)))
    return comparison.result()


def tap_values(path: Path) -> tuple[bytes, dict[str, str]]:
    """The file with every dequantized activation as an output too; and by value name, what that output is called.

    Raises:
        ExportError: the file cannot be read, or takes or gives integer codes.
    """
    onnx = require_extra("onnx")
    try:
        model = onnx.load(path)
    except Exception as error:
        raise ExportError(f"cannot read the file: {error}", where=str(path)) from error
    _refuse_integer_ends(model, path)
    suffix = "_quantized"
    codes = {node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    taps = {
        node.input[0].removesuffix(suffix): node.output[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in codes
    }
    ends = {value.name for value in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in taps.values()
        if name not in ends
    )
    return model.SerializeToString(), taps


def _refuse_integer_ends(model: Any, path: Path) -> None:
    ends = (*model.graph.input, *model.graph.output)
    eight_or_sixteen = ("INT8", "UINT8", "INT16", "UINT16")
    names = import_module("onnx").TensorProto.DataType
    codes = [end.name for end in ends if names.Name(end.type.tensor_type.elem_type) in eight_or_sixteen]
    if codes:
        raise ExportError(
            f"{', '.join(codes)} hold codes, and values are compared from real inputs on",
            where=str(path),
            remedy="export with inputs='float32' and outputs='float32', or compare outputs only with verify_onnx",
        )


class ValueComparison(fx.Interpreter):
    """Runs the PyTorch model, and goes on with the runtime's value wherever there is one.

    Args:
        module: graph of the quantized model.
        path: the file the runtime has run, for errors.
    """

    def __init__(self, module: fx.GraphModule, path: Path) -> None:
        super().__init__(module)
        self._path = path
        self._found: dict[str, npt.NDArray[np.float32]] = {}
        self._tallies: dict[str, tuple[float, int, int]] = {}

    def compare(self, batch: list[torch.Tensor], found: dict[str, npt.NDArray[np.float32]]) -> None:
        """Take a batch of inputs and the values a runtime made of them, by name.

        Raises:
            ExportError: a quantized value is not among them.
        """
        self._found = found
        self.run(*batch, enable_io_processing=False)

    def run_node(self, n: fx.Node) -> Any:
        """Run one operator; where it is a quantizer, compare and go on with what the runtime has."""
        want = super().run_node(n)
        source = n.args[0] if n.args else None
        if n.target is not torch.ops.detent.fake_quantize.default or not isinstance(source, fx.Node):
            return want
        if source.op == "get_attr":  # a kernel in training, not an activation
            return want
        name = str(source.meta.get(NAME, source.name))
        if name not in self._found:
            raise ExportError(f"the file has no quantized value {name!r}", where=str(self._path))
        got = torch.from_numpy(self._found[name])
        self._tally(name, want, got, self._steps(n, want.dim()))
        return got

    def _steps(self, node: fx.Node, rank: int) -> torch.Tensor:
        arguments: list[Any] = [*node.args, None, None]
        scale: torch.Tensor = self.fetch_attr(str(arguments[1].target))
        shape = [1] * rank
        if arguments[5] is not None:
            shape[arguments[5]] = -1
        return scale.reshape(shape)

    def _tally(self, name: str, want: torch.Tensor, got: torch.Tensor, steps: torch.Tensor) -> None:
        distance = (torch.round(want / steps) - torch.round(got / steps)).abs()
        distance = torch.where(want.isnan() & got.isnan(), 0.0, distance).nan_to_num(nan=torch.inf)
        largest, off, count = self._tallies.get(name, (0.0, 0, 0))
        most = float(distance.max()) if distance.numel() else 0.0
        self._tallies[name] = (max(largest, most), off + int((distance > 0).sum()), count + distance.numel())

    def result(self) -> list[ValueAgreement]:
        """The agreement of each value over all batches, in order of execution."""
        return [
            ValueAgreement(name=name, largest_steps=largest, off_fraction=off / max(count, 1))
            for name, (largest, off, count) in self._tallies.items()
        ]
