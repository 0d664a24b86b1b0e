"""Learned rounding: each weight between two neighbours of its grid, where a number v of its own puts it.

AdaRound (Nagel et al. 2020, arXiv:2004.10568): `value = scale * clamp(base + h(v))` with base the weight in steps,
rounded down, and `h(v) = clamp(1.2 sigmoid(v) - 0.1, 0, 1)` (equations 22 and 23). The regularizer, the sum of
`1 - |2 h(v) - 1|^beta` (equation 24), drives h to 0 or 1.

Arrays are float32 matrices `[rows, columns]` in C order with one step a row; a weight with steps per group is a matrix
with a row per channel and group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from detent import _core
from detent.kernels.arrays import ArrayLike, as_array

__all__ = ["Adam", "SoftGrid", "soft_codes", "soft_gradients", "soft_round", "soft_start", "soft_step"]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class SoftGrid:
    """The grid of each row.

    Args:
        scale: steps, float32 `[rows]` or `[1]`, finite and positive.
        zero_point: codes of zero, int32 with the shape of `scale`, each in `qmin..qmax`.
        qmin: lowest code, at least -2^15.
        qmax: highest code, at most 2^16 - 1.
    """

    scale: ArrayLike
    zero_point: ArrayLike
    qmin: int
    qmax: int

    def arguments(self) -> tuple[Any, ...]:
        """What the kernels take."""
        return as_array(self.scale, "scale"), as_array(self.zero_point, "zero_point"), self.qmin, self.qmax


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Settings of a step of Adam (Kingma and Ba 2015, arXiv:1412.6980), with torch's defaults.

    Args:
        step: number of this step, from 1 on.
        rate: learning rate.
        decays: of the first and second moment.
        epsilon: added to the root of the second moment.
    """

    step: int
    rate: float
    decays: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8


def soft_start(weights: ArrayLike, grid: SoftGrid) -> tuple[FloatArray, FloatArray]:
    """Base and v for which soft values are the weights themselves, as far as the grid reaches.

    Args:
        weights: float32 `[rows, columns]`, finite.
        grid: the grid of each row.
    """
    x = as_array(weights, "weights")
    quotients = (x / as_array(grid.scale, "scale")[:, None]).astype(np.float32)
    base = np.floor(quotients)
    rest = (quotients - base).astype(np.float64)
    return base, np.log((rest + 0.1) / (1.1 - rest)).astype(np.float32)


def soft_codes(base: ArrayLike, v: ArrayLike, grid: SoftGrid) -> npt.NDArray[np.int32]:
    """Codes of the nearer neighbours: up where h(v) is a half or more."""
    zeros = as_array(grid.zero_point, "zero_point")[:, None]
    up = as_array(base, "base") + (as_array(v, "v") >= 0)
    return np.asarray(np.clip(up.astype(np.float64) + zeros, grid.qmin, grid.qmax), np.int32)


def soft_round(base: ArrayLike, v: ArrayLike, grid: SoftGrid, *, out: ArrayLike | None = None) -> FloatArray:
    """Soft values, float32 `[rows, columns]`.

    Args:
        base: weights in steps, rounded down, float32 `[rows, columns]`.
        v: float32 `[rows, columns]`; NaN stays NaN.
        grid: the grid of each row.
        out: where to write; float32 `[rows, columns]`, neither `base` nor `v`.

    Raises:
        ValueError: a wrong dtype, shape, layout or number; the message says which.
        TypeError: not an array.
    """
    target = None if out is None else as_array(out, "out")
    return _core.soft_round(as_array(base, "base"), as_array(v, "v"), target, *grid.arguments())


def soft_gradients(
    gradients: ArrayLike, base: ArrayLike, v: ArrayLike, grid: SoftGrid, *, beta: float, weight: float
) -> tuple[FloatArray, float]:
    """Gradients of `loss + weight * regularizer` with respect to v, and `weight * regularizer`.

    Args:
        gradients: of the loss with respect to the soft values, float32 `[rows, columns]`.
        base: weights in steps, rounded down, float32 `[rows, columns]`.
        v: float32 `[rows, columns]`.
        grid: the grid of each row.
        beta: exponent of the regularizer, 1 to 128.
        weight: its weight; with 0 it is not computed.

    Raises:
        ValueError: a wrong dtype, shape, layout or number; the message says which.
        TypeError: not an array.
    """
    found, regularizer = _core.soft_gradients(
        as_array(gradients, "gradients"), as_array(base, "base"), as_array(v, "v"), beta, weight, *grid.arguments()
    )
    return found, regularizer


def soft_step(
    gradients: ArrayLike,
    base: ArrayLike,
    v: ArrayLike,
    moments: tuple[ArrayLike, ArrayLike],
    grid: SoftGrid,
    *,
    beta: float,
    weight: float,
    adam: Adam,
) -> float:
    """Step v by Adam, along the gradients of `soft_gradients`, in one read; return `weight * regularizer` before it.

    Args:
        gradients: of the loss with respect to the soft values, float32 `[rows, columns]`.
        base: weights in steps, rounded down, float32 `[rows, columns]`.
        v: float32 `[rows, columns]`; changed in place.
        moments: first and second moments of the gradients, float32 `[rows, columns]`, zeros before the first step;
            changed in place.
        grid: the grid of each row.
        beta: exponent of the regularizer, 1 to 128.
        weight: its weight; with 0 it is not computed.
        adam: settings of the step.

    Raises:
        ValueError: a wrong dtype, shape, layout or number, or arrays that overlap; the message says which.
        TypeError: not an array.
    """
    first, second = moments
    return _core.soft_step(
        as_array(gradients, "gradients"),
        as_array(base, "base"),
        as_array(v, "v"),
        as_array(first, "first"),
        as_array(second, "second"),
        beta,
        weight,
        adam.rate,
        *adam.decays,
        adam.epsilon,
        adam.step,
        *grid.arguments(),
    )
