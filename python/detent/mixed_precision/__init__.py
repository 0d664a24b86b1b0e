"""Mixed precision: what widths cost in memory and operations, and which to choose under a budget."""

from __future__ import annotations

from detent.mixed_precision.figures import Resources
from detent.mixed_precision.formulate import assignment_of, formulate, resource_of, widths_of
from detent.mixed_precision.model import ResourceModel, resource_model, resources
from detent.mixed_precision.problem import Problem, Row, Slot
from detent.mixed_precision.solve import Solution, solve

__all__ = [
    "Problem",
    "ResourceModel",
    "Resources",
    "Row",
    "Slot",
    "Solution",
    "assignment_of",
    "formulate",
    "resource_model",
    "resource_of",
    "resources",
    "solve",
    "widths_of",
]
