"""One accumulator per observed value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from detent.kernels.statistics import StatisticsAccumulator
from detent.records.statistics import TensorStatistics
from detent.statistics.executor import Observer
from detent.statistics.observation import Observation

__all__ = ["Collector"]


class Collector:
    """Counts the observed values of batch after batch.

    Args:
        observations: the values, in the order in which the graph computes them.
        earlier: statistics to continue from, by name; None to start afresh.
    """

    def __init__(
        self, observations: Sequence[Observation], earlier: Mapping[str, TensorStatistics] | None = None
    ) -> None:
        self.observations = observations
        self._accumulators = [
            StatisticsAccumulator(observation.channel_axis)
            if earlier is None
            else StatisticsAccumulator.from_state(dict(earlier[observation.name].state))
            for observation in observations
        ]
        self._samples = 0
        self._seen_before: list[int] = []
        self._repeating = False

    @property
    def separable(self) -> bool:
        """Whether padding can be left out of every value."""
        return all(observation.attributed or observation.constant for observation in self.observations)

    def observers(self) -> list[Observer]:
        """One observer per observation, in order."""
        return [self._observer(index) for index in range(len(self.observations))]

    def begin(self, samples: int, *, repeating: bool = False) -> None:
        """Announce a batch whose first `samples` samples count.

        Args:
            samples: samples that are not padding.
            repeating: it is the batch that was interrupted before; values that saw it already leave it out.
        """
        if not repeating:
            self._seen_before = [accumulator.samples for accumulator in self._accumulators]
        self._samples = samples
        self._repeating = repeating

    def nonfinite(self) -> Observation | None:
        """The first value, in the order of the graph, in which a NaN or an infinity was counted."""
        for observation, accumulator in zip(self.observations, self._accumulators, strict=True):
            if accumulator.nonfinite:
                return observation
        return None

    def result(self) -> dict[str, TensorStatistics]:
        """The statistics so far, by value name."""
        return {
            observation.name: TensorStatistics.of(accumulator, constant=observation.constant)
            for observation, accumulator in zip(self.observations, self._accumulators, strict=True)
        }

    def _observer(self, index: int) -> Observer:
        observation, accumulator = self.observations[index], self._accumulators[index]

        def observe(value: torch.Tensor) -> None:
            # The kernel's own count tells whether this value saw the batch before an interruption.
            if self._repeating and accumulator.samples != self._seen_before[index]:
                return
            rows = observation.samples_first(value).numpy()
            accumulator.update(rows, self._samples if observation.attributed else None)

        def observe_once(value: torch.Tensor) -> None:
            if not accumulator.samples:
                accumulator.update(observation.samples_first(value).numpy())

        return observe_once if observation.constant else observe
