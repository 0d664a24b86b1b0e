"""The calibration pass: from data to `Statistics`, read once."""

from __future__ import annotations

from detent.statistics.calibrate import calibrate
from detent.statistics.peek import first_batch

__all__ = ["calibrate", "first_batch"]
