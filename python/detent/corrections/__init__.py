"""Corrections: what a plan does to biases and steps so that the outputs of layers stay where they were."""

from __future__ import annotations

from detent.corrections.analytic import correct_analytically
from detent.corrections.gains import correct_gains
from detent.corrections.kept import corrections_of
from detent.corrections.output import output_error
from detent.corrections.sequential import correct_sequentially

__all__ = [
    "correct_analytically",
    "correct_gains",
    "correct_sequentially",
    "corrections_of",
    "output_error",
]
