"""Finds where the samples of a batch lie in every value, by trying: change the last samples and see what changes.

Shapes alone do not tell. `[2 * batch, ...]` may hold the heads of one sample side by side or one head of all samples,
`x.flip(0)` keeps its shape, and a value may mix samples (`x - x.mean(0)`), in which case statistics of padded batches
would be wrong. One run with three samples and two with the last one or two of them replaced show it, as far as random
inputs can: a branch that none of them takes stays unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import fx

from detent.graph.shapes import concrete_size, is_tensor, value_of
from detent.graph.tensors import read_attribute

__all__ = ["BATCH", "BatchLayout", "mark_layouts"]

BATCH: Final = "detent_batch"
"""Key of `fx.Node.meta`: the node's `BatchLayout`, absent where the value does not depend on the batch."""

_SEED: Final = 1
_DYNAMIC_SAMPLES: Final = 3


@dataclass(frozen=True)
class BatchLayout:
    """Where the samples of a batch lie in a value: its axis is made of `[outer, samples, rows / outer]`.

    Args:
        axis: the axis that grows with the batch.
        rows: entries along that axis per sample: more than one where heads, windows or time steps were merged with
            the batch, zero where its length is no multiple of the batch.
        outer: blocks along the axis that each hold all samples; 1 in the common case, more where another axis was
            merged in front of the batch. None where samples are mixed or out of order.
    """

    axis: int
    rows: int
    outer: int | None

    @property
    def ordered(self) -> bool:
        """Whether the first `k * rows` entries along the axis belong to the first k samples."""
        return self.outer == 1

    def samples_first(self, value: torch.Tensor) -> torch.Tensor:
        """The value as `[samples, ...]`, a view; the k-th entry belongs to the k-th sample.

        Raises:
            ValueError: samples are mixed.
        """
        if self.outer is None:
            raise ValueError("the samples of a batch are mixed in this value")
        if self.rows == 1:
            return value.movedim(self.axis, 0)
        inner = self.rows // self.outer
        shape = (*value.shape[: self.axis], self.outer, -1, inner, *value.shape[self.axis + 1 :])
        # A reshape that merges nothing never copies.
        return value.reshape(shape).movedim(self.axis + 1, 0)


def mark_layouts(module: fx.GraphModule, symbol: str | None, samples: int, example: Mapping[str, torch.Tensor]) -> None:
    """Write the layout of every value into its meta.

    Args:
        module: the captured network.
        symbol: name of the symbolic batch size, None if the batch is fixed.
        samples: samples in the example.
        example: example tensors by placeholder name; ranges of random trial inputs are taken from them. Inputs without
            one get standard normal or zero entries.

    Raises:
        Exception: whatever the network raises on the trial inputs.
    """
    count = _DYNAMIC_SAMPLES if symbol is not None else samples
    kept = sorted({max(count - 1, 1), max(count - 2, 1)}) if count > 1 else []
    generator = torch.Generator().manual_seed(_SEED)
    trials: list[dict[str, Any]] = [{}]
    for node in module.graph.nodes:
        if node.op == "placeholder" and is_tensor(node):
            trials[0][str(node.target)] = _draw(node, count, symbol, example.get(str(node.target)), generator)
    for keep in kept:
        changed = {}
        for node in module.graph.nodes:
            if node.op == "placeholder" and is_tensor(node):
                name = str(node.target)
                fresh = _draw(node, count, symbol, example.get(name), generator)
                changed[name] = _spliced(trials[0][name], fresh, keep, _batched(node, symbol, samples))
        trials.append(changed)
    dependent = _dependent(module.graph, symbol, samples)

    def judge(node: fx.Node, values: list[Any]) -> None:
        if node not in dependent or not is_tensor(node):
            return
        layout = _judge(node, values, kept, symbol, count)
        if layout is not None:
            node.meta[BATCH] = layout

    _run_side_by_side(module, trials, judge)


def _batched(node: fx.Node, symbol: str | None, samples: int) -> bool:
    shape = value_of(node).shape
    if not len(shape):
        return False
    return str(shape[0]) == symbol if symbol is not None else shape[0] == samples


def _dependent(graph: fx.Graph, symbol: str | None, samples: int) -> set[fx.Node]:
    """Values that depend on an input which holds one entry per sample, or on the size of the batch."""
    dependent: set[fx.Node] = set()
    for node in graph.nodes:
        own = node.op == "placeholder" and is_tensor(node) and _batched(node, symbol, samples)
        if own or any(source in dependent for source in node.all_input_nodes):
            dependent.add(node)
    return dependent


def _judge(node: fx.Node, values: list[Any], kept: list[int], symbol: str | None, count: int) -> BatchLayout | None:
    shape = tuple(values[0].shape)
    if symbol is not None:
        axes = [axis for axis, size in enumerate(value_of(node).shape) if symbol in _symbols(size)]
    else:
        axes = [axis for axis, size in enumerate(shape) if size and size % count == 0]
    for axis in axes:
        rows = shape[axis] // count if shape[axis] % count == 0 else 0
        for outer in _divisors(rows):
            layout = BatchLayout(axis, rows, outer)
            if _holds(layout, values, kept):
                return layout
    return BatchLayout(axes[0], 0 if shape[axes[0]] % count else shape[axes[0]] // count, None) if axes else None


def _holds(layout: BatchLayout, values: list[Any], kept: list[int]) -> bool:
    """Whether the entries of the samples that were kept are the same in all trials."""
    first, *others = (layout.samples_first(value) for value in values)
    return all(
        torch.equal(_plain(first[:keep]), _plain(other[:keep])) for other, keep in zip(others, kept, strict=True)
    )


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    # NaN differs from itself; where a trial input leaves a function's domain, both runs give NaN and that is equal.
    return torch.nan_to_num(tensor, nan=0.25) if tensor.is_floating_point() else tensor


def _symbols(size: int | torch.SymInt) -> set[str]:
    return {str(s) for s in size.node.expr.free_symbols} if isinstance(size, torch.SymInt) else set()


def _draw(
    node: fx.Node, count: int, symbol: str | None, example: torch.Tensor | None, generator: torch.Generator
) -> torch.Tensor:
    """Random entries in the range of the example."""
    value = value_of(node)
    shape = [count if symbol is not None and symbol in _symbols(size) else concrete_size(size) for size in value.shape]
    if value.is_floating_point():
        low, high, mean, std = -3.0, 3.0, 0.0, 1.0
        if example is not None and example.numel():
            wide = example.detach().float().nan_to_num()
            low, high, mean = float(wide.min()), float(wide.max()), float(wide.mean())
            std = float(wide.std(correction=0)) or 1.0
            low, high = (low, high) if low < high else (mean - 3 * std, mean + 3 * std)
        drawn = torch.randn(shape, generator=generator) * std + mean
        return drawn.clamp(low, high).to(value.dtype).to(value.device)
    top = 2 if value.dtype == torch.bool else int(example.max()) + 1 if example is not None and example.numel() else 1
    return torch.randint(0, max(top, 1), shape, generator=generator).to(value.dtype).to(value.device)


def _spliced(tensor: torch.Tensor, fresh: torch.Tensor, keep: int, batched: bool) -> torch.Tensor:
    return torch.cat([tensor[:keep], fresh[keep:]]) if batched else tensor


def _run_side_by_side(
    module: fx.GraphModule, trials: list[dict[str, Any]], judge: Callable[[fx.Node, list[Any]], None]
) -> None:
    """Run all trials node by node, show each node's values to `judge`, and free values after their last use."""
    last_use = {source: node for node in module.graph.nodes for source in node.all_input_nodes}
    values: dict[fx.Node, list[Any]] = {}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for node in module.graph.nodes:
            if node.op == "placeholder":
                values[node] = [trial.get(str(node.target), value_of(node)) for trial in trials]
            elif node.op == "get_attr":
                values[node] = [read_attribute(module, str(node.target))] * len(trials)
            elif node.op == "call_function":
                values[node] = [_call(node, values, trial) for trial in range(len(trials))]
            if node.op in ("placeholder", "call_function"):
                judge(node, values[node])
            for source in (*node.all_input_nodes, node):
                if last_use.get(source, source) is node:
                    values.pop(source, None)


def _call(node: fx.Node, values: dict[fx.Node, list[Any]], trial: int) -> Any:
    def fetch(source: fx.Node) -> Any:
        return values[source][trial]

    assert callable(node.target)
    return node.target(*fx.node.map_arg(node.args, fetch), **fx.node.map_arg(node.kwargs, fetch))
