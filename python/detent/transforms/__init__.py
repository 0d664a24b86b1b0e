"""Rewritings of a graph that keep its float function, each from a graph to a new graph."""

from __future__ import annotations

from detent.transforms.equalize import equalize_layers
from detent.transforms.fold_batch_norm import fold_batch_norm

__all__ = ["equalize_layers", "fold_batch_norm"]
