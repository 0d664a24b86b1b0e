"""Checking an exported ONNX file against the quantized model it came from, in onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx
from torch.utils import _pytree as pytree

from detent.errors import ConfigError, ExportError
from detent.exporters.onnx_io import decode_outputs, encode_inputs
from detent.exporters.onnx_qdq import require_extra
from detent.exporters.subject import ExportableModel
from detent.graph.roles import first_argument, role_of
from detent.records.plan import QuantPlan

__all__ = ["OnnxAgreement", "batches_of", "open_session", "run_session", "verify_onnx"]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class OnnxAgreement:
    """How far onnxruntime's outputs are from those of the PyTorch quantized model.

    Args:
        samples: samples compared.
        largest_steps: largest difference of any output value, in steps of that output's grid; an output without a grid
            is measured in 255ths of its observed range.
        off_fraction: part of all output values that differ by half a step or more.
        top1: part of the predictions (largest entry along axis 1 of the first output) that are equal; None if the first
            output has no classes.
    """

    samples: int
    largest_steps: float
    off_fraction: float
    top1: float | None

    def __str__(self) -> str:
        top1 = "" if self.top1 is None else f", top-1 agreement {self.top1:.2%}"
        return (
            f"{self.samples} samples: largest difference {self.largest_steps:.3g} output steps, "
            f"{self.off_fraction:.2%} of the values off{top1}"
        )


def verify_onnx(
    path: str | os.PathLike[str],
    qmodel: ExportableModel,
    inputs: torch.Tensor | Sequence[torch.Tensor],
    *,
    optimize: bool = False,
    batch_size: int = 64,
) -> OnnxAgreement:
    """Run an exported file in onnxruntime and compare it with the model it came from.

    Where the file takes or gives integer codes, real values are turned into codes and back by its metadata.

    Args:
        path: the ONNX file.
        qmodel: the quantized model.
        inputs: one tensor per input of the model, `[N, ...]` where the input has a batch axis.
        optimize: let onnxruntime rewrite the graph, with integer kernels where it has them.
        batch_size: samples per call; a model with a fixed batch is run with that one.

    Raises:
        ConfigError: the inputs do not fit the model.
        ExportError: onnxruntime is missing, or cannot load or run the file.
    """
    tensors = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs)
    path = Path(path)
    session = open_session(str(path), optimize, path, fusing=not has_channel_steps(qmodel.plan))
    pairs: list[list[tuple[FloatArray, FloatArray]]] = []
    with torch.inference_mode():
        for batch in batches_of(qmodel, tensors, batch_size):
            expected = pytree.tree_leaves(_run_flat(qmodel.graph_module, batch))
            feeds = {spec.name: value.numpy() for spec, value in zip(qmodel.inputs, batch, strict=True)}
            found = decode_outputs(session, run_session(session, encode_inputs(session, feeds), path))
            pairs.append([(want.numpy(), got) for want, got in zip(expected, found, strict=True)])
    return _compare(pairs, _output_steps(qmodel.graph_module))


def has_channel_steps(plan: QuantPlan) -> bool:
    """Whether some activation has a step for each channel, which onnxruntime's integer kernels do not take."""
    grids = map(plan.activation_grid, plan.activations)
    return any(grid is not None and grid.axis is not None for grid in grids)


def open_session(model: str | bytes, optimize: bool, path: Path, *, fusing: bool = True) -> Any:
    """An onnxruntime session for a file or its content.

    Args:
        model: path or content.
        optimize: let it rewrite the graph.
        path: for errors.
        fusing: let it put integer kernels in place of float ones between quantizers.

    Raises:
        ExportError: onnxruntime is missing or cannot load the model.
    """
    runtime = require_extra("onnxruntime")
    options = runtime.SessionOptions()
    level = runtime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # failures come back as exceptions
    # Block-wise int4 kernels quantize activations on their own unless told not to.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if not fusing:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"onnxruntime cannot load the file: {error}", where=str(path)) from error


def run_session(
    session: Any, feeds: dict[str, npt.NDArray[Any]], path: Path, names: list[str] | None = None
) -> list[FloatArray]:
    """The named outputs, or all.

    Raises:
        ExportError: onnxruntime fails.
    """
    try:
        outputs: list[FloatArray] = session.run(names, feeds)
    except Exception as error:
        raise ExportError(f"onnxruntime cannot run the file: {error}", where=str(path)) from error
    return outputs


def batches_of(qmodel: ExportableModel, tensors: list[torch.Tensor], batch_size: int) -> Iterator[list[torch.Tensor]]:
    """Inputs in batches the model takes.

    Raises:
        ConfigError: they do not fit the model.
    """
    axes = [spec.batch_axis for spec in qmodel.inputs]
    if len(tensors) != len(axes):
        raise ConfigError(f"the model takes {len(axes)} inputs, got {len(tensors)}")
    counts = {t.shape[axis] for t, axis in zip(tensors, axes, strict=True) if axis is not None}
    if len(counts) > 1 or 0 in counts:
        raise ConfigError(f"every input needs the same number of samples, at least one; got {sorted(counts)}")
    total = counts.pop() if counts else 1
    if not qmodel.dynamic_batch:
        fixed = {spec.shape[spec.batch_axis] for spec in qmodel.inputs if spec.batch_axis is not None}
        batch_size = fixed.pop() if fixed else 1
        if total % batch_size:
            raise ConfigError(f"the model takes {batch_size} samples at a time, which does not divide {total}")
    for start in range(0, total, batch_size):
        yield [
            t if axis is None else t.narrow(axis, start, min(batch_size, total - start)).contiguous()
            for t, axis in zip(tensors, axes, strict=True)
        ]


def _run_flat(module: fx.GraphModule, values: list[torch.Tensor]) -> Any:
    """Run with one tensor per placeholder, whatever structure the user's model takes."""
    return fx.Interpreter(module).run(*values, enable_io_processing=False)


def _output_steps(module: fx.GraphModule) -> list[float | None]:
    """Step of each output's grid (the smallest, if per channel), None for an output without a grid."""
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    steps: list[float | None] = []
    for node in pytree.tree_leaves(output.args[0]):
        while isinstance(node, fx.Node) and node.target is not torch.ops.detent.fake_quantize.default:
            role = role_of(node) if node.op == "call_function" else None
            node = first_argument(node) if role is not None and role.preserving else None
        scale = node.args[1] if isinstance(node, fx.Node) else None
        steps.append(float(module.get_buffer(str(scale.target)).min()) if isinstance(scale, fx.Node) else None)
    return steps


def _compare(pairs: list[list[tuple[FloatArray, FloatArray]]], steps: list[float | None]) -> OnnxAgreement:
    largest, off, count = 0.0, 0, 0
    for index, step in enumerate(steps):
        outputs = [batch[index] for batch in pairs]
        span = max(float(want.max()) for want, _ in outputs) - min(float(want.min()) for want, _ in outputs)
        for want, got in outputs:
            distance = _distance(want, got, step, span)
            largest = max(largest, float(distance.max(initial=0.0)))
            off += int((distance >= 0.5).sum())
            count += distance.size
    first = [batch[0] for batch in pairs]
    top1 = None
    if first[0][0].ndim > 1 and first[0][0].shape[1] > 1:
        top1 = float(np.mean(np.concatenate([(w.argmax(1) == g.argmax(1)).ravel() for w, g in first])))
    samples = sum(len(want) if want.ndim else 1 for want, _ in first)
    return OnnxAgreement(samples=samples, largest_steps=largest, off_fraction=off / max(count, 1), top1=top1)


def _distance(want: FloatArray, got: FloatArray, step: float | None, span: float) -> npt.NDArray[np.float64]:
    """Difference in whole steps of the output's grid; without a grid, in 255ths of the observed span."""
    a, b = want.astype(np.float64), got.astype(np.float64)
    distance = np.abs(a - b) / (span / 255 or 1.0) if step is None else np.abs(np.rint(a / step) - np.rint(b / step))
    distance[np.isnan(a) & np.isnan(b)] = 0.0
    distance[np.isnan(distance)] = np.inf
    return distance
