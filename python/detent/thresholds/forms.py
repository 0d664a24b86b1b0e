"""Kind, width and metric of the grids that are asked for, and what a target does not offer of it."""

from __future__ import annotations

from detent.config import QuantizationConfig
from detent.graph import Graph
from detent.graph.placement import Placement, WeightPoint
from detent.graph.tensors import read_tensor
from detent.records.choice import TensorChoice
from detent.records.choices import Choices
from detent.targets import Target
from detent.thresholds.kernel_grids import group_size_of

__all__ = ["for_kernel", "form_of_kernel", "forms_wanted", "refuse_unoffered"]


def refuse_unoffered(
    graph: Graph, placement: Placement, target: Target, config: QuantizationConfig, choices: Choices
) -> None:
    """Refuse widths, kinds of grids and group sizes that a target does not offer, before any data are read.

    Raises:
        ConfigError: names the layer and what is offered.
    """
    for value, activation in placement.activations.items():
        choice = choices.of_activation(value)
        if not (choice.keep_float or choice.grid is not None or choice.bits):
            activation.rule.choose_bits(config.activation_bits, what="activations", target=target.name)
    for layer, point in placement.weights.items():
        choice = choices.of_weights(layer)
        if layer in choices.kept_weights or choice.keep_float or choice.grid is not None:
            continue
        wanted = for_kernel(config, choice)
        kind, _ = form_of_kernel(point, wanted, target)
        if kind != "lut":
            shape = tuple(read_tensor(graph.module, point.parameter).shape)
            group_size_of(point, shape, wanted.weights_group_size, target.name)
        elif wanted.codebook_scope == "channel":
            point.rule.require_codebook_per_channel(where=layer, target=target.name)


def forms_wanted(
    placement: Placement, target: Target, config: QuantizationConfig, choices: Choices
) -> tuple[list[int], list[tuple[int, str]]]:
    """The code widths of the activations that are to be quantized, and those of the kernels with their metrics.

    Raises:
        ConfigError: the target does not offer the requested grid or width.
    """
    activations, kernels = [], []
    for value, activation in placement.activations.items():
        choice = choices.of_activation(value)
        if choice.grid is not None:
            activations.append(choice.grid.bits)
        elif not choice.keep_float:
            usual = activation.rule.choose_bits(config.activation_bits, what="activations", target=target.name)
            activations.append(choice.bits or usual)
    for layer, point in placement.weights.items():
        choice = choices.of_weights(layer)
        if choice.grid is not None:
            kernels.append((choice.grid.bits, "by hand"))
        elif not choice.keep_float:
            wanted = for_kernel(config, choice)
            bits = form_of_kernel(point, wanted, target)[1]
            kernels.append((bits, wanted.metric_of_kernel(bits)))
    return activations, kernels


def form_of_kernel(point: WeightPoint, config: QuantizationConfig, target: Target) -> tuple[str, int]:
    """Kind of grid and code width."""
    kind = _kind_of(config) or point.rule.kind
    point.rule.require_kind(kind, where=point.layer, target=target.name)
    what = "codebooks" if kind == "lut" else "weights"
    bits = point.rule.choose_bits(config.weights_bits, what=what, target=target.name, kind=kind, where=point.layer)
    return kind, bits


def for_kernel(config: QuantizationConfig, choice: TensorChoice) -> QuantizationConfig:
    """The configuration as it is for a kernel of which something is asked."""
    asked = {
        "weights_bits": choice.bits,
        "weights_grid": choice.kind,
        "weights_metric": choice.metric,
        "weights_group_size": choice.group_size,
        "p": choice.p,
    }
    return config.model_copy(update={name: value for name, value in asked.items() if value is not None})


def _kind_of(config: QuantizationConfig) -> str | None:
    """The kind of kernel grids asked for; codebooks are one kind, whatever their thresholds."""
    return "lut" if config.weights_grid == "lut_power_of_two" else config.weights_grid
