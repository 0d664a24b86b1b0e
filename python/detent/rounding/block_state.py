"""What of a block is learned: codes, biases and steps, how they are at the start, on the way and at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from detent.config import LearnedConfig
from detent.records.grid import Grid
from detent.rounding.learned_kernels import Anneal, LearnedKernel, SoftKernel, SoftNeighbours, StraightKernel
from detent.rounding.learning_network import Given

__all__ = ["BlockParts", "BlockState", "KernelPart", "StepPart", "Trainee"]

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[Any]

_MOST: Final = 2.0
"""Steps are not multiplied or divided by more than this."""


@dataclass(frozen=True, kw_only=True, eq=False)
class KernelPart:
    """A kernel at the start.

    Args:
        kernel: float32, as the layer has it.
        codes: shaped like it.
        grid: theirs.
        steps: whether these may change.
    """

    kernel: Floats
    codes: Codes
    grid: Grid
    steps: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class StepPart:
    """The grid of activations at the start.

    Args:
        grid: the grid.
        values: of the block, that are on it.
    """

    grid: Grid
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockState:
    """A rounding of a block.

    Args:
        codes: of kernels, by layer.
        kernel_factors: what the steps of kernels at the start are multiplied by, float32 `[n]`, by layer.
        biases: float32 `[C_out]`, by layer.
        step_factors: what the steps of activations are multiplied by, float32 `[n]`, by the value that has the grid.
    """

    codes: Mapping[str, Codes] = field(default_factory=dict)
    kernel_factors: Mapping[str, Floats] = field(default_factory=dict)
    biases: Mapping[str, Floats] = field(default_factory=dict)
    step_factors: Mapping[str, Floats] = field(default_factory=dict)

    def given(self, parts: BlockParts) -> Given:
        """What a run with this rounding is given."""
        kernels = {}
        for name, codes in self.codes.items():
            grid = parts.kernels[name].grid
            values = torch.from_numpy(grid.values(np.ascontiguousarray(codes, grid.storage)))
            factors = self.kernel_factors.get(name)
            kernels[name] = values if factors is None else values * spread(factors, grid, values)
        return Given(
            kernels={name: kernel.to(parts.device) for name, kernel in kernels.items()},
            biases={name: torch.from_numpy(bias).to(parts.device) for name, bias in self.biases.items()},
            scales=parts.scales(self.step_factors),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockParts:
    """What of a block may change, and how it is at the start.

    Args:
        kernels: by layer.
        biases: float32 `[C_out]`, by layer.
        bias_units: magnitudes of the layers' outputs.
        steps: by the value that has the grid.
        device: where the network runs.
    """

    kernels: Mapping[str, KernelPart]
    biases: Mapping[str, Floats]
    bias_units: Mapping[str, float]
    steps: Mapping[str, StepPart]
    device: torch.device

    def with_units(self, units: Mapping[str, float]) -> BlockParts:
        """The same with magnitudes of the layers' outputs."""
        return replace(self, bias_units=units)

    @property
    def elements(self) -> int:
        """Of all kernels."""
        return sum(part.codes.size for part in self.kernels.values())

    def start(self) -> BlockState:
        """The rounding at the start."""
        return BlockState(
            codes={name: part.codes for name, part in self.kernels.items()},
            kernel_factors={
                name: np.ones(part.grid.size, np.float32) for name, part in self.kernels.items() if part.steps
            },
            biases=self.biases,
            step_factors={name: np.ones(part.grid.size, np.float32) for name, part in self.steps.items()},
        )

    def scales(self, factors: Mapping[str, Floats]) -> dict[str, torch.Tensor]:
        """Scales of all values that are on grids with these factors; values of one grid have one tensor."""
        found = {}
        for name, part in self.steps.items():
            scale = torch.from_numpy(part.grid.scale * factors[name]).to(self.device)
            found.update(dict.fromkeys(part.values, scale))
        return found


def spread(of_steps: Floats, grid: Grid, like: torch.Tensor) -> torch.Tensor:
    """Numbers `[n]`, one for each step of a kernel's grid, along the axes of the kernel."""
    numbers = torch.from_numpy(of_steps)
    if grid.axis is None:
        return numbers
    along = [1] * like.dim()
    along[grid.axis] = like.shape[grid.axis]
    if grid.group_size is None:
        return numbers.reshape(along)
    inputs = 1 if grid.axis == 0 else 0
    each = numbers.reshape(like.shape[grid.axis], -1).repeat_interleave(grid.group_size, dim=1)
    along[inputs] = like.shape[inputs]
    return (each if grid.axis == 0 else each.T).reshape(along)


class Trainee:
    """A block's parts on their way.

    Args:
        parts: how they are at the start.
        options: of learning.
    """

    def __init__(self, parts: BlockParts, options: LearnedConfig) -> None:
        self._parts, self._options = parts, options
        self._kernels: dict[str, LearnedKernel] = {name: self._learner(part) for name, part in parts.kernels.items()}
        self._biases = {name: torch.from_numpy(bias.copy()) for name, bias in parts.biases.items()}
        start = parts.start()
        self._kernel_logs = {name: torch.zeros(len(one)) for name, one in start.kernel_factors.items()}
        self._step_logs = {name: torch.zeros(len(one)) for name, one in start.step_factors.items()}
        self._rates = [
            *((tensor, options.bias_rate * parts.bias_units[name]) for name, tensor in self._biases.items()),
            *((tensor, options.kernel_step_rate) for tensor in self._kernel_logs.values()),
            *((tensor, options.step_rate) for tensor in self._step_logs.values()),
        ]
        groups = [{"params": [tensor], "lr": rate} for tensor, rate in self._rates]
        self._optimizer = torch.optim.Adam(groups) if groups else None

    def _learner(self, part: KernelPart) -> LearnedKernel:
        device = self._parts.device
        if self._options.method == "straight_through":
            return StraightKernel(part.kernel, part.codes, part.grid, device)
        if part.grid.table is None and device.type == "cpu":
            return SoftKernel(part.kernel, part.codes, part.grid)
        return SoftNeighbours(part.kernel, part.codes, part.grid, device)

    def given(self) -> Given:
        """What a run is given while they learn."""
        self._values = {name: kernel.value() for name, kernel in self._kernels.items()}
        kernels = dict(self._values)
        for name, factors in self._factors(self._kernel_logs).items():
            grid = self._parts.kernels[name].grid
            kernels[name] = kernels[name] * spread(factors, grid, kernels[name]).to(self._parts.device)
        return Given(
            kernels=kernels,
            biases={name: bias.to(self._parts.device) for name, bias in self._biases.items()},
            scales=self._parts.scales(self._factors(self._step_logs)),
        )

    def move(self, gradients: Given, at: Anneal) -> None:
        """One step down gradients with respect to what `given` gave last."""
        kernel_factors = self._factors(self._kernel_logs)
        # Soft weights have their way to go until the end: the regularizer is felt last of all.
        falling = 1.0 if self._options.method == "soft" else at.rate
        of_kernels = replace(at, rate=falling * self._options.rounding_rate)
        for name, kernel in self._kernels.items():
            gradient = gradients.kernels[name]
            factors = kernel_factors.get(name)
            if factors is not None:
                grid = self._parts.kernels[name].grid
                wide = spread(factors, grid, gradient).to(gradient.device)
                # The value is the factor, e to the log, times the kernel's.
                self._kernel_logs[name].grad = _sum_by_step(gradient * wide * self._values[name], grid)
                gradient = gradient * wide
            kernel.move(gradient.contiguous(), of_kernels)
        for name, bias in self._biases.items():
            bias.grad = gradients.biases[name].cpu()
        for name, part in self._parts.steps.items():
            scale = torch.from_numpy(part.grid.scale * self._factors(self._step_logs)[name])
            # Values of one grid were given one tensor, but each has a gradient of its own.
            total = torch.stack([gradients.scales[value].cpu() for value in part.values]).sum(0)
            self._step_logs[name].grad = total * scale
        if self._optimizer is not None:
            for group, (_, rate) in zip(self._optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate * at.rate
            self._optimizer.step()

    def state(self) -> BlockState:
        """The rounding they would have now."""
        return BlockState(
            codes={name: kernel.codes() for name, kernel in self._kernels.items()},
            kernel_factors=self._factors(self._kernel_logs),
            biases={name: bias.numpy().copy() for name, bias in self._biases.items()},
            step_factors=self._factors(self._step_logs),
        )

    @staticmethod
    def _factors(logs: Mapping[str, torch.Tensor]) -> dict[str, Floats]:
        return {name: log.exp().clamp(1 / _MOST, _MOST).numpy() for name, log in logs.items()}


def _sum_by_step(terms: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Sums of a number for each element of a kernel over those that share a step, `[n]`, on any number of threads."""
    numbers = terms.cpu().numpy()
    first = numbers if grid.axis is None else np.moveaxis(numbers, grid.axis, 0)
    return torch.from_numpy(first.reshape(grid.size, -1).sum(axis=1))
