"""What rewrites that go by statistics read of them, so that calibration for them need not observe more."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from detent.config import QuantizationConfig
from detent.graph.graph import Graph
from detent.transforms.absorb_biases import read_by_absorption
from detent.transforms.observed import observed_name
from detent.transforms.shift_negative import read_by_negative_shift
from detent.transforms.shift_softmax import read_by_softmax_shift
from detent.transforms.smooth import read_by_smoothing

__all__ = ["Reads", "read_by_rewrites"]


@dataclass(frozen=True)
class Reads:
    """What is read of statistics.

    Args:
        values: names of the values, in the order in which the graph computes them.
        channels: whether what was seen of single channels is read too.
    """

    values: tuple[str, ...]
    channels: bool


def read_by_rewrites(graph: Graph, config: QuantizationConfig, observable: Collection[str]) -> Reads:
    """What the wanted rewrites would read of statistics of all values: with no more they do exactly the same.

    None of them changes what those behind it read: they put other numbers into kernels, biases and limits.

    Args:
        graph: the network they are for.
        config: says which are wanted.
        observable: names of the values that a calibration of everything observes.
    """
    rooms = (
        (config.bias_absorption, read_by_absorption),
        (config.softmax_shift, read_by_softmax_shift),
        (config.smooth_quant, read_by_smoothing),
        (config.shift_negative, read_by_negative_shift),
    )
    known, wanted = frozenset(observable), set[str | None]()
    for asked, reads in rooms:
        for group in reads(graph) if asked else ():
            names = (observed_name(graph, known, node) for node in group)
            wanted.add(next((name for name in names if name is not None), None))
    values = tuple(item.name for item in graph.nodes() if item.name in wanted)
    return Reads(values, channels=config.bias_absorption or config.smooth_quant)
