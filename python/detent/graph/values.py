"""Shapes and types of a graph's values, found by running it on tensors without data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from detent.errors import FormatError
from detent.graph.quiet import quiet_torch
from detent.graph.signature import InputSpec

__all__ = ["record_values"]


def record_values(module: fx.GraphModule, inputs: Sequence[InputSpec], *, dynamic_batch: bool) -> None:
    """Write into the meta of every node what tracing records: its value without data, its batch symbolic if dynamic.

    Raises:
        FormatError: the graph does not run on inputs of these shapes and types.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    given = []
    for spec in inputs:
        sizes = [DimDynamic.STATIC] * len(spec.shape)
        if dynamic_batch and spec.batch_axis is not None:
            sizes[spec.batch_axis] = DimDynamic.DYNAMIC
        context: Any = StatelessSymbolicContext(dynamic_sizes=sizes)
        given.append(mode.from_tensor(torch.empty(spec.shape, dtype=spec.dtype), symbolic_context=context))
    try:
        with quiet_torch(), mode, torch.no_grad():
            _Recorder(module).run(*given, enable_io_processing=False)
    except Exception as error:
        raise FormatError(f"the network does not run ({type(error).__name__}: {error})") from error


class _Recorder(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        """Run a node as usual and keep what it gives."""
        value = super().run_node(n)
        if n.op in ("placeholder", "call_function"):
            n.meta["val"] = value
        return value
