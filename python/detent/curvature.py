"""Hessian traces from data: how sharply the loss bends in every kernel and activation. Comes before planning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detent._arguments import expect, fingerprint_of
from detent.config import QuantizationConfig
from detent.graph import Graph
from detent.graph.policy import place_as_asked
from detent.records.statistics import Statistics
from detent.records.traces import HessianTraces
from detent.sensitivity import Loss
from detent.sensitivity import estimate_traces as estimate
from detent.statistics import first_samples, progress_bar
from detent.targets import Target, load_target

__all__ = ["estimate_traces"]


def estimate_traces(
    graph: Graph,
    data: Any,
    *,
    stats: Statistics | None = None,
    target: str | Path | Target = "default",
    config: QuantizationConfig | Mapping[str, Any] | None = None,
    samples: int = 32,
    probes: int = 8,
    tolerance: float = 0.01,
    most_probes: int = 128,
    loss: Loss = "outputs",
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> HessianTraces:
    """Estimate the diagonals and traces of the Hessians of all kernels and activations that the target quantizes.

    Give them to `detent.plan` as `hessians`, for the metric `"hmse"`. (Hutchinson 1989; the form of Martens, Sutskever
    and Swersky 2012, arXiv:1206.6464.)

    Args:
        graph: the captured network.
        data: calibration batches in any form `detent.calibrate` takes.
        stats: what calibration saw of the graph. Activations are then told apart by value, in the bins of their
            histograms, which `activation_metric="hmse"` needs; those without statistics have no trace. None leaves the
            bins out and estimates all activations.
        target: name of a built-in target or path of a target file: which tensors have a grid.
        config: options; single ones can be given by keyword and take precedence.
        samples: how many of the data to use, from the beginning.
        probes: directions of the outputs for each sample to begin with, 2 or more; each costs a backward pass.
        tolerance: relative standard error wanted of each trace; directions are added until it is reached.
        most_probes: directions for each sample at most; no more are used than a sample has outputs. Traces that are
            not within the tolerance then are named in the notes.
        loss: `"outputs"` for the squared change of the outputs relative to their energy, `"fisher"` for the divergence
            of a classifier's prediction (outputs are logits).
        seed: of the directions.
        progress: show progress on a terminal.
        **options: fields of `QuantizationConfig`.

    Raises:
        CalibrationError: the data do not fit the model, or a gradient, a value or an output is not finite.
        ConfigError: a bad argument, statistics of another model, or no output carries a gradient.
    """
    expect(graph, Graph, "graph", "detent.capture")
    if stats is not None:
        fingerprint_of(graph, stats)
    placement = place_as_asked(graph, load_target(target), QuantizationConfig.resolve(config, options))
    values = [
        name for name, point in placement.activations.items() if not point.constant and (stats is None or name in stats)
    ]
    batches = first_samples(graph, data, samples, parts=1)
    with progress_bar("estimating traces", "backward passes", None, wanted=progress) as show:
        return estimate(
            graph,
            placement,
            batches,
            values=values,
            stats=stats,
            probes=probes,
            tolerance=tolerance,
            most_probes=most_probes,
            loss=loss,
            seed=seed,
            show=show,
        )
