"""`QuantizedModel`: call it, move it, train it, `torch.export` it."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import fx, nn

from detent.config import Preprocessing
from detent.errors import ConfigError
from detent.graph import InputSpec, with_network_types
from detent.graph.tensors import clone_module
from detent.records.grid import Grid
from detent.records.plan import QuantPlan, TensorPlan

__all__ = ["QuantizedModel"]


class QuantizedModel(nn.Module):
    """A network that computes on the grids of its plan.

    Weights are stored as integer codes and expanded by `torch.ops.detent.dequantize`; every quantized activation passes
    through `torch.ops.detent.fake_quantize`, whose gradient is straight-through.

    Args:
        graph_module: the ATen-level graph with those operators in place.
        plan: the decisions it carries out.
        inputs: the tensors it takes.
        outputs: names of the values it returns.
        dynamic_batch: whether any number of samples can be passed.
        notes: non-fatal facts a user should know.
        input_dtype: element type of inputs in exported files, unless another is asked for.
        output_dtype: likewise of outputs.
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        plan: QuantPlan,
        *,
        inputs: tuple[InputSpec, ...],
        outputs: tuple[str, ...],
        dynamic_batch: bool,
        notes: list[str],
        input_dtype: str = "float32",
        output_dtype: str = "float32",
    ) -> None:
        super().__init__()
        self.graph_module = graph_module
        self.plan = plan
        self.inputs = inputs
        self.output_names = outputs
        self.dynamic_batch = dynamic_batch
        self.notes = notes
        self.input_dtype = input_dtype
        self.output_dtype = output_dtype
        self.train(False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the quantized network; takes and returns what the float model does, raw input where it preprocesses."""
        args, kwargs = with_network_types(self.inputs, (args, kwargs))
        return self.graph_module(*args, **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        if fn(torch.zeros(1)).dtype != torch.float32:
            raise ConfigError(
                "a quantized model computes in float32, its grids are defined there",
                remedy="leave its dtype as it is; .to(device) works",
            )
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantizedModel:
        # Torch's own deep copy of a captured graph warns about torch's own internals.
        twin = QuantizedModel(
            clone_module(self.graph_module),
            self.plan,
            inputs=self.inputs,
            outputs=self.output_names,
            dynamic_batch=self.dynamic_batch,
            notes=list(self.notes),
            input_dtype=self.input_dtype,
            output_dtype=self.output_dtype,
        )
        return twin.train(self.training)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the tensors it takes, in order."""
        return tuple(spec.name for spec in self.inputs)

    @property
    def preprocessing(self) -> dict[str, Preprocessing]:
        """What the model does to raw input, by input name; inputs that are taken as they are have no entry."""
        return {spec.name: spec.preprocessing for spec in self.inputs if spec.preprocessing is not None}

    @property
    def example(self) -> tuple[torch.Tensor, ...]:
        """Zeros of the captured shapes and types, one per input: enough to trace the model."""
        return tuple(torch.zeros(spec.shape, dtype=spec.dtype) for spec in self.inputs)

    def summary(self, console: Console | None = None) -> None:
        """Print a table of all quantized tensors with bits, limits and errors, then the notes."""
        console = console or Console()
        counts = f"{len(self.plan.weights)} kernels, {len(self.plan.activations)} activations"
        table = Table("tensor", "grid", title=f"{counts}, target {self.plan.target}")
        for heading in ("bits", "lowest", "highest", "error"):
            table.add_column(heading, justify="right", no_wrap=True)
        for name, entry in self.plan.activations.items():
            table.add_row(name, *_cells(entry, self.plan.activation_grid(name)))
        table.add_section()
        for name, entry in self.plan.weights.items():
            table.add_row(f"{name} weights", *_cells(entry, entry.grid))
        console.print(table)
        for note in self.notes:
            console.print(f"note: {note}", markup=False)


def _cells(entry: TensorPlan, grid: Grid | None) -> tuple[str, str, str, str, str]:
    if grid is None:
        return "float", "32", "", "", ""
    low, high = grid.limits
    kind = grid.kind.replace("_", " ") + ("" if grid.axis is None else f" x{grid.size}")
    if entry.same_as is not None:
        kind = f"as {entry.same_as}"
    error = "" if entry.error is None else f"{entry.error:.3g}"
    return kind, f"{grid.bits}{'s' if grid.signed else 'u'}", f"{low.min():.4g}", f"{high.max():.4g}", error
