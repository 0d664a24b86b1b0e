"""Directions of the outputs along which changes are measured: orthogonal where outputs are few, random signs else.

For a matrix M, the squares of d M along an orthonormal set of directions d add up to the squared size of M exactly; a
random part of the set, or random signs, give it on average (Hutchinson 1989).
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["MOST_ORTHOGONAL", "Loss", "directions", "fisher"]

Loss = Literal["outputs", "fisher"]
Floats = npt.NDArray[np.float32]

MOST_ORTHOGONAL: Final = 4096
"""Outputs of a sample up to which directions are orthogonal; beyond, random signs nearly are."""


def directions(samples: int, size: int, count: int, random: np.random.Generator) -> Floats:
    """Directions for each sample, float32 `[count or fewer, samples, size]`.

    Their outer products add up to the unit matrix: on average, and exactly if there are as many as outputs. Signs are
    drawn for each sample, so that the changes of different samples can also be added up before they are squared.

    Args:
        samples: how many samples.
        size: outputs of each.
        count: directions wanted; no more than outputs are needed.
        random: draws them.
    """
    if size > MOST_ORTHOGONAL:
        signs: Floats = (random.integers(0, 2, (count, samples, size), np.int8) * 2 - 1).astype(np.float32)
        signs *= np.float32(count**-0.5)
        return signs
    count = min(count, size)
    rows = np.sort(random.permutation(size)[:count])
    columns = (random.integers(0, 2, (samples, size)) * 2 - 1).astype(np.float64)
    # The columns of each sample are signed and shuffled: a cosine of the same row would weigh the same outputs in all.
    order = random.permuted(np.broadcast_to(np.arange(size), (samples, size)), axis=1)
    found: Floats = (_cosines(size)[rows][:, order] * columns * (size / count) ** 0.5).astype(np.float32)
    return found


def fisher(probabilities: Floats, directions: Floats) -> Floats:
    """Directions turned into those whose outer products add up to the Fisher matrix diag(p) - p p^T of a softmax.

    That matrix is the Hessian of the cross-entropy, and of the divergence from the network's own prediction, with
    respect to the logits; it is A A^T with A = diag(sqrt p) - p sqrt(p)^T.

    Args:
        probabilities: float32 `[samples, ..., classes]`, sums to 1 along the last axis.
        directions: float32 `[count, samples, ..., classes]`.
    """
    roots = np.sqrt(probabilities)
    turned: Floats = roots * directions - probabilities * (roots * directions).sum(axis=-1, keepdims=True)
    return turned


def _cosines(size: int) -> npt.NDArray[np.float64]:
    """The orthonormal basis of the discrete cosine transform, `[size, size]`."""
    k, n = np.arange(size)[:, None], np.arange(size)[None, :]
    basis: npt.NDArray[np.float64] = np.cos(np.pi * (n + 0.5) * k / size) * (2 / size) ** 0.5
    basis[0] *= 0.5**0.5
    return basis
