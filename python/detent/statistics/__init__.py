"""The calibration pass: from data to `Statistics`, read once."""

from __future__ import annotations

from detent.statistics.calibrate import calibrate

__all__ = ["calibrate"]
