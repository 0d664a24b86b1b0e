"""What calibration saw of the channels on a path, for rewrites that go by statistics."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from detent.errors import ConfigError
from detent.graph.graph import Graph
from detent.records.statistics import Statistics, TensorStatistics

__all__ = ["ChannelRange", "observed_channels", "observed_name", "observed_value", "require_statistics_of"]


@dataclass(frozen=True)
class ChannelRange:
    """Least, greatest and mean value per channel, float64 `[C]`."""

    minimum: torch.Tensor
    maximum: torch.Tensor
    mean: torch.Tensor

    @property
    def magnitude(self) -> torch.Tensor:
        """Greatest absolute value per channel."""
        return torch.maximum(self.maximum.abs(), self.minimum.abs())


def require_statistics_of(graph: Graph, statistics: Statistics) -> None:
    """Refuse statistics of another graph.

    Raises:
        ConfigError: the statistics were collected from another graph.
    """
    if statistics.fingerprint != graph.fingerprint():
        raise ConfigError(
            "the statistics were collected from another model", remedy="calibrate the graph that is to be rewritten"
        )


def observed_name(graph: Graph, observed: Container[str], node: fx.Node) -> str | None:
    """Which of the observed values tells of a value: itself, or the one it was moved from; None if neither is there.

    Operators that only move values are not observed.
    """
    while graph.name_of(node) in graph:
        item = graph.find(graph.name_of(node))
        if item.name in observed:
            return item.name
        if not item.preserving or not item.data:
            break
        node = item.data[0]
    return None


def observed_value(graph: Graph, statistics: Statistics, node: fx.Node) -> TensorStatistics | None:
    """Statistics of a value, or of the one it was moved from; None where there are none."""
    name = observed_name(graph, statistics, node)
    return statistics[name] if name is not None and statistics[name].count else None


def observed_channels(graph: Graph, statistics: Statistics, node: fx.Node, channels: int) -> ChannelRange | None:
    """Ranges of the `channels` channels of a value; None where they were not observed, or are not finite."""
    seen = observed_value(graph, statistics, node)
    if seen is None:
        return None
    vectors = []
    for vector in (seen.channel_minimum, seen.channel_maximum, seen.channel_mean):
        if vector is None or len(vector) != channels or not np.isfinite(vector).all():
            return None
        vectors.append(torch.from_numpy(np.asarray(vector, np.float64)))
    return ChannelRange(*vectors)
