"""Quantization with random entries left as they are, for learning, and its gradients.

Dropping (Wei et al. 2022, QDrop, arXiv:2203.05740, equation 6) leaves an entry where the byte drawn for it is below a
bound. Gradients are straight-through for x; for the step those of learned step size quantization (Esser et al. 2020,
arXiv:1902.08153, equation 3), without its factor. One step for all of a tensor.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from detent import _core
from detent.kernels.arrays import ArrayLike, as_array
from detent.kernels.perturbation import TensorGrid

__all__ = ["dropped_gradients", "dropped_round"]

FloatArray = npt.NDArray[np.float32]


def dropped_round(
    x: ArrayLike, grid: TensorGrid, *, drawn: ArrayLike | None = None, below: int = 0, out: ArrayLike | None = None
) -> FloatArray:
    """Values of the grid, but x itself where `drawn < below`; float32 with the shape and memory order of `x`.

    Args:
        x: float32, dense; NaN stays NaN.
        grid: the grid.
        drawn: uint8 with the shape and memory order of `x`; None leaves nothing as it is.
        below: 0 to 256.
        out: where to write; may be `x` itself.

    Raises:
        ValueError: a wrong dtype, shape, layout or number; the message says which.
        TypeError: not an array.
    """
    target = None if out is None else as_array(out, "out")
    bytes_ = None if drawn is None else as_array(drawn, "drawn")
    return _core.dropped_round(as_array(x), bytes_, below, grid.scale, grid.zero_point, grid.qmin, grid.qmax, target)


def dropped_gradients(
    g: ArrayLike,
    x: ArrayLike,
    grid: TensorGrid,
    *,
    drawn: ArrayLike | None = None,
    below: int = 0,
    out: ArrayLike | None = None,
) -> tuple[FloatArray, float]:
    """Gradients of a loss with respect to `x` and to the step, from those with respect to `dropped_round(x)`.

    Args:
        g: float32 with the shape and memory order of `x`.
        x: float32, dense.
        grid: the grid.
        drawn: as for `dropped_round`.
        below: as for `dropped_round`.
        out: where to write; may be `g` itself.

    Returns:
        float32 with the shape and memory order of `x`; and the gradient of the step, summed in float64.

    Raises:
        ValueError: a wrong dtype, shape, layout or number; the message says which.
        TypeError: not an array.
    """
    target = None if out is None else as_array(out, "out")
    bytes_ = None if drawn is None else as_array(drawn, "drawn")
    found, step = _core.dropped_gradients(
        as_array(g, "g"), as_array(x), bytes_, below, grid.scale, grid.zero_point, grid.qmin, grid.qmax, target
    )
    return found, step
