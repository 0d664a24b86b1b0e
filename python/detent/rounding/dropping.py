"""Activations rounded in part while a block learns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import detent.graph.operators  # noqa: F401  (registers torch.ops.detent)
from detent.kernels.dropping import dropped_gradients, dropped_round
from detent.kernels.perturbation import TensorGrid

__all__ = ["Dropping"]


@dataclass
class Dropping:
    """Leaves values unrounded in a run: entries at random (QDrop, Wei et al. 2022, arXiv:2203.05740), or all in part.

    Args:
        random: draws them; None drops none.
        below: entries stay as they are for which a byte below this is drawn.
        share: of the rounding error that the others have.
    """

    random: np.random.Generator | None = None
    below: int = 0
    share: float = 1.0

    def round(self, operator: Callable[..., torch.Tensor], value: torch.Tensor, *grid: Any) -> torch.Tensor:
        """What goes on in place of `operator(value, *grid)`, an operator that rounds."""
        compiled = operator == torch.ops.detent.fake_quantize.default and value.device.type == "cpu"
        if not compiled or self.share < 1 or grid[0].numel() != 1 or not _is_dense(value):
            return self.mix(value, operator(value, *grid))
        scale, zero_point, qmin, qmax = grid[:4]
        found: torch.Tensor = _Round.apply(value, scale, int(zero_point), qmin, qmax, self._drawn(value), self.below)  # type: ignore[no-untyped-call]
        return found

    def mix(self, plain: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
        """What goes on in place of the rounded value; whole numbers are not mixed."""
        if not plain.is_floating_point():
            return rounded
        if self.share < 1:
            rounded = torch.lerp(plain, rounded, self.share)
        drawn = self._drawn(plain)
        return rounded if drawn is None else torch.where(drawn < self.below, plain, rounded)

    def _drawn(self, value: torch.Tensor) -> torch.Tensor | None:
        """A byte for each entry, laid out as the value."""
        if self.random is None or not self.below:
            return None
        drawn = torch.frombuffer(bytearray(self.random.bytes(value.numel())), dtype=torch.uint8).to(value.device)
        return drawn.as_strided(value.shape, torch.empty_like(value, device="meta").stride())


class _Round(torch.autograd.Function):
    """The compiled kernel, with its gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        value: torch.Tensor,
        scale: torch.Tensor,
        zero_point: int,
        qmin: int,
        qmax: int,
        drawn: torch.Tensor | None,
        below: int,
    ) -> torch.Tensor:
        ctx.grid, ctx.below = TensorGrid(float(scale), zero_point, qmin, qmax), below
        ctx.save_for_backward(value, scale, drawn)
        out = torch.empty_like(value)
        bytes_ = None if drawn is None else drawn.numpy()
        dropped_round(value.numpy(), ctx.grid, drawn=bytes_, below=below, out=out.numpy())
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        value, scale, drawn = ctx.saved_tensors
        if gradient.stride() != value.stride():
            gradient = torch.empty_like(value).copy_(gradient)
        out = torch.empty_like(value)
        bytes_ = None if drawn is None else drawn.numpy()
        _, step = dropped_gradients(
            gradient.numpy(), value.numpy(), ctx.grid, drawn=bytes_, below=ctx.below, out=out.numpy()
        )
        return out, torch.full_like(scale, step), None, None, None, None, None


def _is_dense(value: torch.Tensor) -> bool:
    """Whether a value fills its memory without gaps, in the order that `empty_like` gives."""
    return value.stride() == torch.empty_like(value, device="meta").stride()
