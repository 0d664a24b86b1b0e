"""`HessianScores`: how much the loss of the network minds errors, element by element, to weight threshold searches by.

An error e of one element costs about h e^2 / 2, with h its diagonal entry of the Hessian. `detent.estimate_traces`
finds the entries, or the caller has them from elsewhere; only their proportions within a tensor matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from detent.errors import ConfigError

__all__ = ["HessianScores"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class HessianScores:
    """Hessian scores of kernels and activations, for the metric `"hmse"`.

    Args:
        weights: layer name to scores of its kernel's elements, in the kernel's shape.
        activations: value name to the mean score of the elements in each bin of its histogram, `[bins]`, ordered as
            `TensorStatistics.counts`.

    Raises:
        ConfigError: scores that are negative, not finite, or all zero; the error names the tensor.
    """

    weights: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    activations: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for table, kind in (("weights", np.float32), ("activations", np.float64)):
            checked = {name: _checked(scores, kind, name) for name, scores in getattr(self, table).items()}
            object.__setattr__(self, table, checked)

    def __repr__(self) -> str:
        return f"HessianScores({len(self.weights)} kernels, {len(self.activations)} activations)"

    def of_kernel(self, layer: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Scores of a kernel's elements.

        Raises:
            ConfigError: there are none, or they have another shape.
        """
        return np.asarray(_fitting(self.weights, layer, shape, "kernel"))

    def of_activation(self, value: str, bins: int) -> npt.NDArray[np.float64]:
        """Mean scores of the elements in each bin of a value's histogram.

        Raises:
            ConfigError: there are none, or not one for each bin.
        """
        return np.asarray(_fitting(self.activations, value, (bins,), "histogram"))


def _checked(scores: Any, kind: type, where: str) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.array(scores, kind)
    except (TypeError, ValueError):
        raise ConfigError("Hessian scores must be an array of numbers", where=where) from None
    if not bool(np.isfinite(array).all()) or bool((array < 0).any()) or not bool((array > 0).any()):
        raise ConfigError("Hessian scores must be finite, not negative, and not all zero", where=where)
    array.setflags(write=False)
    return array


def _fitting(table: Mapping[str, npt.NDArray[Any]], name: str, shape: tuple[int, ...], what: str) -> npt.NDArray[Any]:
    if name not in table:
        raise ConfigError(
            f"the metric 'hmse' needs Hessian scores of this {what}",
            where=name,
            remedy="pass hessians=detent.estimate_traces(graph, data, stats=stats), or choose another metric",
        )
    if table[name].shape != shape:
        raise ConfigError(
            f"the {what} has shape {list(shape)}, its Hessian scores {list(table[name].shape)}", where=name
        )
    return table[name]
