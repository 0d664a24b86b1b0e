"""The first samples of calibration data, held in memory for what needs to see them more than once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from detent.errors import CalibrationError, ConfigError
from detent.graph import Graph
from detent.statistics.batches import Batch, SampleQueue
from detent.statistics.data import Data, checked_batches

__all__ = ["Keeping", "first_samples"]


class Keeping:
    """A one-shot iterator of batches that can be read again up to where `samples` were seen.

    Args:
        batches: the iterator.
        samples: samples to keep, counted along the first axis of a batch's first tensor.
    """

    def __init__(self, batches: Iterable[Any], samples: int) -> None:
        self._batches = iter(batches)
        self._missing = samples
        self.kept: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            if self._missing > 0:
                self.kept.append(batch)
                self._missing -= _size(batch)
            yield batch


def first_samples(graph: Graph, data: Data, count: int, *, parts: int, batch_size: int = 64) -> list[Batch]:
    """The first `count` samples, or as many as there are, as batches for the model.

    Args:
        graph: the captured network; one with a fixed batch gets whole batches of that size only.
        data: calibration data in any form.
        count: samples wanted.
        parts: batches wanted at least, if the samples suffice; few samples then make smaller batches.
        batch_size: samples in a batch.

    Raises:
        CalibrationError: the data are empty or do not fit the model, or fill no batch of a fixed size.
        ConfigError: `count` is no whole number from 1.
    """
    if type(count) is not int or count < 1:
        raise ConfigError(f"`samples` must be a whole number from 1, got {count!r}")
    queue = SampleQueue(checked_batches(data, graph, []), graph.inputs)
    if not graph.batch.dynamic:
        batch_size = graph.batch.size
        count = max(1, count // batch_size) * batch_size
    whole = queue.pull(count)
    found = queue.size(whole)
    if graph.batch.dynamic:
        batch_size = max(1, min(batch_size, found // parts))
    else:
        if found < batch_size:
            raise CalibrationError(
                f"the model takes exactly {batch_size} samples at a time, and there are {found}",
                remedy=f"give {batch_size} samples or more, or capture the model with a dynamic batch",
            )
        found -= found % batch_size
    return [
        [
            tensor if spec.batch_axis is None else tensor.narrow(spec.batch_axis, start, min(batch_size, found - start))
            for tensor, spec in zip(whole, graph.inputs, strict=True)
        ]
        for start in range(0, found, batch_size)
    ]


def _size(batch: Any) -> int:
    while isinstance(batch, dict | tuple | list) and batch:
        batch = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
    return len(batch) if isinstance(batch, torch.Tensor) or hasattr(batch, "__len__") else 1
