"""Gains: each output channel of a kernel times a number, so that its rounded form does the float form's work best.

Rounding to few bits leaves an output channel too large or too small on the data it sees. Its codes stay; its step takes
the factor, so the correction costs a device nothing. Two rules, both from the moments of the layer's input patches with
matrix G, for a row w and its rounded form q:

* least squares, a = (w G q) / (q G q): the layer's output loses least (the closed-form scale of OBQ-like methods,
  here with the codes kept);
* second moment, a = sqrt((w G w) / (q G q)): the output keeps its variance, which is what batch-norm reconstruction
  reaches by running the network (Nagel et al. 2021, arXiv:2106.08295, section 3.3, names its causes).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from detent.graph import Graph
from detent.graph.patches import kernel_rows, sum_by_step
from detent.graph.placement import Placement, WeightPoint
from detent.graph.tensors import read_tensor
from detent.records.grid import Grid
from detent.records.grid_values import scaled
from detent.records.moments import InputMoments
from detent.records.plan import TensorPlan

__all__ = ["GainRule", "correct_gains"]

GainRule = Literal["least_squares", "second_moment"]

_LARGEST: Final = 2.0
"""Gains beyond this factor, up or down, would come from channels that the data hardly reach."""

Vector = npt.NDArray[np.float64]


def correct_gains(
    graph: Graph,
    placement: Placement,
    moments: InputMoments | None,
    weights: Mapping[str, TensorPlan],
    rules: Mapping[str, GainRule | Literal["none"]],
    *,
    central: Collection[str],
) -> tuple[dict[str, TensorPlan], list[str]]:
    """The kernel entries with gains, and notes on those that have none though they should.

    Args:
        graph: the captured network.
        placement: where its grids go.
        moments: of the layers' inputs; None corrects nothing.
        weights: grids of the kernels; the limits of a grid are multiplied by its gains.
        rules: how the gains of a layer's kernel are chosen, layers left out have none.
        central: layers whose means are corrected through biases, so that only deviations from them count.
    """
    corrected = dict(weights)
    lacking, powers = [], []
    for layer, rule in rules.items():
        entry = weights[layer]
        if entry.grid is None or rule == "none":
            continue
        if moments is None or layer not in moments:
            lacking.append(layer)
        elif entry.grid.keeps_powers_of_two:
            powers.append(layer)
        else:
            gains = _gains(graph, placement.weights[layer], entry.grid, moments, rule, layer in central)
            corrected[layer] = replace(entry, grid=scaled(entry.grid, gains), gain=gains.astype(np.float32))
    notes = [f"without moments of their inputs, kernels of {', '.join(lacking)} have no gains"] if lacking else []
    if powers:
        notes.append(f"kernels of {', '.join(powers)} have no gains, their thresholds must stay powers of two")
    return corrected, notes


def _gains(
    graph: Graph, point: WeightPoint, grid: Grid, moments: InputMoments, rule: GainRule, central: bool
) -> Vector:
    """The gain of each channel of the grid, or of the whole kernel if it has one step."""
    node = graph.find(point.layer)
    kernel = read_tensor(graph.module, point.parameter).detach().contiguous().numpy()
    wanted, rounded = (kernel_rows(node, k) for k in (kernel, grid.round(kernel)))
    forms = moments.forms(point.users, central=central)
    pairs = (rounded if rule == "least_squares" else wanted, wanted), (rounded, rounded)
    # What shares a step shares a gain.
    above, below = (sum_by_step(node, forms.of(a, b), one_step=grid.axis is None) for a, b in pairs)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = above / below
        gains = ratio if rule == "least_squares" else np.sqrt(ratio)
    usable = np.isfinite(gains) & (gains > 0)
    return np.clip(np.where(usable, gains, 1.0), 1 / _LARGEST, _LARGEST)
