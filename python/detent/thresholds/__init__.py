"""Thresholds: the grid of every activation and kernel, searched on saved statistics and raw weights."""

from __future__ import annotations

from detent.thresholds.biases import make_room_for_biases
from detent.thresholds.kernel_grids import notes_on_groups
from detent.thresholds.output_error import suit_outputs
from detent.thresholds.search import refuse_unoffered, search_grids, width_and_metric
from detent.thresholds.ties import avoid_ties

__all__ = [
    "avoid_ties",
    "make_room_for_biases",
    "notes_on_groups",
    "refuse_unoffered",
    "search_grids",
    "suit_outputs",
    "width_and_metric",
]
