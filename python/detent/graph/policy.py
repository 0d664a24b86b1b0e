"""Placement for a plan: what the target decides, and what options ask for beyond that."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from detent.config import QuantizationConfig
from detent.errors import ConfigError
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

    Raises:
        ConfigError: steps for each channel of activations on a target that has none.
    """
    placement = place(graph, target)
    if config is not None and config.concat_threshold_update:
        placement = share_concatenation_grids(graph, placement, own)
    if config is not None and config.activation_per_channel:
        if not any(point.rule.per_channel for point in placement.activations.values()):
            raise ConfigError(
                f"target {target.name!r} has one step for each activation, and `activation_per_channel` asks for one a "
                "channel",
                remedy="leave it out, or write a target file that offers `per_channel` activations",
            )
        placement = replace(placement, notes=(*placement.notes, *_notes_on_one_step(placement)))
    return placement


def _notes_on_one_step(placement: Placement) -> list[str]:
    """Which activations have one step for all channels, by reason."""
    values: dict[str, list[str]] = {}
    for name, point in placement.activations.items():
        if point.axis is None:
            values.setdefault(point.one_step, []).append(name)
    return [f"one step for all channels of {', '.join(names)}: {reason}" for reason, names in values.items()]
