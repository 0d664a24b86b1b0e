"""What scores are compared with: the linearized change of a network's outputs by forward-mode differentiation.

The network is interpreted node by node with `t` times a candidate's change added where it belongs; the derivative by
`t` is the change to first order. It shares no code with the probes but the grids themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

import detent
from detent.graph import Graph
from detent.graph.policy import place_as_asked
from detent.records.sensitivity import SensitivityTable, TensorSensitivity
from detent.sensitivity import score_by_probes
from tests.mixed_targets import write_target

__all__ = ["Scored", "exact_changes", "exact_vectors"]


class Scored:
    """A captured network with plans of several widths, and inputs.

    Args:
        folder: where the file of the target goes.
        model: the network.
        batches: its inputs, batch by batch.
        kernels: widths of kernels.
        values: widths of activations.
        options: of `detent.plan`.
    """

    def __init__(
        self,
        folder: Path,
        model: torch.nn.Module,
        batches: Sequence[Any],
        *,
        kernels: Sequence[int] = (8, 4, 2),
        values: Sequence[int] = (8, 4),
        **options: Any,
    ) -> None:
        self.graph = detent.capture(model, batches[0])
        self.batches = [[torch.as_tensor(one) for one in self.graph.flatten(batch)] for batch in batches]
        target = write_target(folder, kernels, values)
        self.placement = place_as_asked(self.graph, detent.load_target(target))
        stats = detent.calibrate(self.graph, list(batches), progress=False)
        options = {"bias_correction": "none", "gain_correction": "none", "weights_metric": "mse", **options}
        rounds = max(len(kernels), len(values))
        self.plans = [
            detent.plan(
                self.graph,
                stats,
                target=target,
                weights_bits=kernels[min(place, len(kernels) - 1)],
                activation_bits=values[min(place, len(values) - 1)],
                **options,
            )
            for place in range(rounds)
        ]

    def score(self, probes: int = 10**6, **options: Any) -> SensitivityTable:
        """Scores by probes; along all directions without `probes`."""
        return score_by_probes(self.graph, self.placement, self.plans, self.batches, probes=probes, **options)


class _Moved(fx.Interpreter):
    """The network with changes of kernels, of the outputs of layers and of values."""

    def __init__(
        self,
        graph: Graph,
        kernels: Mapping[str, Tensor] = {},
        values: Mapping[str, Tensor] = {},
        seen: dict[str, Tensor] | None = None,
    ) -> None:
        super().__init__(graph.module, garbage_collect_values=False)
        self._graph, self._kernels, self._values, self._seen = graph, kernels, values, seen

    def run_node(self, n: fx.Node) -> Any:
        name = self._graph.name_of(n)
        if n.op == "call_function" and name in self._kernels:
            weight = self._graph.find(name).weight
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            args = tuple(a + self._kernels[name] if g is weight else a for g, a in zip(n.args, args, strict=True))
            value = n.target(*args, **kwargs)
        else:
            value = super().run_node(n)
        if n.op in ("placeholder", "call_function"):
            if name in self._values:
                value = value + self._values[name]
            if self._seen is not None:
                self._seen[name] = value
        return value


def seen_values(graph: Graph, batch: Sequence[Tensor]) -> dict[str, Tensor]:
    """All values of the float network."""
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        _Moved(graph, seen=seen).run(*batch)
    return seen


def candidate_changes(
    case: Scored, tensor: TensorSensitivity, bits: int, seen: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a candidate changes: kernels by the layers that use them, and values."""
    graph, kernels, values = case.graph, {}, {}
    if tensor.role == "weights":
        plan = next(one for one in case.plans if one.weights[tensor.name].grid.bits == bits)
        entry, point = plan.weights[tensor.name], case.placement.weights[tensor.name]
        weight = graph.tensor(graph.find(tensor.name).weight).detach()
        array = weight.numpy()
        if entry.gain is not None:
            shape = [-1 if axis == entry.grid.axis else 1 for axis in range(array.ndim)]
            array = array * entry.gain.reshape(shape)
        rounded = torch.from_numpy(entry.grid.round(np.ascontiguousarray(array, np.float32)))
        for user in point.users:
            kernels[user] = rounded - weight
            if user in plan.bias_corrections:
                axis, dims = graph.find(user).channel_axis, seen[user].dim()
                shift = torch.from_numpy(np.array(plan.bias_corrections[user].shift))
                values[user] = shift.reshape([-1 if i == axis else 1 for i in range(dims)])
        return kernels, values
    for name, point in case.placement.activations.items():
        owner = point.same_as or name
        if owner in tensor.members and not point.constant:
            plan = next(one for one in case.plans if one.activation_grid(owner).bits == bits)
            array = seen[name].contiguous().numpy()
            values[name] = torch.from_numpy(plan.activation_grid(owner).round(array)) - seen[name]
    return kernels, values


def exact_changes(
    case: Scored, tensor: TensorSensitivity, bits: int, batch: Sequence[Tensor], *, linear: bool = True
) -> list[Tensor]:
    """The change of each floating-point output by a candidate: to first order, or the true one."""
    seen = seen_values(case.graph, batch)
    kernels, values = candidate_changes(case, tensor, bits, seen)

    def moved(t: Tensor) -> tuple[Tensor, ...]:
        by_t = [{name: change * t for name, change in part.items()} for part in (kernels, values)]
        return tuple(_floats(_Moved(case.graph, *by_t).run(*batch)))

    if linear:
        return list(torch.func.jvp(moved, (torch.tensor(0.0),), (torch.tensor(1.0),))[1])
    with torch.no_grad():
        return [b - a for a, b in zip(moved(torch.tensor(0.0)), moved(torch.tensor(1.0)), strict=True)]


def _floats(outputs: Any) -> list[Tensor]:
    return [value for value in pytree.tree_leaves(outputs) if value.is_floating_point()]


def exact_vectors(case: Scored, table: SensitivityTable, *, linear: bool = True) -> np.ndarray:
    """The changes of all candidates, scaled such that their products are those that `table.gram()` estimates."""
    found = []
    outputs = [_floats(_Moved(case.graph).run(*batch)) for batch in case.batches]
    every = zip(*outputs, strict=True)
    energies = [sum(float(value.detach().double().square().sum()) for value in same) for same in every]
    weights = [one**-0.5 for one in energies]
    energy = sum(
        float((value.detach().double() * weight).square().sum())
        for values in outputs
        for value, weight in zip(values, weights, strict=True)
    )
    for tensor in table:
        for bits in tensor.bits:
            parts = [
                change.detach().double().flatten() * weight
                for batch in case.batches
                for change, weight in zip(exact_changes(case, tensor, bits, batch, linear=linear), weights, strict=True)
            ]
            found.append(torch.cat(parts).numpy() / energy**0.5)
    return np.array(found)
