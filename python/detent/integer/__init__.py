"""Integer programs: what a device computes, exactly."""

from __future__ import annotations

from detent.integer.lowering import LowerableModel, lower
from detent.integer.operations import CodeGrid
from detent.integer.program import IntegerProgram, IntegerRun

__all__ = ["CodeGrid", "IntegerProgram", "IntegerRun", "LowerableModel", "lower"]
