"""Kernel thresholds by what the layer's output loses, instead of by what its weights lose.

For an error E of a kernel row, the output is off by E G E^T on average, squared, with G the moments of the layer's
input patches. Starting from the limits that suit the weights alone, each channel's are multiplied by a factor: first
the same few for all channels, then finer ones around each channel's best. Rounding is to nearest throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from detent.graph import Graph
from detent.graph.patches import kernel_rows, sum_by_step
from detent.graph.placement import Placement, WeightPoint
from detent.graph.tensors import read_tensor
from detent.records.grid import Grid
from detent.records.grid_values import round_scaled, scaled
from detent.records.moments import InputMoments
from detent.records.plan import TensorPlan

__all__ = ["suit_outputs"]

_COARSE: Final = 0.5 * 1.05 ** np.arange(25)
"""Factors tried for all channels: 0.5 to 1.6 in steps of 5 per cent."""
_FINE: Final = 1.05 ** (np.array([-3, -2, -1, 1, 2, 3]) / 4)
"""Factors tried around the best of them, up to the next coarse one."""
_POWERS: Final = np.array([0.25, 0.5, 2.0, 4.0])
"""Factors for thresholds that must stay powers of two."""
_MOST_ELEMENTS: Final = 1 << 22
"""Rounded kernel elements held at once."""

Vector = npt.NDArray[np.float64]


def suit_outputs(
    graph: Graph,
    placement: Placement,
    moments: InputMoments | None,
    weights: Mapping[str, TensorPlan],
    pinned: Collection[str] = (),
    *,
    central: Collection[str],
) -> tuple[dict[str, TensorPlan], list[str]]:
    """The kernel entries with limits that suit the layers' outputs, and a note for each kernel left as it is.

    Only entries whose metric is `"output"` are searched; kernels of the layers in `pinned` stay as they are. A kernel
    with several users is judged by the inputs of all.

    Args:
        graph: the captured network.
        placement: where its grids go.
        moments: of the layers' inputs; None leaves all kernels as they are.
        weights: grids found by squared error of the weights; no channel ends with more error at the output than with
            these.
        pinned: layers whose kernels are not touched.
        central: layers whose means are corrected through biases, so that only deviations from them count.
    """
    suited, lacking = dict(weights), []
    for layer, point in placement.weights.items():
        grid = weights[layer].grid
        if grid is None or weights[layer].metric != "output" or layer in pinned:
            continue
        if moments is None or layer not in moments:
            lacking.append(layer)
            suited[layer] = replace(weights[layer], metric="mse")
            continue
        channels = 1 if grid.axis is None else read_tensor(graph.module, point.parameter).shape[grid.axis]
        grid, error = _search(_loss(graph, point, grid, moments, layer in central), grid, channels)
        suited[layer] = replace(weights[layer], grid=grid, error=error, metric="output")
    notes = [f"without moments of their inputs, thresholds of {', '.join(lacking)} suit the weights only"]
    return suited, notes if lacking else []


def _loss(
    graph: Graph, point: WeightPoint, grid: Grid, moments: InputMoments, central: bool
) -> Callable[[Vector], Vector]:
    """A function that tells the mean squared error at the layer's output for multiples of the grid's limits.

    It takes factors `[candidates, channels]` and returns errors of that shape.
    """
    node = graph.find(point.layer)
    kernel = read_tensor(graph.module, point.parameter).detach().contiguous().numpy()
    wanted = kernel_rows(node, kernel)
    forms = moments.forms(point.users, central=central)

    def loss(factors: Vector) -> Vector:
        at_once = max(1, _MOST_ELEMENTS // kernel.size)
        return np.concatenate([part(factors[i : i + at_once]) for i in range(0, len(factors), at_once)])

    def part(factors: Vector) -> Vector:
        rounded = round_scaled(grid, kernel, factors)
        groups, outputs, length = wanted.shape
        errors = np.empty((groups, len(factors), outputs, length), np.float32)
        for candidate, each in enumerate(rounded):
            np.subtract(kernel_rows(node, each), wanted, out=errors[:, candidate])
        found = forms.of(errors.reshape(groups, -1, length))
        by_candidate = found.reshape(groups, len(factors), outputs).transpose(1, 0, 2)
        # What shares limits is judged together.
        return sum_by_step(node, by_candidate, one_step=grid.axis is None)

    return loss


def _search(loss: Callable[[Vector], Vector], grid: Grid, channels: int) -> tuple[Grid, float]:
    best = np.ones(channels)
    least = loss(best[None])[0]

    def consider(factors: Vector) -> None:
        found = loss(factors)
        for errors, row in zip(found, factors, strict=True):
            better = errors < least
            least[better], best[better] = errors[better], row[better]

    if grid.keeps_powers_of_two:
        consider(np.repeat(_POWERS[:, None], channels, axis=1))
    else:
        consider(np.repeat(_COARSE[:, None], channels, axis=1))
        consider(_FINE[:, None] * best)
    return scaled(grid, best), float(least.mean())
