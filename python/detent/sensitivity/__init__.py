"""Sensitivity: what the outputs of the network lose by each candidate width of each tensor."""

from __future__ import annotations

from detent.sensitivity.candidates import Candidates
from detent.sensitivity.directions import Loss
from detent.sensitivity.probes import score_by_probes

__all__ = ["Candidates", "Loss", "score_by_probes"]
