"""Arrays in, arrays out: NumPy arrays and CPU torch tensors reach the kernels without a copy.

This module does not import torch; a tensor is recognized by its DLPack method.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["ArrayLike", "as_array"]


class _SupportsDLPack(Protocol):
    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...

    def __dlpack_device__(self) -> tuple[Any, int]: ...


ArrayLike = npt.NDArray[Any] | _SupportsDLPack
"""A NumPy array, or a CPU tensor of any library that speaks DLPack."""

_DLPACK_CPU = 1


def as_array(x: ArrayLike, name: str = "x") -> npt.NDArray[Any]:
    """View `x` as a NumPy array that shares its memory.

    Raises:
        TypeError: `x` is neither a NumPy array nor a CPU tensor, or requires grad.
    """
    if isinstance(x, np.ndarray):
        return x
    if not hasattr(x, "__dlpack__"):
        raise TypeError(f"{name} must be a NumPy array or a CPU tensor, got {type(x).__name__}")
    if int(x.__dlpack_device__()[0]) != _DLPACK_CPU:
        raise TypeError(f"{name} is not on the CPU; move it there first, e.g. {name}.cpu()")
    if getattr(x, "requires_grad", False):
        raise TypeError(f"{name} requires grad; pass {name}.detach()")
    return np.from_dlpack(x)
