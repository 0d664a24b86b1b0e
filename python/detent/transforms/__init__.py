"""Rewritings of a graph that keep its float function, each from a graph to a new graph."""

from __future__ import annotations

from detent.transforms.absorb_biases import absorb_high_biases
from detent.transforms.attach_preprocessing import attach_preprocessing
from detent.transforms.bound_relu6 import bound_relu6
from detent.transforms.collapse_linear import collapse_linear
from detent.transforms.collapse_residual import collapse_residual
from detent.transforms.equalize import equalize_layers
from detent.transforms.equalize_activations import equalize_activations
from detent.transforms.fold_batch_norm import fold_batch_norm
from detent.transforms.fold_forward import fold_forward
from detent.transforms.reads import Reads, read_by_rewrites
from detent.transforms.restore_norms import restore_norms
from detent.transforms.shift_negative import require_unsigned_codes, shift_negative
from detent.transforms.shift_softmax import shift_softmax
from detent.transforms.smooth import smooth
from detent.transforms.split_attention import split_attention

__all__ = [
    "Reads",
    "absorb_high_biases",
    "attach_preprocessing",
    "bound_relu6",
    "collapse_linear",
    "collapse_residual",
    "equalize_activations",
    "equalize_layers",
    "fold_batch_norm",
    "fold_forward",
    "read_by_rewrites",
    "require_unsigned_codes",
    "restore_norms",
    "shift_negative",
    "shift_softmax",
    "smooth",
    "split_attention",
]
