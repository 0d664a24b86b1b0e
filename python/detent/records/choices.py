"""`Choices`: everything asked for single tensors of one graph, before their grids are searched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from detent.records.choice import TensorChoice
from detent.records.hessians import HessianScores
from detent.records.plan import TensorPlan
from detent.records.widths import Widths

__all__ = ["Choices"]

_NOTHING: Final = TensorChoice()


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What is asked for single tensors; those that are not named are decided as the configuration says.

    Args:
        activations: value name to what is asked for it; only values with a grid of their own.
        weights: layer name to what is asked for its kernel, by the first layer that uses it.
        kept_activations: finished entries that stay as they are, whatever else is asked.
        kept_weights: the same for kernels.
        hessians: scores for the metric `"hmse"`, where that is asked for.
    """

    activations: Mapping[str, TensorChoice] = field(default_factory=dict)
    weights: Mapping[str, TensorChoice] = field(default_factory=dict)
    kept_activations: Mapping[str, TensorPlan] = field(default_factory=dict)
    kept_weights: Mapping[str, TensorPlan] = field(default_factory=dict)
    hessians: HessianScores = field(default_factory=HessianScores)

    def of_activation(self, value: str) -> TensorChoice:
        """What is asked for a value; an empty choice if nothing."""
        return self.activations.get(value, _NOTHING)

    def of_weights(self, layer: str) -> TensorChoice:
        """What is asked for a layer's kernel; an empty choice if nothing."""
        return self.weights.get(layer, _NOTHING)

    def with_widths(self, widths: Widths) -> Choices:
        """These choices with widths for the tensors whose width they leave open.

        Args:
            widths: by the owners of grids.
        """

        def laid_over(asked: Mapping[str, TensorChoice], bits: Mapping[str, int]) -> dict[str, TensorChoice]:
            open_ones = {
                name: replace(choice, bits=width)
                for name, width in bits.items()
                if (choice := asked.get(name, _NOTHING)).leaves_width_open
            }
            return {**asked, **open_ones}

        return replace(
            self,
            activations=laid_over(self.activations, widths.activations),
            weights=laid_over(self.weights, widths.weights),
        )

    @property
    def pinned_weights(self) -> frozenset[str]:
        """Layers whose kernel's grid the stages behind the search leave alone."""
        asked = {layer for layer, choice in self.weights.items() if choice.pinned}
        return frozenset(asked | set(self.kept_weights))
