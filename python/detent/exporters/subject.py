"""What an exporter needs of a quantized model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import fx

from detent.config import Preprocessing
from detent.graph import InputSpec
from detent.records.plan import QuantPlan

__all__ = ["ExportableModel"]


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
