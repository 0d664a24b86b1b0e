"""The samples of a block: what comes in, what should come out, and which of them judge."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from detent.rounding.kept_values import KeptValues

__all__ = ["BlockData", "NetworkInputs", "in_parts"]

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class NetworkInputs:
    """What the network takes, for all samples.

    Args:
        tensors: in the order of its inputs.
        axes: of samples; None for an input that is the same for all.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], axes: Sequence[int | None]) -> None:
        self._tensors, self._axes = list(tensors), list(axes)

    def take(self, samples: Integers) -> list[torch.Tensor]:
        """The inputs of some samples."""
        chosen = torch.from_numpy(samples)
        return [
            tensor if axis is None else tensor.index_select(axis, chosen.to(tensor.device))
            for tensor, axis in zip(self._tensors, self._axes, strict=True)
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockData:
    """Samples at a block.

    Args:
        network: inputs of the whole network.
        quantized: the block's inputs as the quantized network gives them, in order.
        floats: the same of the float network.
        targets: of the float network, by value compared.
        energies: their mean squares, by value.
        weights: of samples, by value, mean 1; none weights all alike.
        learning: places of the samples to learn on.
        judging: places of those that judge.
        diverging: values that are logits along their last axis, whose divergence counts in place of squares.
        part: samples run at a time.
        device: where the network runs.
    """

    network: NetworkInputs
    quantized: Sequence[KeptValues]
    floats: Sequence[KeptValues]
    targets: Mapping[str, KeptValues]
    energies: Mapping[str, float]
    weights: Mapping[str, Floats]
    learning: Integers
    judging: Integers
    diverging: Collection[str]
    part: int
    device: torch.device

    @property
    def numbers(self) -> int:
        """How many numbers the block is to learn to give."""
        return len(self.learning) * sum(kept.size for kept in self.targets.values())

    def network_inputs(self, samples: Integers) -> list[torch.Tensor]:
        """Inputs of the network."""
        return self.network.take(samples)

    def inputs(self, samples: Integers) -> list[torch.Tensor]:
        """Inputs of the block as the quantized network gives them."""
        return [one.take(samples).to(self.device) for one in self.quantized]

    def float_inputs(self, samples: Integers) -> list[torch.Tensor]:
        """The same of the float network."""
        return [one.take(samples).to(self.device) for one in self.floats]

    def error(self, found: Mapping[str, torch.Tensor], samples: Integers) -> torch.Tensor:
        """The mean over the values compared: squared errors relative to the energy, or divergences."""
        total = torch.zeros((), device=self.device)
        for name, kept in self.targets.items():
            wanted = kept.take(samples).to(self.device)
            errors = _divergence(found[name], wanted) if name in self.diverging else (found[name] - wanted).square()
            unit = 1.0 if name in self.diverging else self.energies[name]
            if name in self.weights:
                each = torch.from_numpy(self.weights[name][samples]).to(self.device)
                mean = (errors.movedim(kept.axis, 0).reshape(len(samples), -1).mean(1) * each).mean()
            else:
                mean = errors.mean()
            total = total + mean / unit
        return total / len(self.targets)

    def parts(self, samples: Integers) -> list[Integers]:
        """Samples in parts that are run at a time."""
        return in_parts(samples, self.part)


def _divergence(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of predictions from logits along the last axis."""
    ours, theirs = found.log_softmax(-1), wanted.log_softmax(-1)
    return (theirs.exp() * (theirs - ours)).sum(-1)


def in_parts(samples: Integers, size: int) -> list[Integers]:
    """Parts of a size; the last one may be smaller."""
    return [samples[start : start + size] for start in range(0, len(samples), size)]
