"""From block to block through both networks: what is kept before each block, and what it should give."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from detent.errors import CalibrationError
from detent.graph import Graph
from detent.rounding.block_data import BlockData, NetworkInputs, in_parts
from detent.rounding.blocks import Block
from detent.rounding.kept_values import KeptValues, Shelf
from detent.rounding.learning_network import BlockRun, Given, LearningNetwork

__all__ = ["BlockWalk", "Samples"]

_PART: Final = 16
_JUDGING: Final = 8
"""One of so many samples judges."""

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


class Samples:
    """The samples: all their inputs, and which of them judge.

    Args:
        graph: the network.
        batches: inputs.
    """

    def __init__(self, graph: Graph, batches: Sequence[Sequence[torch.Tensor]]) -> None:
        axes = [spec.batch_axis for spec in graph.inputs]
        parts = [list(one) for one in zip(*batches, strict=True)]
        tensors = [
            one[0].clone() if axis is None else torch.cat(one, axis) for one, axis in zip(parts, axes, strict=True)
        ]
        self.inputs = NetworkInputs(tensors, axes)
        self.count = next(one.shape[axis] for one, axis in zip(tensors, axes, strict=True) if axis is not None)
        self.part = min(_PART, max(1, self.count // 2)) if graph.batch.dynamic else graph.batch.size
        judging = max(1, self.count // _JUDGING // self.part) * self.part
        self.learning, self.judging = np.arange(self.count - judging), np.arange(self.count - judging, self.count)
        self.device = tensors[0].device

    @property
    def judging_parts(self) -> list[Integers]:
        """Those that judge, in such parts."""
        return in_parts(self.judging, self.part)

    @property
    def parts(self) -> list[Integers]:
        """All of them, in parts that run together."""
        return in_parts(np.arange(self.count), self.part)


class BlockWalk:
    """Goes from block to block.

    Args:
        graph: the float network.
        network: the quantized one.
        samples: the samples.
        shelf: where values are kept.
        pool: threads that use one of torch's threads each.
        weights: of samples, by value.
        diverging: values whose divergence counts in place of squares.
    """

    def __init__(
        self,
        graph: Graph,
        network: LearningNetwork,
        samples: Samples,
        shelf: Shelf,
        pool: ThreadPoolExecutor,
        weights: Mapping[str, Floats],
        diverging: Collection[str],
    ) -> None:
        self._graph, self._network = graph, network
        self._samples, self._shelf, self._pool = samples, shelf, pool
        self._weights, self._diverging = weights, diverging
        self._quantized: dict[str, KeptValues] = {}
        self._floats: dict[str, KeptValues] = {}

    def enter(self, block: Block) -> BlockData:
        """Run the float network through a block: what the block is learned from."""
        wanted = dict.fromkeys([*block.compared, *block.outputs])
        run = BlockRun(
            self._graph.module,
            [self._graph.find(name).node for name in block.inputs],
            {name: self._graph.find(name).node for name in wanted},
            self._graph.name_of,
        )
        inputs = [self._floats[name] for name in block.inputs]
        self._floats.update(self._kept(run, inputs, list(wanted)))
        targets = {name: self._floats[name] for name in block.compared}
        for name, kept in targets.items():
            if not kept.is_finite:
                raise CalibrationError(
                    "a value of the float network holds NaN or infinity",
                    where=name,
                    remedy="look for such values in the data; detent.calibrate names the sample",
                )
        samples = self._samples
        energies = {name: self._pool.submit(self._energy, kept).result() for name, kept in targets.items()}
        return BlockData(
            network=samples.inputs,
            quantized=[self._quantized[name] for name in block.inputs],
            floats=inputs,
            targets=targets,
            energies={name: energy or 1.0 for name, energy in energies.items()},
            weights={name: self._weights[name] for name in targets if name in self._weights},
            learning=samples.learning,
            judging=samples.judging,
            diverging=self._diverging,
            part=samples.part,
            device=samples.device,
        )

    def leave(self, block: Block, given: Given, later: Sequence[Block]) -> None:
        """Run the quantized network through the block as it is now, and forget what no later block reads."""
        read = {name for one in later for name in one.inputs}
        outputs = [name for name in block.outputs if name in read]
        if outputs:
            run = self._network.run_of(block, given=given, watched=outputs)
            inputs = [self._quantized[name] for name in block.inputs]
            self._quantized.update(self._kept(run, inputs, outputs, given.tensors()))
        for kept in (self._quantized, self._floats):
            for name in [name for name in kept if name not in read]:
                kept.pop(name).drop()

    def magnitudes(self, block: Block, given: Given) -> dict[str, float]:
        """Root mean squares of what the block's layers give, from the samples of one part."""
        run = self._network.run_of(block, given=given, watched=block.layers)
        samples = self._samples.judging[: self._samples.part]
        inputs = [self._quantized[name].take(samples) for name in block.inputs]

        def measure() -> dict[str, float]:
            found = run(self._samples.inputs.take(samples), inputs, given.tensors())
            return {name: float(value.double().square().mean().sqrt()) for name, value in found.items()}

        return self._pool.submit(measure).result()

    def _kept(
        self, run: BlockRun, inputs: Sequence[KeptValues], names: Iterable[str], given: Sequence[torch.Tensor] = ()
    ) -> dict[str, KeptValues]:
        found = {name: KeptValues(self._shelf, self._samples.count, self._axis(name)) for name in names}

        def keep(samples: Integers) -> None:
            values = run(self._samples.inputs.take(samples), [one.take(samples) for one in inputs], given)
            for name, kept in found.items():
                kept.put(int(samples[0]), values[name])

        first, *rest = self._samples.parts
        self._pool.submit(keep, first).result()
        for _ in self._pool.map(keep, rest):
            pass
        return found

    def _axis(self, name: str) -> int:
        layout = self._graph.find(name).batch
        assert layout is not None
        return layout.axis

    def _energy(self, kept: KeptValues) -> float:
        judging = self._samples.judging_parts
        total = sum(float(kept.take(samples).double().square().sum()) for samples in judging)
        return total / max(1, kept.size * len(self._samples.judging))
