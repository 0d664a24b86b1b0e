"""Mixed precision: what widths cost in memory and operations, and which to choose under a budget."""

from __future__ import annotations

from detent.mixed_precision.figures import Resources
from detent.mixed_precision.formulate import assignment_of, formulate, resource_of, widths_of
from detent.mixed_precision.latency import LatencyTable, latencies, latency_table
from detent.mixed_precision.model import ResourceModel, resource_model, resources
from detent.mixed_precision.overwrite import overwritten, without_others
from detent.mixed_precision.problem import Problem, Row, Slot
from detent.mixed_precision.raising import raise_for_free
from detent.mixed_precision.slots import FLOAT_BITS, activation_slots
from detent.mixed_precision.solve import Solution, solution_of, solve

__all__ = [
    "FLOAT_BITS",
    "LatencyTable",
    "Problem",
    "ResourceModel",
    "Resources",
    "Row",
    "Slot",
    "Solution",
    "activation_slots",
    "assignment_of",
    "formulate",
    "latencies",
    "latency_table",
    "overwritten",
    "raise_for_free",
    "resource_model",
    "resource_of",
    "resources",
    "solution_of",
    "solve",
    "widths_of",
    "without_others",
]
