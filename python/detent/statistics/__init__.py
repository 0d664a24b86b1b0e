"""The passes over calibration data: `Statistics` of all samples, moments of layers' inputs from the first ones."""

from __future__ import annotations

from detent.statistics.calibrate import calibrate
from detent.statistics.moments import collect_moments
from detent.statistics.peek import first_batch
from detent.statistics.progress import progress_bar
from detent.statistics.samples import Keeping, first_samples

__all__ = ["Keeping", "calibrate", "collect_moments", "first_batch", "first_samples", "progress_bar"]
