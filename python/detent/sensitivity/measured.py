"""Measured scores: what every candidate width of every tensor does to the network when all other tensors are float.

Each candidate is run, so that no derivative is needed and no order is left out, at the price of a forward pass of what
lies behind the tensor for each. The distance of values on the way, the points of interest, can count besides that of
the outputs. What a candidate cannot change is computed once for a batch and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from detent.config.mixed_precision import Distance, Weighting
from detent.errors import CalibrationError, ConfigError
from detent.graph import Graph
from detent.graph.placement import Placement
from detent.graph.side_by_side import sharing_cores, worker_count
from detent.records.finished import FinishedParts
from detent.records.plan import QuantPlan
from detent.records.sensitivity import SensitivityTable, TensorSensitivity
from detent.sensitivity.candidates import Candidates, Slot
from detent.sensitivity.distances import Metric, checked_distances, yardstick
from detent.sensitivity.downstream import Downstream, FloatValues, Network
from detent.sensitivity.interest import Interest, choose
from detent.sensitivity.units import samples_in

__all__ = ["points_of_interest", "score_by_measuring"]

Batches = Sequence[Sequence[torch.Tensor]]
Doubles = npt.NDArray[np.float64]
Values = Mapping[fx.Node, torch.Tensor]


def score_by_measuring(
    graph: Graph,
    placement: Placement,
    plans: Sequence[QuantPlan],
    batches: Batches,
    *,
    points: Sequence[str] | Literal["outputs"] | None = None,
    distances: Mapping[str, Distance] | None = None,
    metric: Metric | None = None,
    weighting: Weighting = "average",
    weights: Mapping[str, float] | None = None,
    show: Callable[[int], None] = lambda done: None,
    finished: FinishedParts | None = None,
) -> SensitivityTable:
    """Score every width that a tensor has in one of the plans by quantizing that tensor alone.

    A score is the weighted mean distance of the points of interest plus the mean distance of the outputs. If only the
    outputs are measured, it is their squared change relative to their energy, as probes estimate it.

    Args:
        graph: the float network.
        placement: where its grids go.
        plans: of this graph; every width of a tensor in any of them is a candidate, with the grid, gain and bias
            correction it has there.
        batches: inputs.
        points: names of the values of interest; None for those of convolutions, linear layers, sigmoids, softmaxes,
            sums and concatenations but for outputs; `"outputs"` for none.
        distances: what compares values, by the name or kind of the operation that makes them; all others, and
            `"kl"` without a softmax, are `"mse"`, relative to the value's energy. None for `USUAL_DISTANCES`.
        metric: compares all values instead; takes the float value and the changed one of a batch.
        weighting: of the points: all alike; the last alone; by their distance d, 1 - exp(-d / 0.1); or by `weights`.
        weights: of all points by name, for `"hessian"`.
        show: told how many batches are done.
        finished: batches that are done already, and what keeps the others as they are done.

    Raises:
        CalibrationError: a value is not finite; names the layer.
        ConfigError: nothing has a choice, nothing can be compared, options contradict each other, the network draws
            random numbers, or the metric returns something else than a number from 0.
    """
    interest = points_of_interest(
        graph, points=points, distances=distances, metric=metric, weighting=weighting, weights=weights
    )
    candidates = Candidates.of(graph, placement, plans)
    run = _Run(graph, candidates, interest, {} if points == "outputs" else checked_distances(distances), metric)
    found, sizes = run.measure(batches, show, finished or FinishedParts())
    tensors = tuple(
        # A metric speaks of whole batches: samples tell nothing of its spread.
        _sensitivity(slot, interest, one, sizes, errors=metric is None)
        for slot, one in zip(candidates.slots, found, strict=True)
    )
    name = "" if metric is None else f" by {getattr(metric, '__name__', 'a metric')}"
    return SensitivityTable(
        tensors=tensors,
        method=f"measuring {interest}{name}",
        samples=sizes.shape[1],
        probes=0,
        fingerprint=graph.fingerprint(),
    )


def points_of_interest(
    graph: Graph,
    *,
    points: Sequence[str] | Literal["outputs"] | None,
    distances: Mapping[str, Distance] | None,
    metric: Metric | None,
    weighting: Weighting,
    weights: Mapping[str, float] | None,
) -> Interest:
    """What `score_by_measuring` looks at with these arguments.

    Raises:
        ConfigError: they contradict each other, or there is nothing to compare.
    """
    if metric is not None and (distances is not None or not callable(metric)):
        raise ConfigError("`metric` must be a callable, and takes the place of `distances`")
    if points == "outputs" and distances is not None:
        raise ConfigError('`distances` are for points of interest; with points="outputs" give a `metric` or nothing')
    checked_distances(distances)
    return choose(graph, points, weighting, weights)


def _sensitivity(
    slot: Slot, interest: Interest, found: _Measured, sizes: Doubles, *, errors: bool
) -> TensorSensitivity:
    """From distances, and what they are relative to, `[items, samples]`."""
    items, samples = sizes.shape
    distances = np.zeros((len(slot.bits), items))
    distances[:, found.places] = found.lost.mean(axis=2)
    factors = interest.factors(distances, sizes.mean(axis=1))
    by_sample = np.einsum("wp,wps->ws", factors[:, found.places], found.lost)
    told = errors and samples > 1
    deviations = by_sample.std(axis=1, ddof=1) if told else np.full(len(by_sample), np.nan)
    return TensorSensitivity(
        name=slot.name,
        role=slot.role,
        members=slot.members,
        bits=slot.bits,
        scores=by_sample.mean(axis=1),
        errors=deviations / samples**0.5,
        factors=np.zeros((len(slot.bits), 0), np.float32),
    )


def _not_finite(slot: Slot, place: int, where: str, wanted: torch.Tensor) -> CalibrationError:
    if not bool(wanted.isfinite().all()):
        return CalibrationError("the value holds NaN or infinity", where=where)
    return CalibrationError(
        f"{slot.bits[place]} bits for the {slot.role} of {slot.name} make NaN or infinity of this value",
        where=where,
        remedy="look for square roots, logarithms or divisions at zero before this layer",
    )


def _check_draws(floats: FloatValues, batch: Sequence[torch.Tensor]) -> None:
    """Dropout that is switched off is among the operators that could draw random numbers, so the network is run."""
    before = torch.get_rng_state()
    floats(batch)
    if not torch.equal(torch.get_rng_state(), before):
        raise ConfigError(
            "the network draws random numbers, so that it cannot be told what one tensor changes",
            remedy="put the model in evaluation mode, or score by probes",
        )


class _Measured(NamedTuple):
    """Distances `[widths, places, samples]` of the items that a slot changes, and their places among the items."""

    places: list[int]
    lost: Doubles


class _Part(NamedTuple):
    """Candidates of a slot that run at once: their places among its widths, and what they change."""

    places: tuple[int, ...]
    network: Downstream


class _Run:
    """The network made ready to measure every candidate."""

    def __init__(
        self,
        graph: Graph,
        candidates: Candidates,
        interest: Interest,
        distances: Mapping[str, Distance],
        metric: Metric | None,
    ) -> None:
        self._graph = graph
        self._slots = candidates.slots
        self._users = [
            [graph.find(name) for name, of in candidates.users.items() if of == number]
            for number in range(len(candidates.slots))
        ]
        self._items = interest.items
        self._yardsticks = [yardstick(item, distances, metric) for item in interest.items]
        self._network = Network(graph, [item.node for item in interest.items])

    def measure(
        self, batches: Batches, show: Callable[[int], None], finished: FinishedParts
    ) -> tuple[list[_Measured], Doubles]:
        """Distances of every item by every candidate, and what they are relative to."""
        parts = self._parts(batches[0])
        sources = [source for several in parts for part in several for source in part.network.sources]
        floats = self._network.float_values(list(dict.fromkeys([*sources, *(item.node for item in self._items)])))
        if floats.executor.draws_random_numbers:
            _check_draws(floats, batches[0])
        sizes = [figures["sizes"] for figures in finished.parts]
        lost = [[figures[f"lost.{slot}"] for figures in finished.parts] for slot in range(len(self._slots))]
        if sizes:
            show(len(sizes))
        with sharing_cores(worker_count(), "detent-measure") as pool:
            for batch in batches[len(sizes) :]:
                samples = samples_in(self._graph, batch)
                values = floats(batch)
                sizes.append(self._sizes(values, samples))
                every = pool.map(self._lost, self._slots, parts, repeat(values), repeat(samples))
                for of_slot, one in zip(lost, every, strict=True):
                    of_slot.append(one)
                finished.add({"sizes": sizes[-1]} | {f"lost.{slot}": each[-1] for slot, each in enumerate(lost)})
                show(len(sizes))
        found = [
            _Measured(list(several[0].network.places), np.concatenate(each, axis=2))
            for several, each in zip(parts, lost, strict=True)
        ]
        return found, np.concatenate(sizes, axis=1)

    def _parts(self, batch: Sequence[torch.Tensor]) -> list[tuple[_Part, ...]]:
        stackable = self._network.stackable(batch)
        found = []
        for slot, users in zip(self._slots, self._users, strict=True):
            every = tuple(range(len(slot.bits)))
            together = self._network.can_stack(slot, users, stackable)
            groups = [every] if together else [(place,) for place in every]
            found.append(tuple(_Part(group, Downstream.of(self._network, slot, users, group)) for group in groups))
        return found

    def _sizes(self, values: Values, samples: int) -> Doubles:
        """What distances are relative to, `[items, samples]`."""
        sizes = np.array([stick.size(values[stick.item.node], samples) for stick in self._yardsticks])
        for item, of_item in zip(self._items, sizes, strict=True):
            if not np.isfinite(of_item).all():
                raise CalibrationError("the value holds NaN or infinity", where=item.name)
        return sizes

    def _lost(self, slot: Slot, parts: Sequence[_Part], values: Values, samples: int) -> Doubles:
        """Distances of what a slot changes, `[widths, items that it changes, samples]`."""
        places = {place: row for row, place in enumerate(parts[0].network.places)}
        lost = np.zeros((len(slot.bits), len(places), samples))
        for part in parts:
            for place, value in part.network.walk(values):
                stick = self._yardsticks[place]
                wanted = values[stick.item.node]
                each = value.chunk(len(part.places)) if len(part.places) > 1 else [value]
                for at, found in zip(part.places, each, strict=True):
                    lost[at, places[place]] = distance = stick.apart(wanted, found, samples)
                    if not np.isfinite(distance).all():
                        raise _not_finite(slot, at, stick.item.name, wanted)
        return lost
