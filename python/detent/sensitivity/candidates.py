"""Candidates: every width that a tensor has in one of several plans, and what it changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from detent.errors import ConfigError
from detent.graph import Graph
from detent.graph.placement import Placement
from detent.records.grid import Grid
from detent.records.grid_values import multiplied
from detent.records.plan import QuantPlan
from detent.records.sensitivity import Role

__all__ = ["Candidates", "KernelChange", "Slot"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class KernelChange:
    """What a width does to a kernel and to the biases of its users.

    Args:
        kernel: rounded less float values, in the kernel's shape.
        shifts: what is added to the output channels of each user, by its name.
    """

    kernel: torch.Tensor
    shifts: Mapping[str, Floats]


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A kernel, or an activation with all that share its grid, and its candidate widths.

    Args:
        name: the layer, or the value that decides the grid.
        role: which of both.
        bits: widths, in descending order.
        changes: of a kernel, for each width.
        grids: of activations, by value name, for each width.
    """

    name: str
    role: Role
    bits: tuple[int, ...]
    changes: tuple[KernelChange, ...] = ()
    grids: Mapping[str, tuple[Grid, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidates:
    """The slots of a network.

    Args:
        slots: kernels first, then activations, each in execution order.
        users: slot number of each layer's kernel, by the layer's name.
        values: slot number of each quantized value, by its name.
    """

    slots: tuple[Slot, ...]
    users: Mapping[str, int]
    values: Mapping[str, int]

    @classmethod
    def of(cls, graph: Graph, placement: Placement, plans: Sequence[QuantPlan]) -> Candidates:
        """The widths that tensors have in plans of one graph; the first plan that has a width decides its grid.

        Raises:
            ConfigError: there are no plans, or they quantize nothing.
        """
        if not plans:
            raise ConfigError("candidates come from plans, and there are none")
        slots: list[Slot] = []
        users: dict[str, int] = {}
        values: dict[str, int] = {}
        for layer, point in placement.weights.items():
            found = _kernel_widths(layer, plans)
            if found:
                changes = tuple(_change(graph, point.users, layer, plan) for plan in found.values())
                users.update(dict.fromkeys(point.users, len(slots)))
                slots.append(Slot(name=layer, role="weights", bits=tuple(found), changes=changes))
        for owner, members in _owners(placement, plans).items():
            grids = _grids(owner, plans)
            if grids:
                values.update(dict.fromkeys(members, len(slots)))
                slots.append(
                    Slot(
                        name=owner,
                        role="activations",
                        bits=tuple(grids),
                        grids=dict.fromkeys(members, tuple(grids.values())),
                    )
                )
        if not slots:
            raise ConfigError("the plans quantize nothing that could have another width")
        return cls(tuple(slots), users, values)


def _kernel_widths(layer: str, plans: Sequence[QuantPlan]) -> dict[int, QuantPlan]:
    """The first plan that has each width of a kernel, from wide to narrow."""
    found: dict[int, QuantPlan] = {}
    for plan in plans:
        entry = plan.weights.get(layer)
        if entry is not None and entry.grid is not None:
            found.setdefault(entry.grid.bits, plan)
    return dict(sorted(found.items(), reverse=True))


def _grids(owner: str, plans: Sequence[QuantPlan]) -> dict[int, Grid]:
    found: dict[int, Grid] = {}
    for plan in plans:
        grid = plan.activation_grid(owner) if owner in plan.activations else None
        if grid is not None:
            found.setdefault(grid.bits, grid)
    return dict(sorted(found.items(), reverse=True))


def _owners(placement: Placement, plans: Sequence[QuantPlan]) -> dict[str, list[str]]:
    """Values that are computed and have a grid, by the one that decides it."""
    owners: dict[str, list[str]] = {}
    for value, point in placement.activations.items():
        entry = plans[0].activations.get(value)
        if entry is not None and not point.constant:
            owners.setdefault(entry.same_as or value, []).append(value)
    return owners


def _change(graph: Graph, users: Sequence[str], layer: str, plan: QuantPlan) -> KernelChange:
    entry = plan.weights[layer]
    node = graph.find(layer)
    assert entry.grid is not None
    assert node.weight is not None
    kernel = np.ascontiguousarray(graph.tensor(node.weight).detach().cpu().numpy())
    rounded = entry.grid.round(multiplied(kernel, entry.gain, entry.grid.axis))
    shifts = {user: plan.bias_corrections[user].shift for user in users if user in plan.bias_corrections}
    return KernelChange(kernel=torch.from_numpy(rounded - kernel), shifts=shifts)
