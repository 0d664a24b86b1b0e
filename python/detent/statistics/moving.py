"""Moving maxima while they are collected: one number a value, renewed by each batch in its order."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from detent.records.moving import MovingMaximum

__all__ = ["MovingMaxima"]


class MovingMaxima:
    """m <- momentum * m + (1 - momentum) * max |x| for each value and batch; the first batch sets m.

    Args:
        momentum: what the old value counts.
        names: the values.
        earlier: what an interrupted calibration has collected of the same values.
    """

    def __init__(self, momentum: float, names: Sequence[str], earlier: MovingMaximum | None = None) -> None:
        self._momentum = momentum
        self._names = names
        known = {} if earlier is None else earlier.maxima
        self._maxima: list[float | None] = [known.get(name) for name in names]
        self._batches = 0 if earlier is None else earlier.batches

    def begin_batch(self) -> None:
        """Count the batch whose values come next."""
        self._batches += 1

    def update(self, index: int, tensor: torch.Tensor) -> None:
        """Take in what a batch has of the value at `index`: float32 of any shape, all of it."""
        if not tensor.numel():
            return
        low, high = torch.aminmax(tensor)
        size, before = max(-float(low), float(high)), self._maxima[index]
        # Written as a step towards the new value, so that a constant stays exactly what it is.
        self._maxima[index] = size if before is None else before + (1 - self._momentum) * (size - before)

    def record(self) -> MovingMaximum:
        """What has been collected so far."""
        maxima = {name: size for name, size in zip(self._names, self._maxima, strict=True) if size is not None}
        return MovingMaximum(momentum=self._momentum, batches=self._batches, maxima=maxima)
