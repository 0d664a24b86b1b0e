"""HAWQ scores: the mean curvature of a tensor times the squared size of what a width changes in it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from detent.errors import ConfigError
from detent.records.grid import Grid
from detent.records.sensitivity import SensitivityTable, TensorSensitivity
from detent.records.traces import HessianTraces, TensorTrace
from detent.sensitivity.candidates import Candidates, Slot

__all__ = ["hawq_scores"]

Doubles = npt.NDArray[np.float64]


def hawq_scores(traces: HessianTraces, candidates: Candidates) -> SensitivityTable:
    """Score every candidate width by Omega of HAWQ-V2 (Dong et al. 2020, arXiv:1911.03852, section 3).

    Omega is the mean of the Hessian's diagonal times the squared norm of Q(x) - x. It is what the outputs lose if
    errors are spread over the elements regardless of the diagonal and have random signs; corrections of biases, and how
    errors of different tensors add up or cancel, are not seen. The error of an activation is that of its histogram's
    bins.

    Args:
        traces: of the graph, with bins (`stats=...`) if activations have a choice.
        candidates: of the same graph.

    Raises:
        ConfigError: a tensor has no trace, or an activation no bins, or a step for each channel.
    """
    return SensitivityTable(
        tensors=tuple(_sensitivity(slot, traces) for slot in candidates.slots),
        method=f"hawq, {traces.method}",
        samples=traces.samples,
        probes=traces.probes,
        fingerprint=traces.fingerprint,
    )


def _sensitivity(slot: Slot, traces: HessianTraces) -> TensorSensitivity:
    scores, variances = np.zeros(len(slot.bits)), np.zeros(len(slot.bits))
    if slot.role == "weights":
        parts = [(traces.find(slot.name, "weights"), _kernel_energies(slot))]
    else:
        found = [(traces.find(name, "activations"), grids) for name, grids in slot.grids.items()]
        parts = [(trace, np.array([_energy(trace, grid, traces.samples) for grid in grids])) for trace, grids in found]
    for trace, energies in parts:
        scores += trace.mean * energies
        variances += np.square(trace.sample_error / trace.size * energies)
    return TensorSensitivity(
        name=slot.name,
        role=slot.role,
        members=slot.members,
        bits=slot.bits,
        scores=scores,
        errors=np.sqrt(variances),
        factors=np.zeros((len(slot.bits), 0), np.float32),
    )


def _kernel_energies(slot: Slot) -> Doubles:
    return np.array([np.square(change.kernel.numpy(), dtype=np.float64).sum() for change in slot.changes])


def _energy(trace: TensorTrace, grid: Grid, samples: int) -> float:
    """Squared size of a grid's errors in one sample of an activation."""
    if trace.bins is None:
        raise ConfigError(
            "its elements were not told apart by value", where=trace.name, remedy="estimate the traces with stats=..."
        )
    if grid.table is None and len(grid.scale) > 1:
        raise ConfigError(
            "an activation with a step for each channel has no HAWQ score", where=trace.name, remedy="score by probes"
        )
    centres = trace.bins.centres.astype(np.float32)
    errors = (grid.round(centres) - centres).astype(np.float64)
    return float(trace.bins.counts @ np.square(errors)) / samples
