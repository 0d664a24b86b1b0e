"""Layer by layer through the network: what each sees behind quantized layers, and what it should give.

The float and the quantized network run all batches side by side. At each layer, patches of its input come from the
quantized network and the outputs that belong to them from the float one; its kernel is rounded, put into the quantized
network and its bias corrected, and both go on. One pass of each serves all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from detent.errors import CalibrationError
from detent.graph import Graph, GraphNode
from detent.graph.executor import Executor
from detent.graph.names import NAME
from detent.graph.patches import Windows, added_to_patches, kernel_rows
from detent.graph.roles import argument
from detent.graph.side_by_side import sharing_cores, worker_count
from detent.rounding.objective import Objective, PatchMoments

__all__ = ["Settled", "Swept", "sweep"]

_LEAST_PATCHES: Final = 8192
_MOST_PATCHES: Final = 32768
_PATCHES_PER_ELEMENT: Final = 48
"""Patches seen for each element of a patch, within these bounds."""

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Swept:
    """A layer to be settled on the way.

    Args:
        node: the layer, see `graph.patches.has_rows`.
        central: its bias takes up the means.
    """

    node: GraphNode
    central: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Settled:
    """What was decided for a layer.

    Args:
        kernel: float32, what the quantized network goes on with; None leaves its kernel.
        shift: added to each channel of the layer's output from now on, float64 `[C_out]`; None adds nothing.
    """

    kernel: Floats | None = None
    shift: Doubles | None = None


Settle = Callable[[Swept, Objective, Objective], Settled]
"""Decides for a layer, from what kernels cost on the samples to learn from and on those that judge."""


def sweep(
    graph: Graph,
    quantized: fx.GraphModule | None,
    layers: Sequence[Swept],
    batches: Sequence[Sequence[torch.Tensor]],
    held_out: int,
    settle: Settle,
    *,
    seed: int,
    show: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Settle one layer after the other, each behind those before it as they were settled.

    Args:
        graph: the float network.
        quantized: the same network on the grids of its plan, whose values keep their names: the layers' inputs are
            those it gives. None takes the float network's.
        layers: in execution order.
        batches: inputs of both networks.
        held_out: how many batches at the end judge.
        settle: decides.
        seed: of the positions that patches are taken at.
        show: told how many layers are done.

    Returns:
        Names of layers that do not depend on the data; they are left as they are.

    Raises:
        CalibrationError: a layer's input or output holds NaN or infinity.
    """
    names = [layer.node.name for layer in layers]
    ours = {name: layer.node.node for name, layer in zip(names, layers, strict=True)}
    floats = _Network(graph.module, outputs=ours, inputs=ours if quantized is None else {})
    networks, theirs = [floats], floats
    if quantized is not None:
        found = _found(graph, quantized, names)
        theirs = _Network(quantized, outputs=found, inputs=found)
        networks.append(theirs)
    varying = [layer for layer in layers if all(layer.node.name not in network.constant for network in networks)]
    samplers = {
        layer.node.name: _Sampler(graph, layer, place, len(batches), seed) for place, layer in enumerate(varying)
    }
    runs = [_Run(networks, samplers, number, batch) for number, batch in enumerate(batches)]
    workers = worker_count(in_order=any(network.executor.draws_random_numbers for network in networks))
    with sharing_cores(workers, "detent-round") as pool:
        for done, (name, sampler) in enumerate(samplers.items(), 1):
            seen = list(pool.map(_Run.advance, runs, repeat(name)))
            objectives = [sampler.objective(part) for part in (seen[:-held_out], seen[-held_out:])]
            decided = settle(sampler.layer, *objectives)
            if theirs is not floats:
                theirs.settle(name, decided, sampler.axis)
            show(done)
    return [name for name in names if name not in samplers]


class _Network:
    """A network that stops at layers' inputs and outputs, and whose kernels change on the way.

    Args:
        module: the network.
        outputs: the nodes of layers, by name.
        inputs: those of layers whose inputs are to be seen, by name.
    """

    def __init__(
        self, module: fx.GraphModule, *, outputs: Mapping[str, fx.Node], inputs: Mapping[str, fx.Node]
    ) -> None:
        self._outputs = {node: name for name, node in outputs.items()}
        self._readers: dict[fx.Node, list[str]] = {}
        for name, node in inputs.items():
            self._readers.setdefault(_argument(node, "input"), []).append(name)
        kernels = {_argument(node, "weight"): name for name, node in outputs.items()}
        self._watched = list(dict.fromkeys([*self._outputs, *self._readers, *kernels]))
        self.executor = Executor(module, self._watched, lambda node: str(node.meta.get(NAME, node.name)))
        self._kernels: dict[str, torch.Tensor] = {}
        self._shifts: dict[str, torch.Tensor] = {}
        self.constant: set[str] = set()
        self.executor.show_constants(lambda index, value: self._keep(self._watched[index], value, kernels))

    def _keep(self, node: fx.Node, value: torch.Tensor, kernels: Mapping[fx.Node, str]) -> None:
        if node in kernels:
            self._kernels[kernels[node]] = value
        self.constant.update([*self._readers.get(node, ()), *([self._outputs[node]] if node in self._outputs else [])])

    def settle(self, name: str, decided: Settled, axis: int) -> None:
        """Go on with another kernel and another bias. The walks of all batches share a kernel."""
        with torch.inference_mode():
            if decided.kernel is not None:
                self._kernels[name].copy_(torch.from_numpy(decided.kernel))
            if decided.shift is not None:
                shift = torch.from_numpy(decided.shift.astype(np.float32))
                self._shifts[name] = shift.reshape(-1, *[1] * (-axis - 1))

    def walk(self, batch: Sequence[torch.Tensor]) -> Iterator[tuple[bool, str, torch.Tensor]]:
        """Run one batch, stopping at each output of a layer and at each input that is to be seen.

        Yields:
            Whether it is an output, the layer's name, and the value.
        """
        for index, value in self.executor.walk(batch):
            node = self._watched[index]
            if node in self._outputs:
                name = self._outputs[node]
                if name in self._shifts:
                    with torch.inference_mode():
                        value.add_(self._shifts[name])
                yield True, name, value
            for name in self._readers.get(node, ()):
                yield False, name, value


class _Sampler:
    """Takes patches of a layer's input, and what the layer makes of them.

    Args:
        graph: the float network.
        layer: the layer.
        place: its number among the layers.
        batches: how many there are.
        seed: of the positions.
    """

    def __init__(self, graph: Graph, layer: Swept, place: int, batches: int, seed: int) -> None:
        node = layer.node
        assert node.weight is not None
        assert node.channel_axis is not None
        kernel = graph.tensor(node.weight).detach().cpu().contiguous().numpy()
        rows = kernel_rows(node, kernel)
        self.layer = layer
        self.axis = node.channel_axis - len(node.shape or ())
        self._windows = Windows(node, tuple(kernel.shape))
        self._rank = kernel.ndim
        self._seed, self._batches = (seed, place), batches
        self._length, self._outputs = rows.shape[2], rows.shape[1]
        # What a rewrite added to the patches is taken back when the plan is applied.
        self._added = added_to_patches(node, tuple(kernel.shape))
        bias = 0.0 if node.bias is None else graph.tensor(node.bias).detach().cpu().double().numpy()
        through = 0.0 if self._added is None else (rows.astype(np.float64) * self._added).sum(axis=2).reshape(-1)
        self._bias = np.broadcast_to(bias + through, node.groups * self._outputs).astype(np.float32)

    def _positions(self, value: torch.Tensor, number: int) -> npt.NDArray[np.int64]:
        """Where patches of a batch are taken, the same for the layer's input and output."""
        positions = self._windows.positions(value)
        wanted = min(max(_LEAST_PATCHES, _PATCHES_PER_ELEMENT * self._length), _MOST_PATCHES)
        each = min(positions, -(-wanted // (self._batches * self._samples(value))))
        return np.sort(np.random.default_rng([*self._seed, number]).permutation(positions)[:each])

    def _samples(self, value: torch.Tensor) -> int:
        batched = value.dim() > 1 if self.layer.node.kind == "linear" else value.dim() == self._rank
        return value.shape[0] if batched else 1

    def patches(self, value: torch.Tensor, number: int) -> Floats:
        """Patches of a batch's input, float32 `[groups, n, d]`."""
        patches = self._windows.at(value, self._positions(value, number))
        return patches if self._added is None else patches - self._added

    def outputs(self, value: torch.Tensor, number: int) -> Floats:
        """What the layer makes of them without its bias, float32 `[groups, n, C_out / groups]`."""
        last = value.movedim(self.axis, -1)
        rows = last.reshape(self._samples(value), -1, last.shape[-1])
        taken = rows[:, torch.from_numpy(self._positions(value, number))].numpy().reshape(-1, rows.shape[-1])
        taken = taken - self._bias
        groups = self.layer.node.groups
        return np.ascontiguousarray(taken.reshape(len(taken), groups, -1).swapaxes(0, 1))

    def objective(self, seen: Sequence[tuple[Floats, Floats]]) -> Objective:
        """What kernels cost on the patches of some batches.

        Raises:
            CalibrationError: a patch or an output is not finite.
        """
        sums = PatchMoments(self.layer.node.groups, self._length, self._outputs)
        for patches, outputs in seen:
            sums.add(patches, outputs)
        if not sums.finite:
            raise CalibrationError(
                "the input or the output of the layer holds NaN or infinity",
                where=self.layer.node.name,
                remedy="look for such values in the data; detent.calibrate names the sample",
            )
        return sums.objective(central=self.layer.central)


class _Run:
    """One batch on its way through the networks; its steps may run in different threads."""

    def __init__(
        self,
        networks: Sequence[_Network],
        samplers: Mapping[str, _Sampler],
        number: int,
        batch: Sequence[torch.Tensor],
    ) -> None:
        self._samplers, self._number = samplers, number
        # The last network is the one whose inputs are seen.
        self._walks = [network.walk(batch) for network in networks]
        self._patches: dict[str, Floats] = {}
        self._outputs: dict[str, Floats] = {}

    def advance(self, name: str) -> tuple[Floats, Floats]:
        """Run until a layer's input and output were seen: its patches and what it makes of them."""
        while name not in self._patches:
            self._see(self._walks[-1])
        while name not in self._outputs:
            self._see(self._walks[0])
        return self._patches.pop(name), self._outputs.pop(name)

    def _see(self, walk: Iterator[tuple[bool, str, torch.Tensor]]) -> None:
        is_output, name, value = next(walk)
        sampler = self._samplers.get(name)
        if sampler is None:
            return
        if not is_output:
            self._patches[name] = sampler.patches(value, self._number)
        elif walk is self._walks[0]:
            self._outputs[name] = sampler.outputs(value, self._number)


def _argument(node: fx.Node, name: str) -> fx.Node:
    found = argument(node, name)
    assert isinstance(found, fx.Node)
    return found


def _found(graph: Graph, quantized: fx.GraphModule, names: Sequence[str]) -> dict[str, fx.Node]:
    """The nodes of the quantized network that compute layers of the float one."""
    targets = {name: graph.find(name).node.target for name in names}
    return {
        name: node
        for node in quantized.graph.nodes
        if (name := graph.name_of(node)) in targets and node.target is targets[name]
    }
