"""Marks of a value that carries a constant: a rewrite leaves them in `fx.Node.meta`, and they travel with copies."""

from __future__ import annotations

from typing import Final

__all__ = ["COMPENSATED", "FILL", "SHIFT", "UNSIGNED"]

SHIFT: Final = "detent_shift"
"""On a sum with a number: part of the operator before it, which computes both at once, with no grid in between."""

UNSIGNED: Final = "detent_unsigned"
"""On a value that was shifted for the sake of an unsigned grid, the shift: its codes are unsigned where the target lets
data decide, and the shift, which stands for its zero, is a level of its grid."""

FILL: Final = "detent_fill"
"""On a padding with a number other than zero that stands for the zero of a shifted value, so it is on its grid."""

COMPENSATED: Final = "detent_compensated"
"""On a layer that reads shifted values, the shift, a number or float64 `[C_in]`: its bias takes back what the kernel
makes of it."""
