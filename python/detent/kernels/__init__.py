"""Typed thin calls into the compiled kernels. Imports without torch."""

from __future__ import annotations

from detent.kernels.arrays import ArrayLike, as_array

__all__ = ["ArrayLike", "as_array"]
