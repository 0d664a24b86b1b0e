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
from detent.graph.shifts import missing_from_bias
from detent.records.grid import Grid
from detent.records.plan import QuantPlan
from detent.records.sensitivity import Role

__all__ = ["Candidates", "KernelChange", "Slot"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class KernelChange:
    """What a width does to a kernel and to the biases of its users.

    Args:
        kernel: rounded less float values, in the kernel's shape.
        shifts: what is added to the output channels of each user, by its name: corrections, and what a shifted input
            costs a bias.
    """

    kernel: torch.Tensor
    shifts: Mapping[str, Floats]


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A kernel, or an activation with all that share its grid, and its candidate widths.

    Args:
        name: the layer, or the value that decides the grid.
        role: which of both.
        members: the layer, or the values with a grid of their own that must have the same width.
        bits: widths, in descending order.
        changes: of a kernel, for each width.
        grids: of activations, by value name, for each width.
    """

    name: str
    role: Role
    members: tuple[str, ...]
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
                slots.append(Slot(name=layer, role="weights", members=(layer,), bits=tuple(found), changes=changes))
        owned = _owned(placement, plans)
        for owners in _tied(placement, list(owned)):
            grids = {value: _grids(owner, plans) for owner in owners for value in owned[owner]}
            bits = [width for width in next(iter(grids.values())) if all(width in known for known in grids.values())]
            if bits:
                values.update(dict.fromkeys(grids, len(slots)))
                slots.append(
                    Slot(
                        name=owners[0],
                        role="activations",
                        members=tuple(owners),
                        bits=tuple(bits),
                        grids={value: tuple(known[width] for width in bits) for value, known in grids.items()},
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


def _owned(placement: Placement, plans: Sequence[QuantPlan]) -> dict[str, list[str]]:
    """Values that are computed and have a grid, by the one that decides it."""
    owners: dict[str, list[str]] = {}
    for value, point in placement.activations.items():
        entry = plans[0].activations.get(value)
        if entry is not None and not point.constant:
            owners.setdefault(entry.same_as or value, []).append(value)
    return owners


def _tied(placement: Placement, owners: Sequence[str]) -> list[list[str]]:
    """Owners of grids by what must have one width: an operation may read the width of its output only."""
    parent = {owner: owner for owner in owners}

    def root(owner: str) -> str:
        while parent[owner] != owner:
            owner = parent[owner]
        return owner

    for limit in placement.limits:
        if limit.widths == "output" and limit.output is not None:
            ends = [placement.activations[name].same_as or name for name in (limit.value, limit.output)]
            if all(end in parent for end in ends):
                parent[root(ends[1])] = root(ends[0])
    groups: dict[str, list[str]] = {}
    for owner in owners:
        groups.setdefault(root(owner), []).append(owner)
    return list(groups.values())


def _change(graph: Graph, users: Sequence[str], layer: str, plan: QuantPlan) -> KernelChange:
    entry = plan.weights[layer]
    node = graph.find(layer)
    assert entry.grid is not None
    assert node.weight is not None
    kernel = np.ascontiguousarray(graph.tensor(node.weight).detach().cpu().numpy())
    rounded = entry.rounded(kernel)
    shifts = {}
    for user in users:
        correction = plan.bias_corrections.get(user)
        missing = missing_from_bias(graph.find(user), kernel.astype(np.float64) - rounded)
        parts = [part for part in (None if correction is None else correction.shift, missing) if part is not None]
        if parts:
            shifts[user] = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    return KernelChange(kernel=torch.from_numpy(rounded - kernel), shifts=shifts)
