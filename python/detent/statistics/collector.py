"""One accumulator per observed value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from detent.kernels.statistics import StatisticsAccumulator
from detent.records.statistics import TensorStatistics
from detent.statistics.moving import MovingMaxima
from detent.statistics.observation import Observation

__all__ = ["Collector", "merge"]


class Collector:
    """Counts the observed values of batch after batch.

    Args:
        observations: the values, in the order in which the graph computes them.
        earlier: statistics to continue from, by name; None to start afresh.
        moving: collects moving maxima too; the batches must then come in order.
    """

    def __init__(
        self,
        observations: Sequence[Observation],
        earlier: Mapping[str, TensorStatistics] | None = None,
        moving: MovingMaxima | None = None,
    ) -> None:
        self.observations = observations
        self.moving = moving
        self.accumulators = [
            StatisticsAccumulator(observation.channel_axis)
            if earlier is None
            else StatisticsAccumulator.from_state(dict(earlier[observation.name].state))
            for observation in observations
        ]
        self._samples = 0

    def begin(self, samples: int) -> None:
        """Announce a batch whose first `samples` samples count; the others are padding."""
        self._samples = samples
        if self.moving is not None:
            self.moving.begin_batch()

    def observe(self, index: int, value: torch.Tensor) -> None:
        """Count the value of the observation at `index`."""
        observation, accumulator = self.observations[index], self.accumulators[index]
        if observation.constant and accumulator.samples:
            return
        rows = observation.samples_first(value)
        accumulator.update(rows.numpy(), self._samples if observation.attributed else None)
        if self.moving is not None:
            self.moving.update(index, rows[: self._samples] if observation.attributed else rows)

    def nonfinite(self) -> Observation | None:
        """The first value, in the order of the graph, in which a NaN or an infinity was counted."""
        for observation, accumulator in zip(self.observations, self.accumulators, strict=True):
            if accumulator.nonfinite:
                return observation
        return None


def merge(collectors: Sequence[Collector]) -> dict[str, TensorStatistics]:
    """What collectors of the same observations have counted together, by value name; they may go on."""
    merged = {}
    for index, observation in enumerate(collectors[0].observations):
        parts = [collector.accumulators[index] for collector in collectors]
        seen = [part for part in parts if part.samples] or parts[:1]
        both = seen[0].copy()
        # A constant counts once, whoever has seen it.
        for part in seen[1:] if not observation.constant else ():
            both.merge(part)
        merged[observation.name] = TensorStatistics.of(both, constant=observation.constant)
    return merged
