"""Bias correction from saved statistics: no data, no forward pass.

Rounding a kernel by E = Q(W) - W moves the mean of an output channel by E times the mean of the layer's input; clipping
and rounding the input move it by Q(W) times the shift of the input's mean. Both are known from the statistics
(Nagel et al. 2019, arXiv:1906.04721, section 4.2; here with the means of the data instead of those of batch norms).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from detent.graph import Graph, GraphNode
from detent.graph.biases import bias_input, correctable_layers, has_means_of_inputs
from detent.graph.patches import kernel_rows
from detent.graph.placement import Placement
from detent.graph.roles import argument
from detent.graph.shifts import COMPENSATED
from detent.records.correction import BiasCorrection
from detent.records.grid import Grid
from detent.records.moments import InputMoments
from detent.records.plan import TensorPlan, grid_of
from detent.records.statistics import Statistics, TensorStatistics

__all__ = ["correct_analytically"]

Vector = npt.NDArray[np.float64]


def correct_analytically(
    graph: Graph,
    placement: Placement,
    statistics: Statistics,
    moments: InputMoments | None,
    activations: Mapping[str, TensorPlan],
    weights: Mapping[str, TensorPlan],
    *,
    kernels: bool = True,
    inputs_from: float | None = None,
) -> tuple[dict[str, BiasCorrection], list[str]]:
    """The correction of every layer with a quantized kernel that is not frozen, and a note for each that has none.

    The means per channel of the statistics serve, which see all samples and positions. Layers that pad their input take
    those of the moments if there are any, since these see the padding too; without moments padding is taken for part of
    the data, and at the border the mean is smaller than assumed.

    Args:
        graph: the captured network.
        placement: where its grids go.
        statistics: with the per-channel means of the layers' inputs.
        moments: of the layers' inputs, where they were collected.
        activations: grids of the activations.
        weights: grids of the kernels.
        kernels: correct for the rounding of the kernels.
        inputs_from: also correct for the shift of an input's mean by its own quantization, estimated on its histogram,
            where it is at least so many per cent of the mean; None does not.
    """
    corrections, notes = {}, []
    for name, point in correctable_layers(graph, placement).items():
        layer, entry = graph.find(name), weights[point.layer]
        if entry.grid is None or entry.frozen:
            continue
        assert layer.weight is not None
        kernel = graph.tensor(layer.weight).detach().cpu().contiguous().numpy()
        codes = entry.rounded(kernel)
        shifts = []
        if kernels:
            shift = _of_kernel(graph, layer, codes - kernel, statistics, moments)
            if shift is None:
                source = graph.name_of(bias_input(graph, layer))
                notes.append(f"{name}: bias not corrected, nothing holds the means of its input {source}")
                continue
            shifts.append(shift)
        value = point.inputs[point.users.index(name)]
        if inputs_from is not None and value is not None and value in statistics:
            moved = _mean_shift(statistics[value], grid_of(activations, value))
            if 100 * abs(moved) >= inputs_from * abs(statistics[value].mean):
                shifts.append(_moved(layer, codes, np.full(_inputs(layer, kernel), moved)))
        if shifts:
            corrections[name] = BiasCorrection(shift=-np.sum(shifts, axis=0).astype(np.float32), method="analytic")
    return corrections, notes


def _of_kernel(
    graph: Graph,
    layer: GraphNode,
    error: npt.NDArray[np.float32],
    statistics: Statistics,
    moments: InputMoments | None,
) -> Vector | None:
    """How far the mean of a layer's output moves by an error of its kernel: float64 `[C_out]`, None if unknown."""
    observed = statistics.tensors.get(graph.name_of(bias_input(graph, layer)))
    mean = None if observed is None or not has_means_of_inputs(graph, layer) else observed.channel_mean
    if moments is not None and layer.name in moments and (mean is None or _meets_a_border(layer)):
        return moments[layer.name].mean_of(kernel_rows(layer, error)).reshape(-1)
    if mean is None:
        return None
    # What a rewrite added to the input is taken back exactly when the plan is applied.
    return _moved(layer, error, np.asarray(mean, np.float64) - layer.node.meta.get(COMPENSATED, 0.0))


def _meets_a_border(layer: GraphNode) -> bool:
    """Whether some outputs meet fewer elements of the input than others."""
    if layer.kind != "conv":
        return layer.kind == "conv_transposed"
    padding = argument(layer.node, "padding")
    return padding != "valid" if isinstance(padding, str) else bool(np.any(padding))


def _inputs(layer: GraphNode, kernel: npt.NDArray[np.float32]) -> int:
    """Channels of a layer's input."""
    inputs = kernel.shape[0] if layer.kind == "conv_transposed" else kernel.shape[1] * layer.groups
    return int(inputs)


def _moved(layer: GraphNode, kernel: npt.NDArray[np.float32], mean: Vector) -> Vector:
    """Mean of the layer's output, without bias, for an input that is `mean` `[C_in]` everywhere: float64 `[C_out]`."""
    wide = kernel.astype(np.float64)
    if layer.kind == "linear":
        return np.asarray(wide @ mean)
    taps = wide.reshape(*kernel.shape[:2], -1).sum(axis=2)
    if layer.kind == "conv":
        # [C_out, C_in / groups]; output channels of a group are neighbours, and so are its input channels.
        split = taps.reshape(layer.groups, -1, taps.shape[1])
        return np.asarray(np.einsum("goi,gi->go", split, mean.reshape(layer.groups, -1)).reshape(-1))
    # [C_in, C_out / groups]: each output position meets one tap in every stride along each axis.
    split = taps.reshape(layer.groups, -1, taps.shape[1])
    stride = argument(layer.node, "stride")
    steps = [stride] * (kernel.ndim - 2) if isinstance(stride, int) else list(stride)
    steps = steps * (kernel.ndim - 2) if len(steps) == 1 else steps
    outputs = np.einsum("gio,gi->go", split, mean.reshape(layer.groups, -1)).reshape(-1)
    return np.asarray(outputs / float(np.prod(steps)))


def _mean_shift(observed: TensorStatistics, grid: Grid | None) -> float:
    """How far quantization moves the mean of a value, estimated at the centres of its histogram's bins."""
    if grid is None or not observed.count or grid.axis is not None:  # the histogram does not tell channels apart
        return 0.0
    centres = (observed.first_bin + np.arange(len(observed.counts)) + 0.5) * observed.width
    scale, zero = float(grid.scale[0]), int(grid.zero_point[0])
    values = (np.clip(np.rint(centres / scale) + zero, grid.qmin, grid.qmax) - zero) * scale
    # Exact zeros stay zeros; the rest of their bin counts at its centre.
    moved = values - centres
    at_zero = -observed.first_bin
    total = float(np.dot(moved, observed.counts))
    if 0 <= at_zero < len(centres):
        total -= float(moved[at_zero]) * observed.zeros
    return total / observed.count
