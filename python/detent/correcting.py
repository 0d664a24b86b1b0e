"""Biases corrected on data, behind a plan: the step between planning and applying."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Final

from detent._arguments import check_plan_is_of, expect
from detent.config import QuantizationConfig
from detent.corrections import correct_sequentially, output_error
from detent.errors import CalibrationError, ConfigError
from detent.graph import Graph
from detent.graph.biases import correctable_layers
from detent.graph.placement import place
from detent.quantized import assemble
from detent.records.plan import QuantPlan
from detent.statistics import first_samples, progress_bar
from detent.targets import load_target

__all__ = ["correct_as_asked", "correct_biases", "samples_held"]

_MOST_BYTES: Final = 512 << 20
"""Memory of one value of all samples that biases are corrected with."""


def correct_biases(graph: Graph, plan: QuantPlan, data: Any, *, samples: int = 256, progress: bool = True) -> QuantPlan:
    """A plan whose biases make up for quantization, layer by layer behind quantized and corrected predecessors.

    Runs the float and the quantized network once over the samples, with the corrections that the plan has, and adds to
    them. The last quarter of the samples judges: a layer's correction that does not help there is left out, and so are
    all of them if they bring the outputs of the network no closer to float. Notes name what was left out. Layers whose
    kernel is frozen stay as they are.

    Args:
        graph: the captured network.
        plan: made for it.
        data: calibration batches in any form `calibrate` takes.
        samples: how many of them to use at most, from the beginning; fewer where the values of a layer would take more
            than 512 MB, since those of all samples are held at once.
        progress: show a progress bar, if the error output is a terminal.

    Raises:
        CalibrationError: there are fewer than two samples, or they do not fit the model.
        ConfigError: the plan is not for this graph.
    """
    expect(graph, Graph, "graph", "detent.capture")
    check_plan_is_of(plan, graph.fingerprint(), "plan")
    if type(samples) is not int or samples < 1:
        raise ConfigError(f"`samples` must be a whole number from 1, got {samples!r}")
    batches = first_samples(graph, data, min(samples, samples_held(graph)), parts=4)
    if len(batches) < 2:
        raise CalibrationError(
            "the samples make one batch, which cannot be split into some to correct for and some to judge by",
            remedy=f"give at least {_least_samples(graph)} samples, or use analytic bias correction",
        )
    placement = place(graph, load_target(plan.target))
    layers = [
        name for name, point in correctable_layers(graph, placement).items() if not plan.weights[point.layer].frozen
    ]
    held_out = max(1, len(batches) // 4)
    quantized = assemble(graph, plan).graph_module
    with progress_bar("correcting biases", "layers", len(layers), wanted=progress) as show:
        found = correct_sequentially(graph, quantized, layers, batches, held_out, show)
    if not found.corrections:
        return replace(plan, notes=tuple(dict.fromkeys([*plan.notes, *found.notes])))
    added = {name: one.added_to(plan.bias_corrections.get(name)) for name, one in found.corrections.items()}
    corrected, notes = replace(plan, bias_corrections={**plan.bias_corrections, **added}), found.notes
    without = output_error([(wanted, before) for wanted, before, _ in found.outputs])
    with_ = output_error([(wanted, after) for wanted, _, after in found.outputs])
    if not with_ < without:
        corrected = plan
        notes = [
            "sequential bias correction brought the outputs on held-out samples no closer to float "
            f"(squared error {with_:.3g}, {without:.3g} without) and was left out"
        ]
    return replace(corrected, notes=tuple(dict.fromkeys([*plan.notes, *notes])))


def correct_as_asked(
    graph: Graph, plan: QuantPlan, data: Any, config: QuantizationConfig, *, progress: bool
) -> QuantPlan:
    """`correct_biases` by the options; where nobody asked for it, too few samples are a note and no error."""
    least = _least_samples(graph)
    if config.bias_correction == "auto" and plan.samples < least:
        note = f"biases were corrected by means only: what is left is measured on {least} samples or more"
        return replace(plan, notes=(*plan.notes, note))
    return correct_biases(graph, plan, data, samples=config.bias_correction_samples, progress=progress)


def _least_samples(graph: Graph) -> int:
    """As many as make two batches."""
    return 2 if graph.batch.dynamic else 2 * graph.batch.size


def samples_held(graph: Graph) -> int:
    """How many samples the largest value is held of, at least 16."""
    sizes = [math.prod(node.shape) // node.samples for node in graph.nodes() if node.is_float and node.shape]
    return max(16, _MOST_BYTES // (4 * max(sizes, default=1) or 1))
