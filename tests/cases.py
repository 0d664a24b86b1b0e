"""Named awkward inputs: the sizes, layouts and floats on which kernels go wrong first.

Every parity test draws from these lists, so that a new awkward case is added once and reaches every kernel.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

SIZES: dict[str, int] = {
    "empty": 0,
    "one": 1,
    "below_vector": 7,
    "vector": 16,
    "above_vector": 17,
    "prime": 1009,
    "below_block": 4095,
    "above_block": 4097,
    "several_blocks": 3 * 65536 + 5,
}
"""Lengths around the vector width, the block size, and enough blocks for every thread to get some."""

SHAPES: dict[str, tuple[int, ...]] = {
    "scalar": (),
    "vector": (33,),
    "matrix": (5, 17),
    "one_channel": (4, 1, 6, 6),
    "single_pixel": (3, 19, 1, 1),
    "small_map": (3, 5, 7, 7),
    "map": (2, 3, 41, 53),
    "many_channels": (2, 300, 3, 3),
    "volume": (2, 3, 4, 5, 6),
    "many_blocks": (4, 24, 40, 51),
    "no_samples": (0, 3, 4, 4),
    "no_pixels": (2, 3, 0, 4),
}
"""Shapes of activations and weights; axis 1 is the channel axis where there is one."""

LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "c_order": np.ascontiguousarray,
    "channels_last": lambda x: np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1) if x.ndim > 2 else x,
    "fortran": np.asfortranarray,
    "axes_swapped": lambda x: np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1) if x.ndim > 1 else x,
}
"""Dense memory orders: the same values, no gaps, axes in another order."""

GAPS: dict[str, Callable[[Array], Array]] = {
    "every_second": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "reversed": lambda x: np.ascontiguousarray(x[..., ::-1])[..., ::-1],
    "window": lambda x: np.pad(x, [(0, 0)] * (x.ndim - 1) + [(1, 2)])[..., 1:-2],
    "broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
}
"""Views that no kernel takes: they must be refused, never copied."""

_TINY = np.finfo(np.float32).smallest_subnormal
_NORMAL = np.finfo(np.float32).tiny
_MAX = np.finfo(np.float32).max


def _around(x: npt.ArrayLike) -> Array:
    """Each number with its two float32 neighbours and their negatives."""
    x = np.asarray(x, np.float32)
    near = np.concatenate([x, np.nextafter(x, np.float32(np.inf)), np.nextafter(x, np.float32(-np.inf))])
    return np.concatenate([near, -near])


def ties(step: float, codes: int = 140) -> Array:
    """Halfway points between codes of a grid of this step, with their neighbours, both signs."""
    return _around(np.float32(step) * (np.arange(codes, dtype=np.float32) + np.float32(0.5)))


FLOATS: dict[str, Array] = {
    "zeros": np.array([0.0, -0.0], np.float32),
    "subnormals": _around([_TINY, 7 * _TINY, _NORMAL / 2, _NORMAL]),
    "ones": _around([1.0, 2.0, 0.5]),
    "near_integers": _around([3.0, 127.0, 128.0, 255.0, 256.0, 32767.0, 65535.0]),
    "near_2_to_23": _around([2.0**22, 2.0**23, 1.5 * 2.0**23, 2.0**24]),
    "huge": np.array([1e30, -1e30, _MAX, -_MAX], np.float32),
    "powers_of_two": np.ldexp(np.float32(1), np.arange(-149, 128)).astype(np.float32),
}
"""Finite floats at which rounding, clamping or scaling are easily wrong."""

NONFINITE: Array = np.array([np.inf, -np.inf, np.nan, -np.nan], np.float32)

SCALES: dict[str, float] = {
    "one": 1.0,
    "power_of_two": 2.0**-7,
    "large_power_of_two": 2.0**127,
    "subnormal_power_of_two": 2.0**-149,
    "decimal": 0.1,
    "third": 1.0 / 3.0,
    "tiny": 1e-38,
    "huge": 3e38,
}
"""Steps of a grid: exact and inexact reciprocals, and reciprocals that overflow."""


def all_floats() -> Array:
    """Every finite awkward float in one vector."""
    return np.concatenate(list(FLOATS.values()))


def samples(shape: tuple[int, ...] | int, *, seed: int = 0, spread: float = 1.0) -> Array:
    """Heavy-tailed random data with exact zeros, in C order."""
    rng = np.random.default_rng(seed)
    x = rng.laplace(scale=spread, size=shape) * rng.choice([1.0, 1.0, 1.0, 5.0, 0.0], size=shape)
    return np.asarray(x, np.float32)


def awkward(shape: tuple[int, ...] | int, *, seed: int = 0, spread: float = 1.0, finite: bool = True) -> Array:
    """`samples` with awkward floats scattered over about a tenth of the places."""
    x = samples(shape, seed=seed, spread=spread)
    rng = np.random.default_rng(seed + 1)
    pool = all_floats() if finite else np.concatenate([all_floats(), NONFINITE])
    where = rng.random(x.shape) < 0.1
    return np.where(where, rng.choice(pool, size=x.shape), x).astype(np.float32)
