"""Hessian traces: diagonal entries of the Hessian at kernels and activations, from backward passes they all share.

With J the derivative of a sample's outputs by a tensor, the Hessian of half their squared change is J^T J, and
that of the divergence from the network's own prediction J^T (diag p - p p^T) J (Gauss-Newton; label-free, as the
network itself is the reference, where no other terms are left).
Both are J^T A A^T J, and for a direction d of the outputs with E[d d^T] = 1 the squares of the gradient J^T A d are the
diagonal entries on average (Hutchinson 1989; Martens, Sutskever and Swersky 2012, arXiv:1206.6464, by backward passes).
One backward pass serves all tensors, and entries cannot come out negative.

Figures are means over samples of a single sample's Hessian. Outputs count relative to their energy, those of a network
with several alike, so that a trace times the squared size of a random error is the expected relative change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, repeat
from typing import get_args

import numpy as np
import torch
from torch import fx

from detent._registry import unknown_name
from detent.errors import CalibrationError, ConfigError
from detent.graph import Graph
from detent.graph.executor import Executor
from detent.graph.placement import Placement
from detent.graph.side_by_side import sharing_cores
from detent.records.statistics import Statistics
from detent.records.traces import HessianTraces
from detent.sensitivity.directions import MOST_ORTHOGONAL, Loss, fisher
from detent.sensitivity.squares import Found, Squares, Traced, traced_kernels, traced_values
from detent.sensitivity.units import Batch, detached, draw, float_outputs, samples_in, split

__all__ = ["estimate_traces"]


def estimate_traces(
    graph: Graph,
    placement: Placement,
    batches: Sequence[Batch],
    *,
    values: Sequence[str] | None = None,
    kernels: Sequence[str] | None = None,
    stats: Statistics | None = None,
    probes: int = 8,
    tolerance: float = 1e-2,
    most_probes: int = 128,
    loss: Loss = "outputs",
    seed: int = 0,
    show: Callable[[int], None] = lambda done: None,
) -> HessianTraces:
    """Estimate the diagonals and traces of the Hessians of kernels and activations.

    Directions are added until the standard error that they cause is at most `tolerance` of each trace. How much a trace
    changed with the last of them is no measure: it falls with their number, however far off the trace is.

    Args:
        graph: the float network.
        placement: where its grids go.
        batches: inputs.
        values: activations wanted; None for all computed ones that have a grid.
        kernels: layers whose kernels are wanted; None for all that have a grid.
        stats: histograms in whose bins the elements of activations are told apart, for scores of thresholds. Elements
            outside of them count in the last bin.
        probes: directions for each sample to begin with, 2 or more.
        tolerance: of the relative standard error.
        most_probes: directions for each sample at most; no more are used than it has outputs.
        loss: `"outputs"` for J^T J, `"fisher"` for J^T (diag p - p p^T) J with outputs taken for logits.
        seed: of the directions.
        show: told how many backward passes are done, after each sample.

    Raises:
        CalibrationError: a gradient, a value or an output is not finite; names the layer.
        ConfigError: a bad argument, statistics of another network, or no output has a gradient.
    """
    _check(batches, probes, tolerance, most_probes, loss, seed)
    if stats is not None and stats.fingerprint != graph.fingerprint():
        raise ConfigError("the statistics belong to another network")
    tensors = [*traced_kernels(graph, placement, kernels), *traced_values(graph, placement, values, stats)]
    if not tensors:
        raise ConfigError("there is no kernel and no activation whose trace could be estimated")
    with torch.inference_mode(False):  # in which a caller may be, and which knows no gradients
        run = _Run(graph, tensors, split(graph, batches), loss, seed)
    with sharing_cores(run.workers, "detent-trace") as pool:
        run.weigh_outputs(pool)
        limit = min(most_probes, run.most_useful)
        stop = min(probes, limit)
        run.add(pool, stop, show)
        while stop < limit and (worst := max(found.relative_error for found in run.found)) > tolerance:
            # Errors fall with the root of the number; early ones are too rough to be trusted far.
            needed = int(stop * (worst / tolerance) ** 2) + 1
            stop = min(limit, 2 * stop, max(stop + 2, needed))
            run.add(pool, stop, show)
    return _record(run, loss, stop, tolerance)


def _record(run: _Run, loss: Loss, probes: int, tolerance: float) -> HessianTraces:
    late = [found for found in run.found if not found.relative_error <= tolerance]
    names = ", ".join(f"{found.traced.name} ({found.traced.role}, {found.relative_error:.1%})" for found in late)
    note = f"traces not within {tolerance:.1%} after {probes} directions for each sample: {names}"
    return HessianTraces(
        tensors=tuple(found.tensor() for found in run.found),
        method=f"hutchinson of {loss}",
        samples=run.samples,
        probes=probes,
        tolerance=tolerance,
        fingerprint=run.graph.fingerprint(),
        notes=(note,) if late else (),
    )


@dataclass(frozen=True)
class _Outputs:
    """The outputs of a unit: their elements in all, and the energy of each output."""

    size: int
    energies: tuple[float, ...]


class _Run:
    """The network made ready for gradients at all wanted tensors, and what was found so far."""

    def __init__(self, graph: Graph, tensors: Sequence[Traced], units: Sequence[Batch], loss: Loss, seed: int) -> None:
        self.graph = graph
        self._units = units
        self._loss = loss
        self._seed = seed
        self._tensors = tensors
        self._outputs = float_outputs(graph)
        self._watched = list(dict.fromkeys([*self._outputs, *(node for traced in tensors for node in traced.nodes)]))
        # A kernel may be applied to a constant, to numbers of positions say; its gradient is wanted all the same.
        kernels = [node for traced in tensors if traced.role == "weights" for node in traced.nodes]
        layers = [layer for node in kernels for layer in node.users]
        self._executor = Executor(graph.module, self._watched, graph.name_of, gradients=True, anew=layers)
        self._stored: dict[fx.Node, torch.Tensor] = {}
        self._executor.show_constants(self._store)
        counts = [samples_in(graph, unit) for unit in units]
        self.samples = sum(counts)
        self.found = [Found(traced, counts) for traced in tensors]
        self._weights: dict[fx.Node, float] = {}
        self._done = 0
        self.most_useful = 0

    @property
    def workers(self) -> int:
        """Units at the same time, a thread for each: torch rounds differently where several threads share a product."""
        # Operators that draw random numbers would draw others if two units ran at the same time.
        return 1 if self._executor.draws_random_numbers else torch.get_num_threads()

    def _store(self, index: int, value: torch.Tensor) -> None:
        # The executor's own tensors, that share memory with the user's: those must not begin to require gradients.
        self._stored[self._watched[index]] = value.requires_grad_()

    def weigh_outputs(self, pool: ThreadPoolExecutor) -> None:
        """Run all units, and decide by what outputs are multiplied and how many directions are of use."""
        seen = list(pool.map(self._look, self._units))
        energies = np.sum([one.energies for one in seen], axis=0) / self.samples
        if self._loss == "fisher":
            energies = np.ones_like(energies) / len(energies)
        if not energies.any():
            raise CalibrationError("the outputs are zero for all samples", remedy="estimate on other samples")
        for node, energy in zip(self._outputs, energies, strict=True):
            self._weights[node] = float((len(energies) * energy) ** -0.5) if energy > 0 else 0.0
        least = min(one.size for one in seen)
        self.most_useful = least if least <= MOST_ORTHOGONAL else np.iinfo(np.int64).max
        for found in self.found:
            found.sizes = [one.size for one in seen]

    def _look(self, unit: Batch) -> _Outputs:
        size, energies = 0, dict.fromkeys(self._outputs, 0.0)
        for index, value in self._executor.walk(detached(unit)):
            node = self._watched[index]
            if node in energies:
                size += value.numel()
                energies[node] = float(np.square(value.detach().numpy(), dtype=np.float64).sum())
                if not np.isfinite(energies[node]):
                    raise CalibrationError("the output holds NaN or infinity", where=self.graph.name_of(node))
        return _Outputs(size, tuple(energies.values()))

    def add(self, pool: ThreadPoolExecutor, stop: int, show: Callable[[int], None]) -> None:
        """Go on to as many directions in all."""
        start = self.found[0].probes
        # Results are added in the order of units, whichever was done first.
        for number, parts in enumerate(pool.map(self._measure, self._units, count(), repeat(start), repeat(stop))):
            for found, squares in zip(self.found, parts, strict=True):
                found.add(number, squares)
            self._done += stop - start
            show(self._done)

    def _measure(self, unit: Batch, number: int, start: int, stop: int) -> list[Squares]:
        """Run a unit forward once and backward along each direction."""
        known: dict[fx.Node, torch.Tensor] = {}
        for index, value in self._executor.walk(detached(unit)):
            known[self._watched[index]] = value if value.requires_grad else value.requires_grad_()
        outputs = [known[node] for node in self._outputs]
        known |= self._stored
        squares = [Squares(traced, known) for traced in self._tensors]
        places = list(known)
        directions = self._draw(known, number, start, stop)
        for place, direction in enumerate(directions):
            gradients = self._backward(outputs, [known[node] for node in places], direction, place + 1 < stop - start)
            by_node = dict(zip(places, gradients, strict=True))
            for one in squares:
                one.take(by_node)
        for one in squares:
            one.finish()
        return squares

    def _draw(
        self, known: Mapping[fx.Node, torch.Tensor], number: int, start: int, stop: int
    ) -> list[list[torch.Tensor]]:
        """Directions of the outputs together, cut into one tensor for each output."""
        values = [known[node].detach() for node in self._outputs]
        together = draw(sum(value.numel() for value in values), start, stop, [self._seed, number])
        ends = np.cumsum([value.numel() for value in values])[:-1]
        parts = []
        for node, value, flat in zip(self._outputs, values, np.split(together, ends, axis=1), strict=True):
            part = flat.reshape(-1, *value.shape)
            if self._loss == "fisher":
                part = fisher(torch.softmax(value.float(), dim=-1).numpy(), part)
            parts.append((torch.from_numpy(np.ascontiguousarray(part)) * self._weights[node]).to(value.dtype))
        return [list(direction) for direction in zip(*parts, strict=True)]

    def _backward(
        self, outputs: list[torch.Tensor], places: list[torch.Tensor], direction: list[torch.Tensor], keep: bool
    ) -> Sequence[torch.Tensor | None]:
        try:
            return torch.autograd.grad(outputs, places, direction, retain_graph=keep, allow_unused=True)
        except (RuntimeError, NotImplementedError) as error:
            raise ConfigError(f"the network cannot be differentiated: {error}") from error


def _check(batches: Sequence[Batch], probes: int, tolerance: float, most_probes: int, loss: str, seed: int) -> None:
    if not batches:
        raise ConfigError("there are no batches to estimate traces on")
    if type(probes) is not int or probes < 2:
        raise ConfigError(f"`probes` must be a whole number from 2, got {probes!r}", remedy="one tells no error")
    if type(most_probes) is not int or most_probes < probes:
        raise ConfigError(f"`most_probes` must be a whole number from `probes` = {probes}, got {most_probes!r}")
    if not 0 < tolerance < float("inf"):
        raise ConfigError(f"`tolerance` must be a positive number, got {tolerance!r}")
    if type(seed) is not int or seed < 0:
        raise ConfigError(f"`seed` must be a whole number from 0, got {seed!r}")
    if loss not in get_args(Loss):
        raise unknown_name("loss", loss, get_args(Loss))
