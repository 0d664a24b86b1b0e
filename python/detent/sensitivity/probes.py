"""Probe scores: what every candidate width of every tensor does to the outputs, from a few backward passes in all.

With J the derivative of the outputs by a value x, quantizing x changes them by J (Q(x) - x), to first order. For a
direction d of the outputs one backward pass gives J^T d at all values at once, and its product with Q(x) - x is the
change along d, sample by sample. A kernel's change dW is seen at the layer's output, where it is the layer applied
with dW for its kernel: one more forward pass of the layers for each width. The cost thus grows with the passes, not
with tensors times widths, and the changes along the same directions tell how errors of different tensors add up or
cancel. (Hutchinson's estimator, as in Dong et al. 2020, arXiv:1911.03852, section 3, applied to the Jacobian.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count, repeat
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from detent.errors import CalibrationError, ConfigError
from detent.graph import Graph
from detent.graph.executor import Executor
from detent.graph.placement import Placement
from detent.graph.side_by_side import sharing_cores, worker_count
from detent.records.finished import FinishedParts
from detent.records.plan import QuantPlan
from detent.records.sensitivity import SensitivityTable, TensorSensitivity
from detent.sensitivity.candidates import Candidates, Slot
from detent.sensitivity.constants import Constants
from detent.sensitivity.directions import Loss, directions, fisher
from detent.sensitivity.taps import Gradients, tap_of_grids, tap_of_kernel
from detent.sensitivity.units import detached, float_outputs, samples_in

__all__ = ["score_by_probes"]

_MEASURE: Final = 'measure instead: mixed_precision={"scores": "measured"}'

Batches = Sequence[Sequence[torch.Tensor]]
Doubles = npt.NDArray[np.float64]


def score_by_probes(
    graph: Graph,
    placement: Placement,
    plans: Sequence[QuantPlan],
    batches: Batches,
    *,
    probes: int = 8,
    loss: Loss = "outputs",
    seed: int = 0,
    show: Callable[[int], None] = lambda done: None,
    finished: FinishedParts | None = None,
) -> SensitivityTable:
    """Score every width that a tensor has in one of the plans.

    Args:
        graph: the float network.
        placement: where its grids go.
        plans: of this graph; every width of a tensor in any of them is a candidate, with the grid, gain and bias
            correction it has there.
        batches: inputs.
        probes: directions for each sample; no more are used than a sample has outputs, and these make scores exact
            but for higher orders.
        loss: `"outputs"` counts the squared change of the outputs relative to their energy, each output of a network
            alike; `"fisher"` takes outputs for logits and counts the divergence from the float network's prediction.
        seed: of the directions.
        show: told how many batches are done.
        finished: batches that are done already, and what keeps the others as they are done.

    Raises:
        CalibrationError: a gradient or an output is not finite; names the layer.
        ConfigError: nothing has a choice, no output has a gradient, or the network draws random numbers, of which a
            scoring that continues would draw others.
    """
    finished = finished or FinishedParts()
    candidates = Candidates.of(graph, placement, plans)
    with torch.inference_mode(False):  # in which a caller may be, and which knows no gradients
        run = _Run(graph, candidates, probes, loss, seed)
        if finished.kept and run.draws_random_numbers(batches[0]):
            raise ConfigError(
                "the network draws random numbers, so that a scoring that continues would differ",
                remedy="put the model in evaluation mode, or leave `checkpoint` out",
            )
    workers = worker_count(in_order=run.executor.draws_random_numbers)
    found = [_Found.of(figures, len(candidates.slots)) for figures in finished.parts]
    if found:
        show(len(found))
    with sharing_cores(workers, "detent-probe") as pool:
        weights = run.weights_of_outputs(pool, batches)
        for one in pool.map(run.changes, batches[len(found) :], count(len(found)), repeat(weights)):
            found.append(one)
            finished.add(one.figures())
            show(len(found))
    samples = sum(one.samples for one in found)
    # The divergence is half the quadratic form of its Hessian.
    energy = sum(one.energy for one in found) / samples if loss == "outputs" else 2.0
    if not energy > 0:
        raise CalibrationError("the outputs are zero for all samples", remedy="score on other samples")
    size = energy**-0.5
    tensors = tuple(
        _sensitivity(slot, np.concatenate([one.changes[number] for one in found], axis=2) * size)
        for number, slot in enumerate(candidates.slots)
    )
    return SensitivityTable(
        tensors=tensors,
        method=f"probes of {loss}",
        samples=samples,
        probes=tensors[0].factors.shape[1] // samples,
        fingerprint=graph.fingerprint(),
    )


def _sensitivity(slot: Slot, changes: Doubles) -> TensorSensitivity:
    """From changes `[widths, directions, samples]`."""
    samples = changes.shape[2]
    by_sample = np.square(changes).sum(axis=1)
    deviations = by_sample.std(axis=1, ddof=1) if samples > 1 else np.full(len(by_sample), np.nan)
    return TensorSensitivity(
        name=slot.name,
        role=slot.role,
        members=slot.members,
        bits=slot.bits,
        scores=by_sample.mean(axis=1),
        errors=deviations / samples**0.5,
        factors=(changes / samples**0.5).reshape(len(changes), -1).astype(np.float32),
    )


class _Found(NamedTuple):
    """What a batch tells.

    Args:
        changes: along its directions, `[widths, directions, samples]` for each slot.
        energy: of its weighted outputs.
        samples: in it.
    """

    changes: list[Doubles]
    energy: float
    samples: int

    def figures(self) -> dict[str, npt.NDArray[Any]]:
        """The same as arrays by name."""
        parts: dict[str, npt.NDArray[Any]] = {f"changes.{slot}": part for slot, part in enumerate(self.changes)}
        return parts | {"energy": np.array(self.energy, np.float64), "samples": np.array(self.samples, np.int64)}

    @classmethod
    def of(cls, figures: Mapping[str, npt.NDArray[Any]], slots: int) -> _Found:
        """From `figures`."""
        changes = [figures[f"changes.{slot}"] for slot in range(slots)]
        return cls(changes, float(figures["energy"]), int(figures["samples"]))


class _Run:
    """The network made ready for gradients at everything that has candidates."""

    def __init__(self, graph: Graph, candidates: Candidates, probes: int, loss: Loss, seed: int) -> None:
        self._graph = graph
        self._candidates = candidates
        self._probes = probes
        self._loss = loss
        self._seed = seed
        self._layers = {name: graph.find(name) for name in candidates.users}
        self._values = {name: graph.find(name) for name in candidates.values}
        sources = [layer.data[0] for layer in self._layers.values()]
        nodes = [item.node for item in (*self._layers.values(), *self._values.values())]
        self._outputs = float_outputs(graph, f"return what comes before it, or {_MEASURE}")
        # A direction is drawn for each sample, or for a whole batch if an output is of all samples together.
        layouts = [graph.find(graph.name_of(node)).batch for node in self._outputs]
        self._mixed = any(layout is None or layout.outer is None for layout in layouts)
        # What is of all samples together anyway needs no care where a value is.
        self._apart = None if self._mixed else Constants(graph, candidates, self._outputs)
        sources += [] if self._apart is None else self._apart.sources
        self._watched = list(dict.fromkeys([*sources, *nodes, *self._outputs]))
        # A kernel may be applied to a constant, to numbers of positions say; its gradient is wanted all the same.
        self.executor = Executor(graph.module, self._watched, graph.name_of, gradients=True, anew=nodes)
        self._constants: dict[fx.Node, torch.Tensor] = {}
        self.executor.show_constants(lambda index, value: self._constants.update({self._watched[index]: value}))

    def draws_random_numbers(self, batch: Sequence[torch.Tensor]) -> bool:
        """Whether running it does; dropout that is switched off is among the operators that could."""
        if not self.executor.draws_random_numbers:
            return False
        before = torch.get_rng_state()
        for _ in self.executor.walk(detached(batch)):
            pass
        return not torch.equal(torch.get_rng_state(), before)

    def weights_of_outputs(self, pool: ThreadPoolExecutor, batches: Batches) -> dict[fx.Node, float]:
        """What the changes of each output are multiplied by, so that all count alike."""
        if self._loss == "fisher" or len(self._outputs) == 1:
            return dict.fromkeys(self._outputs, 1.0)
        energies = np.sum(list(pool.map(self._energies, batches)), axis=0)
        every = zip(self._outputs, map(float, energies), strict=True)
        return {node: energy**-0.5 if energy > 0 else 0.0 for node, energy in every}

    def _energies(self, batch: Sequence[torch.Tensor]) -> list[float]:
        """Energies of the outputs for a batch."""
        energies = dict.fromkeys(self._outputs, 0.0)
        for index, value in self.executor.walk(detached(batch)):
            node = self._watched[index]
            if node in energies:
                energies[node] = self._energy(node, value)
        return list(energies.values())

    def changes(self, batch: Sequence[torch.Tensor], number: int, weights: Mapping[fx.Node, float]) -> _Found:
        """Run a batch forward once and backward along each of its directions."""
        samples = samples_in(self._graph, batch)
        leaves: list[torch.Tensor] = []
        outputs: dict[fx.Node, torch.Tensor] = {}
        kept = dict(self._constants)
        gradients = Gradients(self._candidates.slots, samples, pooled=self._mixed)
        for index, value in self.executor.walk(detached(batch)):
            node = self._watched[index]
            kept[node] = value.detach()
            if not value.is_floating_point():  # token numbers, say, which an embedding reads
                continue
            if not value.requires_grad:
                leaves.append(value.requires_grad_())
            self._tap(node, value, kept, gradients)
            if node in self._outputs:
                outputs[node] = value
        energy = sum(weights[node] ** 2 * self._energy(node, value) for node, value in outputs.items())
        drawn = self._drawn(outputs, weights, samples, number)
        for place in range(len(drawn[0])):
            self._backward(outputs, leaves, [part[place] for part in drawn], keep=place + 1 < len(drawn[0]))
            gradients.next_direction()
        changes = gradients.changes()
        if self._apart is not None:
            for slot in self._apart.slots:
                changes[slot] = self._apart.changes(slot, kept, drawn, samples)
        return _Found(changes, energy, samples)

    def _backward(
        self,
        outputs: Mapping[fx.Node, torch.Tensor],
        leaves: Sequence[torch.Tensor],
        direction: Sequence[torch.Tensor],
        *,
        keep: bool,
    ) -> None:
        try:
            torch.autograd.grad(list(outputs.values()), leaves, direction, retain_graph=keep, allow_unused=True)
        except (RuntimeError, NotImplementedError) as error:
            raise ConfigError(
                f"the network cannot be differentiated: {error}",
                remedy=_MEASURE,
            ) from error

    def _tap(self, node: fx.Node, value: torch.Tensor, kept: dict[fx.Node, torch.Tensor], gradients: Gradients) -> None:
        name = self._graph.name_of(node)
        layer, apart = self._layers.get(name), () if self._apart is None else self._apart.slots
        if layer is not None and self._candidates.users[name] not in apart:
            number = self._candidates.users[name]
            slot = self._candidates.slots[number]
            gradients.listen(value, number, tap_of_kernel(layer, kept[layer.data[0]], slot.changes))
        if name in self._values and self._candidates.values[name] not in apart:
            number = self._candidates.values[name]
            grids = self._candidates.slots[number].grids[name]
            gradients.listen(value, number, tap_of_grids(self._values[name], value.detach(), grids))

    def _drawn(
        self, outputs: Mapping[fx.Node, torch.Tensor], weights: Mapping[fx.Node, float], samples: int, number: int
    ) -> list[torch.Tensor]:
        """Directions of all outputs together, `[directions, *shape]` for each of them."""
        random = np.random.default_rng([self._seed, number])
        firsts = [self._samples_first(node, value.detach()) for node, value in outputs.items()]
        sizes = [first[0].numel() for first in firsts]
        together = directions(1 if self._mixed else samples, sum(sizes), self._probes, random)
        parts, start = [], 0
        for (node, value), first, size in zip(outputs.items(), firsts, sizes, strict=True):
            part = together[:, :, start : start + size].reshape(-1, *first.shape)
            start += size
            if self._loss == "fisher":
                axis = self._classes(node)
                chances = torch.softmax(first, dim=axis).movedim(axis, -1).numpy()
                part = np.moveaxis(fisher(chances, np.moveaxis(part, axis, -1)), -1, axis)
            scattered = torch.empty((len(part), *value.shape))
            for direction, to in zip(part, scattered, strict=True):
                self._samples_first(node, to).copy_(torch.from_numpy(direction) * weights[node])
            parts.append(scattered)
        return parts

    def _samples_first(self, node: fx.Node, value: torch.Tensor) -> torch.Tensor:
        batch = self._graph.find(self._graph.name_of(node)).batch
        if self._mixed or batch is None:
            return value.unsqueeze(0)
        return batch.samples_first(value)

    def _classes(self, node: fx.Node) -> int:
        """The axis of an output's classes, counted from the end."""
        item = self._graph.find(self._graph.name_of(node))
        return -1 if item.channel_axis is None or item.shape is None else item.channel_axis - len(item.shape)

    def _energy(self, node: fx.Node, value: torch.Tensor) -> float:
        energy = float(value.detach().square().sum(dtype=torch.float64))
        if not np.isfinite(energy):
            raise CalibrationError("the output holds NaN or infinity", where=self._graph.name_of(node))
        return energy
