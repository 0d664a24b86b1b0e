"""Placement for a plan: what the target decides, and what options ask for beyond that."""

from __future__ import annotations

from collections.abc import Collection

from detent.config import QuantizationConfig
from detent.graph.graph import Graph
from detent.graph.placement import Placement, place
from detent.graph.sharing import share_concatenation_grids
from detent.targets import Target

__all__ = ["place_as_asked"]


def place_as_asked(
    graph: Graph, target: Target, config: QuantizationConfig | None = None, own: Collection[str] = ()
) -> Placement:
    """Where grids go on a target under a configuration; without one, what the target alone decides.

    Args:
        graph: the captured network.
        target: the target.
        config: options; those about activations beyond the target's needs are carried out here.
        own: values whose grid is decided already, so that they do not take that of a concatenation.
    """
    placement = place(graph, target)
    if config is not None and config.concat_threshold_update:
        placement = share_concatenation_grids(graph, placement, own)
    return placement
