"""What quantizing a tensor does to a loss, to first order, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from detent import _core
from detent.kernels.arrays import ArrayLike, as_array

__all__ = ["TensorGrid", "dots", "perturbations"]

Doubles = npt.NDArray[np.float64]


class TensorGrid(NamedTuple):
    """A grid with one step for all of a tensor.

    Args:
        scale: the step.
        zero_point: code of zero.
        qmin: lowest code.
        qmax: highest code.
    """

    scale: float
    zero_point: int
    qmin: int
    qmax: int


def perturbations(x: ArrayLike, g: ArrayLike, grids: Sequence[TensorGrid]) -> Doubles:
    """Sum of `g * (Q(x) - x)` over each sample, for each of several grids, float64 `[grids, samples]`.

    With `g` the gradient of a loss with respect to `x`, this is how much the loss changes when `x` is quantized, to
    first order. Up to four grids share one read of `x` and `g`. Products and sums are float64, in an order that depends
    on the shape only.

    Args:
        x: float32 `[samples, ...]`, dense with the samples outermost in memory.
        g: float32 with the shape and memory order of `x`.
        grids: the candidates.

    Raises:
        ValueError: a wrong dtype, shape, layout or grid.
        TypeError: not an array.
    """
    scale = np.array([grid.scale for grid in grids], np.float32)
    codes = [np.array([grid[part] for grid in grids], np.int32) for part in (1, 2, 3)]
    return _core.perturbations(as_array(x), as_array(g, "g"), scale, *codes)


def dots(x: ArrayLike, g: ArrayLike) -> Doubles:
    """Sum of `g * x` over each sample, float64 `[samples]`; as `perturbations`, of a change that is known.

    Args:
        x: float32 `[samples, ...]`, dense with the samples outermost in memory.
        g: float32 with the shape and memory order of `x`.

    Raises:
        ValueError: a wrong dtype, shape or layout.
        TypeError: not an array.
    """
    sums: Doubles = _core.dots(as_array(x), as_array(g, "g"))[0]
    return sums
