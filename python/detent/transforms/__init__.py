"""Rewritings of a graph that keep its float function, each from a graph to a new graph."""

from __future__ import annotations

from detent.transforms.fold_batch_norm import fold_batch_norm

__all__ = ["fold_batch_norm"]
