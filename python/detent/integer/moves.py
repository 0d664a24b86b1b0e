"""Operators that only move values, as places of codes: found by running them on numbered entries."""

from __future__ import annotations

import operator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from detent.errors import UnsupportedOpError
from detent.graph.layouts import BATCH, BatchLayout
from detent.graph.roles import first_argument
from detent.graph.shapes import value_of

__all__ = ["places_of", "sample_shape"]

_ARITHMETIC: Final = {
    operator.add: operator.add,
    operator.sub: operator.sub,
    operator.mul: operator.mul,
    operator.floordiv: operator.floordiv,
}


def sample_shape(node: fx.Node) -> tuple[int, ...]:
    """Shape of one sample of a value that has its samples along the first axis.

    Raises:
        UnsupportedOpError: they lie elsewhere.
    """
    layout: BatchLayout | None = node.meta.get(BATCH)
    if layout is None or layout.axis != 0 or layout.rows != 1 or layout.outer != 1:
        raise UnsupportedOpError("its samples do not lie along its first axis, so it has no integer form yet")
    return tuple(int(size) for size in value_of(node).shape[1:])


def places_of(node: fx.Node) -> tuple[npt.NDArray[np.int64] | None, tuple[int, ...]]:
    """Where each entry of a sample of a moved value comes from in a sample of its source, -1 for zero; and its shape.

    None stands for all entries in order.

    Raises:
        UnsupportedOpError: the operator mixes samples, or does not move numbers from place to place.
    """
    parted = node.target is operator.getitem
    # An item of a split: the split and the choice together are one move.
    source = first_argument(first_argument(node)) if parted else first_argument(node)
    inner, shape = sample_shape(source), sample_shape(node)
    samples, size = _samples(source), int(np.prod(inner))
    count = samples * size
    numbers = _moved(node, source, torch.arange(1, 1 + count, dtype=torch.float64).reshape(samples, *inner), shape)
    if not bool(np.all((numbers == np.rint(numbers)) & (numbers >= 0) & (numbers <= count))):
        raise UnsupportedOpError("it has no integer form yet: it puts other numbers than zero among its values")
    # A maximum would seem to move the largest number: where numbers run the other way it takes another place.
    turned = _moved(node, source, torch.arange(count, 0, -1, dtype=torch.float64).reshape(samples, *inner), shape)
    if not np.array_equal(turned, np.where(numbers > 0, 1 + count - numbers, 0)):
        raise UnsupportedOpError("it has no integer form yet: where values go depends on them")
    every = numbers.astype(np.int64) - 1
    begins = size * np.arange(samples)[:, None]
    if not np.array_equal(every, np.where(every[:1] < 0, -1, every[:1] + begins)):
        raise UnsupportedOpError("it has no integer form: it moves values from sample to sample")
    return None if np.array_equal(every[0], np.arange(size)) else every[0], shape


def _moved(node: fx.Node, source: fx.Node, numbered: torch.Tensor, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """What becomes of numbers in the place of the source's values, `[samples, numbers of a sample]`."""
    parted = node.target is operator.getitem
    mover = first_argument(node) if parted else node
    args, kwargs = fx.map_arg((mover.args, mover.kwargs), lambda one: numbered if one is source else _number(one))
    moved: Any = mover.target(*args, **kwargs)  # type: ignore[operator]
    moved = moved[node.args[1]] if parted else moved
    if not isinstance(moved, torch.Tensor) or tuple(moved.shape) != (len(numbered), *shape):
        raise UnsupportedOpError("it has no integer form yet: it does not move values of single samples")
    found: npt.NDArray[np.float64] = moved.reshape(len(numbered), -1).double().numpy()
    return found


def _samples(node: fx.Node) -> int:
    """How many samples to try with: as many as the network fixes, else one."""
    count = value_of(node).shape[0]
    return count if isinstance(count, int) else 1


def _number(node: fx.Node) -> int:
    """A size that the network computes, for one sample."""
    if node.target is torch.ops.aten.sym_size.int:
        axis = int(node.args[1])  # type: ignore[arg-type]
        source = first_argument(node)
        return (_samples(source), *sample_shape(source))[axis]
    if node.target in _ARITHMETIC:
        left, right = (_number(one) if isinstance(one, fx.Node) else one for one in node.args)
        return int(_ARITHMETIC[node.target](left, right))
    raise UnsupportedOpError("it has no integer form yet: an argument is computed")
