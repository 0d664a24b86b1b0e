"""What listens to the gradients of a value: candidates' changes of it, sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from detent.errors import CalibrationError
from detent.graph import GraphNode
from detent.kernels.perturbation import TensorGrid, dots, perturbations
from detent.records.grid import Grid
from detent.sensitivity.candidates import KernelChange, Slot
from detent.sensitivity.replaced import WithKernel

__all__ = ["Gradients", "Tap", "tap_of_grids", "tap_of_kernel"]

Doubles = npt.NDArray[np.float64]
Tap = Callable[[torch.Tensor], Doubles]
"""From a value's gradient to its change by each candidate, `[widths, samples]`."""


def tap_of_kernel(layer: GraphNode, data: torch.Tensor, changes: Sequence[KernelChange]) -> Tap:
    """What changes of its kernel do at a layer's output: it is the layer with a change for its kernel."""
    altered = WithKernel(layer)
    others = altered.given if altered.bias is None else {**altered.given, altered.bias: None}
    shifts = [change.shifts.get(layer.name) for change in changes]
    with torch.no_grad():
        outputs = [
            altered.run(data, change.kernel, None if shift is None else torch.tensor(shift), others)
            for change, shift in zip(changes, shifts, strict=True)
        ]
    return _tap_of_known(layer, outputs)


def tap_of_grids(item: GraphNode, value: torch.Tensor, grids: Sequence[Grid]) -> Tap:
    """What grids do to a value."""
    if any(grid.table is not None or len(grid.scale) > 1 for grid in grids):
        array = value.contiguous().numpy()
        return _tap_of_known(item, [torch.from_numpy(grid.round(array) - array) for grid in grids])
    steps = [TensorGrid(float(grid.scale[0]), int(grid.zero_point[0]), grid.qmin, grid.qmax) for grid in grids]

    def tap(gradient: torch.Tensor) -> Doubles:
        g, x = _by_sample(item, gradient, value)
        return perturbations(x, g, steps)

    return tap


def _tap_of_known(item: GraphNode, changes: Sequence[torch.Tensor]) -> Tap:
    def tap(gradient: torch.Tensor) -> Doubles:
        pairs = [_by_sample(item, gradient, change) for change in changes]
        return np.array([dots(change, g) for g, change in pairs])

    return tap


class Gradients:
    """Collects the changes of all slots from the gradients of one direction after the other.

    Args:
        slots: whose changes are counted.
        samples: in the batch.
        pooled: a direction is of all samples together, and so are the changes.
    """

    def __init__(self, slots: Sequence[Slot], samples: int, *, pooled: bool) -> None:
        self._slots = slots
        self._samples = samples
        self._pooled = pooled
        self._current = self._zeros()
        self._found: list[list[Doubles]] = []

    def listen(self, value: torch.Tensor, slot: int, tap: Tap) -> None:
        """Count what a slot does at a value, whenever its gradient is known."""
        name = self._slots[slot].name

        def hook(gradient: torch.Tensor) -> None:
            changes = tap(gradient)
            if not bool(np.isfinite(changes).all()):
                raise CalibrationError(
                    "the gradient of the outputs, or the value itself, holds NaN or infinity here",
                    where=name,
                    remedy="look for square roots, logarithms or divisions at zero behind this layer",
                )
            if changes.shape[1] == self._samples and not self._pooled:
                self._current[slot] += changes
            else:  # samples are mixed here: what all do together stands for them
                self._current[slot][:, 0] += changes.sum(axis=1)

        value.register_hook(hook)  # type: ignore[no-untyped-call]

    def next_direction(self) -> None:
        """What was counted belongs to one direction."""
        self._found.append(self._current)
        self._current = self._zeros()

    def changes(self) -> list[Doubles]:
        """`[widths, directions, samples]` for each slot."""
        return [np.stack(parts, axis=1) for parts in zip(*self._found, strict=True)]

    def _zeros(self) -> list[Doubles]:
        return [np.zeros((len(slot.bits), self._samples)) for slot in self._slots]


def _by_sample(item: GraphNode, gradient: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as dense `[samples, ...]`, laid out alike; a single sample if they are mixed."""
    gradient, value = gradient.detach(), value.detach()
    batch = item.batch
    if batch is None or batch.outer is None:
        return gradient.reshape(1, -1), value.reshape(1, -1)
    if batch.axis == 0 and batch.rows == 1 and batch.outer == 1:
        if gradient.stride() != value.stride():
            gradient = torch.empty_like(value).copy_(gradient)
        if value.numel() == 0 or value.stride(0) * value.shape[0] == value.numel():
            return gradient, value
    return batch.samples_first(gradient).contiguous(), batch.samples_first(value).contiguous()
