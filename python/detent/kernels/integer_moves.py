"""Codes in other places, and functions of single codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from detent import _core
from detent.kernels.arrays import ArrayLike, as_array

__all__ = ["integer_gather", "integer_look_up"]


def integer_gather(x: ArrayLike, places: ArrayLike, *, fill: int) -> npt.NDArray[Any]:
    """Codes of each sample from other places, `[samples, codes]` to `[samples, places]`.

    Args:
        x: codes of 8 or 16 bits, in C order.
        places: int64, where in a sample each code comes from; a negative one takes `fill`.
        fill: code.

    Raises:
        ValueError: a wrong dtype, shape, layout or number; the message says which.
        TypeError: not an array.
    """
    codes, taken = as_array(x), as_array(places, "places")
    out = np.empty((len(codes), taken.size), codes.dtype)
    _core.integer_gather(codes, taken, fill, out)
    return out


def integer_look_up(x: ArrayLike, table: ArrayLike) -> npt.NDArray[Any]:
    """For each code its entry in a table, with the shape of `x`.

    Args:
        x: codes of 8 or 16 bits, in C order.
        table: codes of 8 or 16 bits, one for each number of the type of `x`, from the least on.

    Raises:
        ValueError: a wrong dtype, shape or layout; the message says which.
        TypeError: not an array.
    """
    codes, entries = as_array(x), as_array(table, "table")
    out = np.empty(codes.shape, entries.dtype)
    _core.integer_look_up(codes, entries, out)
    return out
