"""Integer programs: what a device computes, exactly."""

from __future__ import annotations

from detent.integer.arithmetic import RUNTIMES, Arithmetic
from detent.integer.code_grid import CodeGrid
from detent.integer.lowering import LowerableModel, lower
from detent.integer.operations import QuantizeInput
from detent.integer.program import IntegerProgram, IntegerRun

__all__ = [
    "RUNTIMES",
    "Arithmetic",
    "CodeGrid",
    "IntegerProgram",
    "IntegerRun",
    "LowerableModel",
    "QuantizeInput",
    "lower",
]
