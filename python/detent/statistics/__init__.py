"""The calibration pass: from data to `Statistics`, read once."""

from __future__ import annotations

from detent.statistics.calibrate import calibrate
from detent.statistics.peek import first_batch
from detent.statistics.samples import Keeping, first_samples

__all__ = ["Keeping", "calibrate", "first_batch", "first_samples"]
