"""Corrections: what a plan adds to biases so that quantization leaves the means of all layers where they were."""

from __future__ import annotations

from detent.corrections.analytic import correct_analytically
from detent.corrections.kept import corrections_of
from detent.corrections.sequential import correct_sequentially

__all__ = ["correct_analytically", "correct_sequentially", "corrections_of"]
