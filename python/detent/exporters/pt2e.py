"""Exported programs in the form of PyTorch 2 Export quantization, which ExecuTorch's backends read."""

from __future__ import annotations

import inspect
import io
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.export import Dim, ExportedProgram
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree

from detent.errors import ConfigError, ExportError
from detent.exporters.pt2e_graph import decomposed_module
from detent.exporters.report import ExportReport, require_writable, write_file
from detent.exporters.subject import ExportableModel
from detent.graph.quiet import quiet_torch
from detent.graph.shapes import is_tensor

__all__ = ["export_pt2e", "to_exported_program"]

_PLACES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")
"""Keys of a node's meta that name files of this machine or tell of detent's own modules."""


def to_exported_program(qmodel: ExportableModel, *, signed: bool = True, batch: int | None = None) -> ExportedProgram:
    """A quantized model as an `ExportedProgram` with `torch.ops.quantized_decomposed` operators.

    Kernels are integer buffers behind `dequantize_per_channel` or `dequantize_per_tensor`, every value on a grid passes
    `quantize_per_tensor` and `dequantize_per_tensor`, biases are float32 numbers on the steps of the accumulators.
    Give it to `executorch.exir.to_edge_transform_and_lower`, or save it with `detent.export(qmodel, "model.pt2")`.

    Args:
        qmodel: a `QuantizedModel`.
        signed: write unsigned codes as signed ones of the same values, the only ones XNNPACK takes.
        batch: number of samples the program takes, which ExecuTorch plans its memory for; None leaves it as the model
            was captured, any number as a rule.

    Raises:
        ConfigError: a batch that is no positive whole number, or another one than the model was captured with for good.
        ExportError: the model is not on the CPU, or torch cannot export it.
        UnsupportedOpError: a codebook, or steps for groups that the operators do not take; the error names the layer.
    """
    _check_batch(qmodel, batch)
    module = decomposed_module(qmodel, signed=signed)
    args, kwargs, shapes = _calling(module, qmodel, batch)
    try:
        with quiet_torch(), torch.no_grad():
            program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(
            f"torch cannot export the quantized model: {reason}", remedy="capture the model with dynamic_batch=False"
        ) from error
    for node in program.graph.nodes:
        for key in _PLACES:
            node.meta.pop(key, None)
    return program


def export_pt2e(
    qmodel: ExportableModel, path: str | Path, *, signed: bool = True, batch: int | None = None
) -> ExportReport:
    """Write a quantized model as a `.pt2` file that `torch.export.load` reads; see `to_exported_program`.

    The same model gives the same bytes.

    Args:
        qmodel: a `QuantizedModel`.
        path: file to write; it is complete or not there.
        signed: as in `to_exported_program`.
        batch: likewise.

    Raises:
        ConfigError: likewise.
        ExportError: as in `to_exported_program`, or the file cannot be written.
        UnsupportedOpError: as in `to_exported_program`.
    """
    path = Path(path)
    require_writable(path)
    program = to_exported_program(qmodel, signed=signed, batch=batch)
    content = io.BytesIO()
    with quiet_torch():
        torch.export.save(program, content)
    data = content.getvalue()
    write_file(path, data)
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    return ExportReport(path=path, format="pt2e", bytes=len(data), operators=Counter(calls))


def _check_batch(qmodel: ExportableModel, batch: int | None) -> None:
    """Refuse a number of samples that the model does not take.

    Raises:
        ConfigError: it does not take `batch`.
    """
    if batch is None:
        return
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise ConfigError(f"`batch` must be a positive whole number or None, got {batch!r}")
    found = {spec.shape[spec.batch_axis] for spec in qmodel.inputs if spec.batch_axis is not None}
    if not qmodel.dynamic_batch and found != {batch}:
        raise ConfigError(
            f"the model was captured for {max(found, default=0)} samples at a time, not {batch}",
            remedy="capture it with a dynamic batch, or leave `batch` out",
        )


def _calling(
    module: fx.GraphModule, qmodel: ExportableModel, batch: int | None
) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Arguments to trace the model with, as its user passes them, and which of their axes are dynamic, None if none."""
    dim = Dim("batch", min=1)
    pairs = iter(zip(qmodel.example, qmodel.inputs, strict=True))
    leaves: list[Any] = []
    axes: list[Any] = []
    for node in module.graph.nodes:
        if node.op == "placeholder":
            value, spec = next(pairs) if is_tensor(node) else (None, None)
            axis = None if spec is None else spec.batch_axis
            if value is not None and axis is not None and batch is not None:
                value = value.new_zeros([*value.shape[:axis], batch, *value.shape[axis + 1 :]])
            leaves.append(value)
            axes.append(None if axis is None else {axis: dim})
    args: Any = tuple(leaves)
    kwargs: Any = {}
    shapes: Any = (tuple(axes), {})
    codegen = module.graph._codegen
    if isinstance(codegen, _PyTreeCodeGen):
        args, kwargs = pytree.tree_unflatten(leaves, codegen.pytree_info.in_spec)
        shapes = pytree.tree_unflatten(axes, codegen.pytree_info.in_spec)
    if batch is not None or not qmodel.dynamic_batch:
        return args, kwargs, None
    signature = inspect.signature(module.forward)
    return args, kwargs, dict(signature.bind(*shapes[0], **shapes[1]).arguments)
