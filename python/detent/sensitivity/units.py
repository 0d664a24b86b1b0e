"""Units: the smallest batches that a network takes by themselves, and directions of their outputs taken as one vector.

Gradients of a kernel come summed over a batch. One unit at a time keeps samples apart, so that squares of gradients are
squares of single samples; where a network fixes its batch or mixes samples, the batch is the unit, and its directions
span the outputs of all samples: the square of the sum is then the sum of squares on average, as signs are independent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from detent.errors import ConfigError
from detent.graph import Graph
from detent.sensitivity.directions import MOST_ORTHOGONAL

__all__ = ["detached", "draw", "float_outputs", "samples_in", "split"]

Batch = Sequence[torch.Tensor]


def split(graph: Graph, batches: Sequence[Batch]) -> list[Batch]:
    """The batches as units, in order."""
    mixed = any(item.batch is not None and item.batch.outer is None for item in graph.nodes())
    mixed = mixed or any(graph.find(graph.name_of(node)).batch is None for node in float_outputs(graph))
    # A squeeze of all axes would take the axis of a single sample with it.
    squeezed = any(node.target is torch.ops.aten.squeeze.default for node in graph.module.graph.nodes)
    if mixed or squeezed or not graph.batch.dynamic:
        return list(batches)
    return [
        [
            tensor if spec.batch_axis is None else tensor.narrow(spec.batch_axis, place, 1)
            for tensor, spec in zip(batch, graph.inputs, strict=True)
        ]
        for batch in batches
        for place in range(samples_in(graph, batch))
    ]


def samples_in(graph: Graph, batch: Batch) -> int:
    """How many samples a batch holds."""
    axes = [(tensor, spec.batch_axis) for tensor, spec in zip(batch, graph.inputs, strict=True)]
    sizes = [tensor.shape[axis] for tensor, axis in axes if axis is not None]
    return int(sizes[0]) if sizes else 1


def detached(batch: Batch) -> list[torch.Tensor]:
    """Tensors of the same memory: the user's own must not begin to require gradients; some never can and are copied."""
    return [tensor.clone() if tensor.is_inference() else tensor.detach() for tensor in batch]


def float_outputs(graph: Graph, remedy: str = "return what comes before the argmax or rounding") -> list[fx.Node]:
    """The outputs that can have a gradient: floating-point values that depend on the inputs.

    Args:
        graph: the network.
        remedy: what to do about it if there are none.

    Raises:
        ConfigError: there are none.
    """
    floats = [item.node for item in graph.float_outputs()]
    if not floats:
        found = [graph.find(name) for name in dict.fromkeys(map(graph.name_of, graph.outputs())) if name in graph]
        kinds = ", ".join(f"{item.name} ({item.dtype})" for item in found)
        raise ConfigError("no output of the network carries a gradient", where=kinds or None, remedy=remedy)
    return floats


def draw(size: int, start: int, stop: int, seed: Sequence[int]) -> npt.NDArray[np.float32]:
    """Some of a unit's directions, float32 `[stop - start, size]`; the mean outer product of each is the unit matrix.

    Few outputs have as many directions as there are outputs, which are orthogonal; their mean outer product is the unit
    matrix itself, and that of a part of them has less noise than independent signs have.

    Args:
        size: outputs of the unit.
        start: number of the first direction.
        stop: one more than that of the last; no more than `size` for few outputs.
        seed: of the unit; the same for all its directions.
    """
    if size > MOST_ORTHOGONAL:
        signs = np.random.default_rng([*seed, start]).integers(0, 2, (stop - start, size), np.int8)
        return (signs * 2 - 1).astype(np.float32)
    random = np.random.default_rng(seed)
    # A discrete cosine transform whose rows come in random order, and whose columns are shuffled and signed.
    rows = random.permutation(size)[start:stop, None]
    columns = random.permutation(size)
    signs = random.integers(0, 2, size) * 2 - 1
    basis = np.cos(np.pi * (columns + 0.5) * rows / size) * np.where(rows == 0, 1.0, 2**0.5)
    return (basis * signs).astype(np.float32)
