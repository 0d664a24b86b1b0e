"""Thresholds: the grid of every activation and kernel, searched on saved statistics and raw weights."""

from __future__ import annotations

from detent.thresholds.biases import make_room_for_biases
from detent.thresholds.forms import forms_wanted, refuse_unoffered
from detent.thresholds.kernel_grids import notes_on_groups
from detent.thresholds.output_error import suit_outputs
from detent.thresholds.search import search_grids
from detent.thresholds.ties import avoid_ties

__all__ = [
    "avoid_ties",
    "forms_wanted",
    "make_room_for_biases",
    "notes_on_groups",
    "refuse_unoffered",
    "search_grids",
    "suit_outputs",
]
