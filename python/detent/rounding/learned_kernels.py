"""Kernels whose rounding is learned: between two neighbouring codes (soft), or by gradients past the rounding.

Soft: AdaRound (Nagel et al. 2020, arXiv:2004.10568, equations 21 to 24), see `kernels.soft_rounding`. Past the
rounding: straight-through (Bengio et al. 2013, arXiv:1308.3432), which can move a code by more than one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch

from detent.kernels.soft_rounding import Adam, SoftGrid, soft_codes, soft_round, soft_start, soft_step
from detent.records.grid import Grid

__all__ = ["Anneal", "LearnedKernel", "SoftKernel", "SoftNeighbours", "StraightKernel"]

_INSIDE: Final = 0.49
"""A weight begins no further than this from its former code, so that rounding it gives that code."""
_SAFE: Final = 0.25
"""The same for weights that go straight through: those at the edge of two codes would go back and forth."""

Codes = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Anneal:
    """Where the schedule stands.

    Args:
        step: number of the step, from 1 on.
        rate: learning rate of the rounding.
        beta: exponent of the regularizer.
        weight: of the regularizer, for each element.
    """

    step: int
    rate: float
    beta: float
    weight: float


class LearnedKernel(Protocol):
    """A kernel on its way to other codes."""

    def value(self) -> torch.Tensor:
        """What the network runs with while it learns, float32, shaped like the kernel."""

    def move(self, gradient: torch.Tensor, at: Anneal) -> None:
        """One step down the gradient of the loss with respect to that."""

    def codes(self) -> Codes:
        """The codes it would have now, shaped like the kernel."""


class _Rows:
    """A kernel as a matrix with a row for each step of its grid."""

    def __init__(self, grid: Grid, shape: tuple[int, ...]) -> None:
        self._shape, self._axis = shape, grid.axis
        self.count = grid.size

    def of(self, kernel: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The rows of an array shaped like the kernel."""
        first = kernel if self._axis is None else np.moveaxis(kernel, self._axis, 0)
        return np.ascontiguousarray(first).reshape(self.count, -1)

    def back(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The array that has these rows."""
        if self._axis is None:
            return rows.reshape(self._shape)
        others = [size for axis, size in enumerate(self._shape) if axis != self._axis]
        return np.moveaxis(rows.reshape(self._shape[self._axis], *others), 0, self._axis)


class SoftKernel:
    """A kernel on an affine grid, in compiled code.

    Args:
        kernel: float32, what it was before it was rounded.
        codes: its present codes.
        grid: their grid.
    """

    def __init__(self, kernel: Floats, codes: npt.NDArray[Any], grid: Grid) -> None:
        self._rows = _Rows(grid, kernel.shape)
        self._grid = SoftGrid(scale=grid.scale, zero_point=grid.zero_point, qmin=grid.qmin, qmax=grid.qmax)
        zeros, steps = grid.zero_point[:, None], grid.scale[:, None]
        at = self._rows.of(codes).astype(np.int32) - zeros
        near = np.clip(self._rows.of(kernel) / steps, at - _INSIDE, at + _INSIDE)
        self._base, self._v = soft_start((near * steps).astype(np.float32), self._grid)
        self._moments = np.zeros_like(self._v), np.zeros_like(self._v)

    def value(self) -> torch.Tensor:
        """Soft values."""
        return torch.from_numpy(np.ascontiguousarray(self._rows.back(soft_round(self._base, self._v, self._grid))))

    def move(self, gradient: torch.Tensor, at: Anneal) -> None:
        """Gradient, regularizer and Adam in one read."""
        rows = self._rows.of(gradient.numpy())
        adam = Adam(step=at.step, rate=at.rate)
        soft_step(rows, self._base, self._v, self._moments, self._grid, beta=at.beta, weight=at.weight, adam=adam)

    def codes(self) -> Codes:
        """The nearer of two neighbours."""
        return np.ascontiguousarray(self._rows.back(soft_codes(self._base, self._v, self._grid)))


class SoftNeighbours:
    """A kernel between neighbouring levels of any grid, in torch operations: for codebooks and other devices.

    Args:
        kernel: float32, what it was before it was rounded.
        codes: its present codes.
        grid: their grid.
        device: where it is learned.
    """

    def __init__(self, kernel: Floats, codes: npt.NDArray[Any], grid: Grid, device: torch.device) -> None:
        lowest, highest = grid.code_range
        held = codes.astype(np.int32)
        values = grid.values(held.astype(grid.storage))
        others = np.where(kernel > values, held + 1, held - 1)
        others = np.clip(others, lowest, highest)
        self._low, self._high = np.minimum(held, others), np.maximum(held, others)
        low, high = (grid.values(one.astype(grid.storage)) for one in (self._low, self._high))
        gap = np.where(high > low, high - low, np.float32(1))
        # No further from the present level than where rounding still gives it.
        share = np.clip((kernel - low) / gap, 0, 1)
        share = np.where(held == self._low, np.minimum(share, _INSIDE), np.maximum(share, 1 - _INSIDE))
        rest = share.astype(np.float64)
        v = np.log((rest + 0.1) / (1.1 - rest)).astype(np.float32)
        self._level = torch.from_numpy(low).to(device)
        self._gap = torch.from_numpy(np.where(high > low, high - low, np.float32(0))).to(device)
        self._v = torch.from_numpy(v).to(device)
        self._optimizer = _TorchAdam(self._v)

    def value(self) -> torch.Tensor:
        """Soft values."""
        return self._level + self._h() * self._gap

    def move(self, gradient: torch.Tensor, at: Anneal) -> None:
        """As `kernels.soft_rounding` does."""
        sigmoid = torch.sigmoid(self._v)
        h = 1.2 * sigmoid - 0.1
        slope = 1.2 * sigmoid * (1 - sigmoid) * ((h > 0) & (h < 1))
        centre = 2 * h.clamp(0, 1) - 1
        pull = -2 * at.beta * centre.sign() * centre.abs().pow(at.beta - 1) * at.weight
        self._optimizer.move((gradient * self._gap + pull) * slope, at)

    def codes(self) -> Codes:
        """The nearer of two neighbours."""
        up = (self._v >= 0).cpu().numpy()
        return np.where(up, self._high, self._low).astype(np.int32)

    def _h(self) -> torch.Tensor:
        return (1.2 * torch.sigmoid(self._v) - 0.1).clamp(0, 1)


class StraightKernel:
    """A kernel that is rounded to nearest in each step, with gradients as if it were not.

    Args:
        kernel: float32, what it was before it was rounded.
        codes: its present codes.
        grid: their grid.
        device: where it is learned.
    """

    def __init__(self, kernel: Floats, codes: npt.NDArray[Any], grid: Grid, device: torch.device) -> None:
        self._grid, self._device = grid, device
        self._rows = _Rows(grid, kernel.shape)
        # Of a codebook, the mean distance of its values.
        gaps = 1.0 if grid.table is None else np.diff(np.atleast_2d(grid.table), axis=1).mean(axis=1)
        self._steps = (grid.scale * gaps).astype(np.float32)[:, None]
        values = self._rows.of(grid.values(codes.astype(grid.storage)))
        near = self._rows.of(kernel)
        if grid.table is None:
            near = np.clip(near, values - _SAFE * self._steps, values + _SAFE * self._steps)
        else:
            near = np.where(grid.codes(kernel) == codes, kernel, grid.values(codes.astype(grid.storage)))
            near = self._rows.of(near)
        lowest, highest = (limit.astype(np.float32)[:, None] for limit in grid.limits)
        self._lowest, self._highest = lowest / self._steps - 0.5, highest / self._steps + 0.5
        # In steps, since those of Adam know no magnitudes.
        self._x = torch.from_numpy(near / self._steps)
        self._optimizer = _TorchAdam(self._x)

    def value(self) -> torch.Tensor:
        """Rounded values."""
        return torch.from_numpy(self._grid.round(self._weights())).to(self._device)

    def move(self, gradient: torch.Tensor, at: Anneal) -> None:
        """A step in parts of a step of the grid; nothing moves further beyond its ends."""
        x = self._x.numpy()
        rows = self._rows.of(gradient.cpu().numpy()) * self._steps
        outwards = ((x < self._lowest) & (rows > 0)) | ((x > self._highest) & (rows < 0))
        self._optimizer.move(torch.from_numpy(np.where(outwards, np.float32(0), rows)), at)

    def codes(self) -> Codes:
        """The nearest codes."""
        return self._grid.codes(self._weights()).astype(np.int32)

    def _weights(self) -> Floats:
        return np.ascontiguousarray(self._rows.back(self._x.numpy() * self._steps), np.float32)


class _TorchAdam:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980) on one tensor, with torch's defaults."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self._optimizer = torch.optim.Adam([tensor])

    def move(self, gradient: torch.Tensor, at: Anneal) -> None:
        self._tensor.grad = gradient
        self._optimizer.param_groups[0]["lr"] = at.rate
        self._optimizer.step()
