"""Rounding of kernels that is better than to nearest: in closed form, or learned."""

from __future__ import annotations

from detent.rounding.closed_form import Rounded, round_kernel
from detent.rounding.objective import Objective
from detent.rounding.rows import KernelRows
from detent.rounding.sweep import Settled, Swept, sweep

__all__ = ["KernelRows", "Objective", "Rounded", "Settled", "Swept", "round_kernel", "sweep"]
