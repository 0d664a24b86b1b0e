"""Sensitivity: what the outputs of the network lose by each candidate width of each tensor."""

from __future__ import annotations

from detent.sensitivity.candidates import Candidates
from detent.sensitivity.directions import Loss
from detent.sensitivity.hawq import hawq_scores
from detent.sensitivity.measured import points_of_interest, score_by_measuring
from detent.sensitivity.probes import score_by_probes
from detent.sensitivity.traces import estimate_traces

__all__ = [
    "Candidates",
    "Loss",
    "estimate_traces",
    "hawq_scores",
    "points_of_interest",
    "score_by_measuring",
    "score_by_probes",
]
