"""What the rounding of a layer costs at its output: moments of its inputs and of what the float layer makes of them.

With x the patches of the float network, z those that the quantized layers before it give, and y = W x, a kernel Q costs
E|y - Q z|^2 = Q H Q^T - 2 B Q^T + E y^2, where H = E z z^T and B = E y z^T. Where the bias takes up the means, moments
are central. The unrestricted best is B H^-1 and not W: a layer makes up for errors before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from detent.kernels.factor import multiply
from detent.kernels.products import moments

__all__ = ["Objective", "PatchMoments"]

_PRECISION: Final = 1e-6

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]


class PatchMoments:
    """Sums over the patches of one layer and the outputs that belong to them.

    Args:
        groups: of the layer.
        length: d, elements of a patch of one group.
        outputs: of one group.
    """

    def __init__(self, groups: int, length: int, outputs: int) -> None:
        self.count = 0
        self._length = length
        self._sums = np.zeros((groups, length + outputs))
        self._products = np.zeros((groups, length + outputs, length + outputs))

    def add(self, patches: Floats, outputs: Floats) -> None:
        """Count patches `[groups, n, d]` and outputs of the float layer `[groups, n, C_out / groups]`."""
        both = np.concatenate([patches, outputs], axis=2)
        moments(np.ascontiguousarray(both), sums=self._sums, products=self._products)
        self.count += both.shape[1]

    @property
    def finite(self) -> bool:
        """Whether nothing that was counted is NaN or infinite."""
        return bool(np.isfinite(self._sums).all() and np.isfinite(self._products).all())

    def objective(self, *, central: bool) -> Objective:
        """What kernels cost on these patches; moments are `central` where the bias takes up the means."""
        mean, raw = self._sums / self.count, self._products / self.count
        squares = np.diagonal(raw, axis1=1, axis2=2).copy()
        if central:
            raw = raw - mean[:, :, None] * mean[:, None, :]
        d = self._length
        return Objective(
            hessian=np.ascontiguousarray(raw[:, :d, :d]),
            cross=np.ascontiguousarray(raw[:, d:, :d]),
            energy=np.ascontiguousarray(np.diagonal(raw[:, d:, d:], axis1=1, axis2=2)),
            means=mean[:, :d],
            squares=squares[:, :d],
            outputs=mean[:, d:],
            count=self.count,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Objective:
    """The cost of a kernel at a layer's output, group by group; see the head of this file.

    Args:
        hessian: H, float64 `[groups, d, d]`.
        cross: B, float64 `[groups, C_out / groups, d]`.
        energy: E y^2, float64 `[groups, C_out / groups]`.
        means: of the patches, float64 `[groups, d]`.
        squares: their mean squares, float64 `[groups, d]`.
        outputs: means of y, float64 `[groups, C_out / groups]`.
        count: patches behind it.
    """

    hessian: Doubles
    cross: Doubles
    energy: Doubles
    means: Doubles
    squares: Doubles
    outputs: Doubles
    count: int

    @property
    def noise(self) -> Doubles:
        """What the sums of products leave uncertain of a variance, float64 `[groups, d]`: they are of float32."""
        return _PRECISION * self.squares

    def cost(self, rows: Floats) -> float:
        """What rows `[groups, C_out / groups, d]` cost: the mean squared error of an output."""
        wide = rows.astype(np.float64)
        total = self.energy.copy()
        for group, kernel in enumerate(wide):
            through = multiply(kernel, self.hessian[group]) - 2 * self.cross[group]
            total[group] += (through * kernel).sum(axis=1)
        return float(total.mean())

    def bias(self, rows: Floats) -> Doubles:
        """The bias that gives rows the mean outputs of the float layer, float64 `[C_out]`."""
        products = (rows.astype(np.float64) * self.means[:, None]).sum(axis=2)
        return np.asarray((self.outputs - products).reshape(-1))
