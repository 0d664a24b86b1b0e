"""Marks of a value that carries a constant: a rewrite leaves them in `fx.Node.meta`, and they travel with copies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from detent.graph.graph import GraphNode

__all__ = ["COMPENSATED", "FILL", "SHIFT", "UNSIGNED", "missing_from_bias"]

SHIFT: Final = "detent_shift"
"""On a sum with a number: part of the operator before it, which computes both at once, with no grid in between."""

UNSIGNED: Final = "detent_unsigned"
"""On a value that was shifted for the sake of an unsigned grid, the shift: its codes are unsigned where the target lets
data decide, and the shift, which stands for its zero, is a level of its grid."""

FILL: Final = "detent_fill"
"""On a padding with a number other than zero that stands for the zero of a shifted value, so it is on its grid."""

COMPENSATED: Final = "detent_compensated"
"""On a layer that reads shifted values, the shift, a number or float64 `[C_in]`: its bias takes back what the kernel
makes of it."""


def missing_from_bias(layer: GraphNode, lost: npt.NDArray[np.float64]) -> npt.NDArray[np.float32] | None:
    """What the bias of a layer lacks that reads shifted values, once its kernel is rounded; None for other layers.

    The float bias takes a shift s back by s sum W, but the codes compute s sum Q(W); like a zero point's, the product
    is known beforehand.

    Args:
        layer: the layer.
        lost: its kernel less the rounded one, float64 in the kernel's shape.

    Returns:
        What is to be added to its output channels, float32 `[C_out]`.
    """
    amount = layer.node.meta.get(COMPENSATED)
    if amount is None:
        return None
    if layer.kind == "conv_transposed":  # [C_in, C_out / groups, 1, ...]
        inputs, outputs = lost.shape[:2]
        lost = lost.reshape(layer.groups, -1, outputs).swapaxes(1, 2).reshape(-1, inputs // layer.groups)
    taps = lost.reshape(len(lost), lost.shape[1], -1).sum(axis=2)  # [C_out, C_in / groups]
    shifts = np.broadcast_to(amount, layer.groups * taps.shape[1]).reshape(layer.groups, -1)
    of_outputs = np.repeat(shifts, len(taps) // layer.groups, axis=0)
    missing: npt.NDArray[np.float32] = (taps * of_outputs).sum(axis=1).astype(np.float32)
    return missing
