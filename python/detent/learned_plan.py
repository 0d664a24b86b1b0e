"""What learned rounding may change of a plan, and the plan it ends in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from detent.config import LearnedConfig
from detent.graph import Graph
from detent.graph.biases import correctable_layers
from detent.graph.placement import place
from detent.graph.shifts import missing_from_bias
from detent.records.codes import KernelCodes
from detent.records.correction import BiasCorrection
from detent.records.grid import Grid
from detent.records.grid_values import multiplied, scaled
from detent.records.plan import QuantPlan, TensorPlan
from detent.rounding.block_state import BlockParts, BlockState, KernelPart, StepPart
from detent.rounding.blocks import Block
from detent.rounding.learned import Learned
from detent.targets import load_target
from detent.thresholds import avoid_ties

__all__ = ["LearnedPlan"]

Floats = npt.NDArray[np.float32]
_METHOD: Final = "learned"


class LearnedPlan:
    """A plan on its way.

    Args:
        graph: the network.
        plan: as it was.
        options: of learning.
    """

    def __init__(self, graph: Graph, plan: QuantPlan, options: LearnedConfig) -> None:
        self._graph, self._plan = graph, plan
        self._placement = place(graph, load_target(plan.target))
        self._notes: list[str] = []
        self.layers = self._learnable()
        correctable = correctable_layers(graph, self._placement)
        corrects = plan.config.get("bias_correction") != "none" and options.bias_rate > 0
        self.biased = [name for name in self.layers if corrects and name in correctable]
        self._codes = {name: plan.weights[name].codes_of(self._kernel(name)) for name in self.layers}
        self._kernel_factors: dict[str, Floats] = {}
        self._step_factors: dict[str, Floats] = {}
        self._former: dict[str, list[str]] = {}
        self._biases: dict[str, Floats] = {}
        self._begun: dict[str, Floats] = {}
        self._has_grid: Callable[[str], bool] = lambda value: True

    def begin(self, biases: Mapping[str, torch.Tensor], has_grid: Callable[[str], bool]) -> None:
        """The biases as the quantized network has them, and which values pass a grid there."""
        self._begun = {name: bias.cpu().numpy().copy() for name, bias in biases.items()}
        self._biases, self._has_grid = dict(self._begun), has_grid

    def _learnable(self) -> list[str]:
        """Layers whose kernels are learned, in execution order; notes name the others."""
        found = set()
        for layer, point in self._placement.weights.items():
            entry = self._plan.weights[layer]
            if entry.grid is None or entry.frozen:
                continue
            why = None
            if len(point.users) > 1:
                why = f"several layers share it ({', '.join(point.users)})"
            elif self._graph.find(layer).kind not in ("conv", "conv_transposed", "linear"):
                why = "its layer is no product of rows and patches"
            if why is None:
                found.add(layer)
            else:
                self._notes.append(f"the rounding of the kernel of {layer} is not learned: {why}")
        return [node.name for node in self._graph.nodes() if node.name in found]

    def _kernel(self, layer: str) -> Floats:
        node = self._graph.find(layer).weight
        assert node is not None
        return np.ascontiguousarray(self._graph.tensor(node).detach().cpu().numpy())

    def parts(self, block: Block, options: LearnedConfig, device: torch.device) -> BlockParts:
        """What may change of a block, as it is now."""
        kernels = {}
        for name in block.layers:
            grid, gain = self._grid(name), self._plan.weights[name].gain
            kernels[name] = KernelPart(
                kernel=multiplied(self._kernel(name), gain, grid.axis),
                codes=self._codes[name],
                grid=grid,
                steps=options.kernel_step_rate > 0 and not grid.keeps_powers_of_two,
            )
        return BlockParts(
            kernels=kernels,
            biases={name: self._biases[name] for name in block.layers if name in self._biases},
            bias_units={},
            steps=self._steps(block) if options.step_rate > 0 else {},
            device=device,
        )

    def _grid(self, layer: str) -> Grid:
        grid = self._plan.weights[layer].grid
        assert grid is not None
        return _scaled(grid, self._kernel_factors.get(layer))

    def _steps(self, block: Block) -> dict[str, StepPart]:
        """Grids of activations whose values are all in the block, by the value that has the grid."""
        members: dict[str, list[str]] = {}
        for value, entry in self._plan.activations.items():
            members.setdefault(entry.same_as or value, []).append(value)
        inside, found = set(block.values), {}
        for root, values in members.items():
            entry, point = self._plan.activations[root], self._placement.activations[root]
            if entry.grid is None or entry.frozen or entry.grid.keeps_powers_of_two:
                continue
            # A range known beforehand, of a softmax for instance, has no better limits.
            if point.bounds is not None or point.holds is not None or not inside.issuperset(values):
                continue
            grid = _scaled(entry.grid, self._step_factors.get(root))
            found[root] = StepPart(grid=grid, values=tuple(value for value in values if self._has_grid(value)))
        return found

    def take(self, block: Block, learned: Learned, numbers: int) -> None:
        """What became of a block, which learned from so many numbers."""
        self._keep(learned.state)
        if learned.diverged:
            self._former.setdefault("the loss was not finite while {} learned, which keep", []).append(str(block))
        elif not learned.better:
            why = "learning made {} no better on held-out samples, which keep"
            self._former.setdefault(why, []).append(str(block))
        weights = sum(self._codes[name].size for name in block.layers)
        if numbers < weights:
            self._notes.append(
                f"{block}: {weights} weights learned from {numbers} numbers, fewer than there are weights"
            )

    def _keep(self, state: BlockState) -> None:
        self._codes.update(state.codes)
        self._biases.update(state.biases)
        for held, new in ((self._kernel_factors, state.kernel_factors), (self._step_factors, state.step_factors)):
            for name, factors in new.items():
                held[name] = held[name] * factors if name in held else factors

    def finished(self) -> QuantPlan:
        """The plan with what was learned."""
        plan = self._plan
        activations = dict(plan.activations)
        for root, factors in self._step_factors.items():
            entry = activations[root]
            if entry.grid is not None and bool(np.any(factors != 1)):
                activations[root] = replace(entry, grid=_scaled(entry.grid, factors), error=None)
        weights = self._weights(activations)
        corrections = {**plan.bias_corrections, **{name: self._correction(name, weights[name]) for name in self.biased}}
        notes = [f"{why.format(', '.join(blocks))} their former rounding" for why, blocks in self._former.items()]
        return replace(self.unchanged(*notes), activations=activations, weights=weights, bias_corrections=corrections)

    def unchanged(self, *notes: str) -> QuantPlan:
        """The plan as it was, with notes."""
        return replace(self._plan, notes=tuple(dict.fromkeys([*self._plan.notes, *self._notes, *notes])))

    def _weights(self, activations: Mapping[str, TensorPlan]) -> dict[str, TensorPlan]:
        """Kernels with what was learned; where steps of either changed, they are free of ties again."""
        plan = self._plan
        weights = dict(plan.weights)
        learned = [name for name in self.layers if self._differs(name)]
        if activations != plan.activations:
            learned = list(self.layers)
        for name in learned:
            weights[name] = replace(weights[name], grid=self._grid(name), gain=None, error=None, codes=None)
        if bool(plan.config.get("tie_free", True)):
            kept = [name for name in weights if name not in learned]
            weights = avoid_ties(self._graph, self._placement, activations, weights, kept)
        for name in learned:
            grid = weights[name].grid
            assert grid is not None
            if grid == plan.weights[name].grid and not self._differs(name):
                weights[name] = plan.weights[name]
                continue
            codes = KernelCodes(codes=self._codes[name], method=_METHOD, grid=grid)
            weights[name] = replace(weights[name], codes=codes)
        return weights

    def _differs(self, layer: str) -> bool:
        """Whether the codes or the steps of a kernel are others than in the plan."""
        former = self._plan.weights[layer]
        same = np.array_equal(self._codes[layer], former.codes_of(self._kernel(layer)))
        return not same or self._grid(layer) != former.grid

    def _correction(self, layer: str, entry: TensorPlan) -> BiasCorrection:
        """What is added to a layer's bias from now on."""
        kernel, former = self._kernel(layer), self._plan.bias_corrections.get(layer)
        shift = self._biases[layer].astype(np.float64) - self._begun[layer]
        if former is not None:
            shift = shift + former.shift
        # The network still takes back what a kernel makes of a constant in its input: now the new one.
        lost = self._plan.weights[layer].rounded(kernel).astype(np.float64) - entry.rounded(kernel)
        missing = missing_from_bias(self._graph.find(layer), lost)
        shift = shift if missing is None else shift - missing
        return BiasCorrection(shift=shift.astype(np.float32), method=_METHOD)


def _scaled(grid: Grid, factors: Floats | None) -> Grid:
    """The grid with its limits multiplied, one factor for each of its steps."""
    return grid if factors is None else scaled(grid, factors)
