"""What an exporter needs of a quantized model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import fx

from detent.config import Preprocessing
from detent.errors import ConfigError
from detent.graph import InputSpec
from detent.records.plan import QuantPlan

__all__ = ["ExportableModel", "fix_batch"]


class ExportableModel(Protocol):
    """The attributes of a `QuantizedModel` that exporters read.

    `graph_module` holds ATen operators as `torch.export` gives them, `torch.ops.detent.fake_quantize` on activations
    and `torch.ops.detent.dequantize` of integer buffers for kernels and biases. Its nodes keep the names and source
    lines that `detent.capture` wrote into their meta. `input_dtype` and `output_dtype` are the element types a file has
    unless others are asked for.
    """

    @property
    def graph_module(self) -> fx.GraphModule: ...

    @property
    def plan(self) -> QuantPlan: ...

    @property
    def inputs(self) -> Sequence[InputSpec]: ...

    @property
    def output_names(self) -> Sequence[str]: ...

    @property
    def example(self) -> tuple[torch.Tensor, ...]: ...

    @property
    def dynamic_batch(self) -> bool: ...

    @property
    def notes(self) -> Sequence[str]: ...

    @property
    def preprocessing(self) -> Mapping[str, Preprocessing]: ...

    @property
    def input_dtype(self) -> str: ...

    @property
    def output_dtype(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class _FixedBatch:
    """A model that is traced with another number of samples than it was captured with, and takes no other."""

    graph_module: fx.GraphModule
    plan: QuantPlan
    inputs: Sequence[InputSpec]
    output_names: Sequence[str]
    example: tuple[torch.Tensor, ...]
    dynamic_batch: bool
    preprocessing: Mapping[str, Preprocessing]
    input_dtype: str
    output_dtype: str
    notes: Sequence[str]


def fix_batch(qmodel: ExportableModel, size: int | None) -> ExportableModel:
    """The model as one that takes `size` samples at a time, for runtimes that want every shape known.

    The graph is traced anew with that batch, so that shapes computed from it become numbers and no operator is left
    that computes them. `verify_onnx` compares a file of a fixed batch with what this returns.

    Args:
        qmodel: a `QuantizedModel`; left as it is.
        size: samples; None leaves the model as it is.

    Raises:
        ConfigError: no number of samples, or the model was captured with another fixed batch.
    """
    if size is None:
        return qmodel
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ConfigError(f"`batch` is a number of samples, at least 1, got {size!r}")
    if not qmodel.dynamic_batch:
        captured = {spec.shape[spec.batch_axis] for spec in qmodel.inputs if spec.batch_axis is not None}
        if captured - {size}:
            raise ConfigError(
                f"the model was captured with a fixed batch of {captured.pop()}, not {size}",
                remedy="leave `batch` out, or capture the model with a dynamic batch",
            )
        return qmodel
    return _FixedBatch(
        graph_module=qmodel.graph_module,
        plan=qmodel.plan,
        inputs=tuple(replace(spec, shape=_resized(spec.shape, spec.batch_axis, size)) for spec in qmodel.inputs),
        output_names=qmodel.output_names,
        example=tuple(
            tensor.new_zeros(_resized(tuple(tensor.shape), spec.batch_axis, size))
            for spec, tensor in zip(qmodel.inputs, qmodel.example, strict=True)
        ),
        dynamic_batch=False,
        preprocessing=qmodel.preprocessing,
        input_dtype=qmodel.input_dtype,
        output_dtype=qmodel.output_dtype,
        notes=qmodel.notes,
    )


def _resized(shape: tuple[int, ...], axis: int | None, size: int) -> tuple[int, ...]:
    return shape if axis is None else (*shape[:axis], size, *shape[axis + 1 :])
