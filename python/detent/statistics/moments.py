"""Moments of the inputs of all layers with a kernel, from a few patches of each of a few samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from detent.errors import CalibrationError, ConfigError
from detent.graph import Graph, GraphNode
from detent.graph.executor import Executor, Observer
from detent.graph.patches import Windows, added_to_patches, has_rows
from detent.graph.side_by_side import sharing_cores
from detent.kernels.products import moments
from detent.records.moments import InputMoments, LayerMoments
from detent.statistics.batches import Batch
from detent.statistics.data import Data
from detent.statistics.progress import progress_bar
from detent.statistics.samples import first_samples

__all__ = ["collect_moments"]

_LONGEST_BLOCK: Final = 1152
"""Longest part of a patch with one matrix of products: 128 channels of a 3 x 3 kernel, 10 MB."""
_PATCHES_PER_ELEMENT: Final = 4
"""Patches seen for each element of a patch: enough for the matrix to have full rank with room to spare."""
_LEAST_PATCHES: Final = 1024
_SIDES: Final = 2
"""Sums added up apart, from every other batch, and then together: the same bits, however many threads there are."""


def collect_moments(
    graph: Graph, data: Data, *, samples: int = 256, seed: int = 0, progress: bool = True
) -> InputMoments:
    """Run the network over the first samples and add up the outer products of patches of every layer's input.

    Each layer sees patches at random positions, as many as its matrix needs, so that the cost stays below that of the
    pass itself. The same data and seed give the same bits.

    Args:
        graph: the captured network.
        data: calibration batches in any form `detent.calibrate` takes.
        samples: how many of them to use, from the beginning.
        seed: of the positions.
        progress: show a progress bar, if the error output is a terminal.

    Raises:
        CalibrationError: the data are empty or do not fit the model, or a layer's input is not finite.
        ConfigError: `samples` or `seed` is no such number.
    """
    if not isinstance(graph, Graph):
        raise ConfigError(f"`graph` must be a Graph, got a {type(graph).__name__}", remedy="call detent.capture first")
    if type(seed) is not int or seed < 0:
        raise ConfigError(f"`seed` must be a whole number from 0, got {seed!r}")
    batches = first_samples(graph, data, samples, parts=4)
    sizes = [_samples(batch, graph) for batch in batches]
    layers = [node for node in graph.nodes() if has_rows(node)]
    sources = list(dict.fromkeys(layer.data[0] for layer in layers))
    run = _Run(Executor(graph.module, sources, graph.name_of), batches, sizes, seed)
    sides = [[_Tally(graph, layer, sources.index(layer.data[0])) for layer in layers] for _ in range(_SIDES)]
    run.executor.show_constants(run.observer(sides[0], 0))
    # Operators that draw random numbers would draw others if two batches ran at the same time.
    workers = 1 if run.executor.draws_random_numbers else min(_SIDES, torch.get_num_threads())
    with (
        progress_bar("collecting moments", "samples", sum(sizes), wanted=progress) as run.show,
        sharing_cores(workers, "detent-moments") as pool,
    ):
        tasks = [pool.submit(run.add, side, number) for number, side in enumerate(sides)]
        try:
            for task in tasks:
                task.result()
        finally:
            run.stopped = True
    first, *others = sides
    for side in others:
        for tally, other in zip(first, side, strict=True):
            tally.merge(other)
    found = {tally.layer.name: tally.moments() for tally in first if tally.count}
    return InputMoments(found, sum(sizes), graph.fingerprint())


def _samples(batch: list[torch.Tensor], graph: Graph) -> int:
    sizes = [
        tensor.shape[spec.batch_axis]
        for tensor, spec in zip(batch, graph.inputs, strict=True)
        if spec.batch_axis is not None
    ]
    return int(sizes[0]) if sizes else 1


class _Run:
    """The pass over the batches, whose sides run at the same time where there are cores for it."""

    def __init__(self, executor: Executor, batches: list[Batch], sizes: list[int], seed: int) -> None:
        self.executor = executor
        self.stopped = False
        self.show: Callable[[int], None] = lambda done: None
        self._batches = batches
        self._sizes = sizes
        self._seed = seed
        self._seen: list[int] = []

    def add(self, side: list[_Tally], first: int) -> None:
        """Count the batches of one side: every `_SIDES`th from the first."""
        for number in range(first, len(self._batches), _SIDES):
            if self.stopped:
                return
            self.executor.run(self._batches[number], self.observer(side, number))
            self._seen.append(self._sizes[number])
            self.show(sum(self._seen))

    def observer(self, side: list[_Tally], number: int) -> Observer:
        """What counts the values of a batch as they appear."""

        def observe(source: int, value: torch.Tensor) -> None:
            for place, tally in enumerate(side):
                if tally.source == source:
                    # Each layer and batch draws its own positions, whatever else is collected.
                    tally.add(value, len(self._batches), np.random.default_rng([self._seed, place, number]))

        return observe


class _Tally:
    """The sums of one layer, whose input is the value of that number among the sources."""

    def __init__(self, graph: Graph, layer: GraphNode, source: int) -> None:
        assert layer.weight is not None
        kernel = graph.tensor(layer.weight)
        self.layer = layer
        self.source = source
        self.count = 0
        self._windows = Windows(layer, tuple(kernel.shape))
        # A rewrite may add to the patches what is taken back when the plan is applied.
        self._added = added_to_patches(layer, tuple(kernel.shape))
        outputs = kernel.shape[0] if layer.kind != "conv_transposed" else kernel.shape[1] * layer.groups
        self._length = kernel.numel() // outputs
        blocks = -(-self._length // _LONGEST_BLOCK)
        size = -(-self._length // blocks)
        self._sums = np.zeros((layer.groups, blocks, size))
        self._products = np.zeros((layer.groups, blocks, size, size))

    def add(self, value: torch.Tensor, batches: int, random: np.random.Generator) -> None:
        """Count the patches of one batch; `batches` of them come in all."""
        positions = self._windows.positions(value)
        rows = value.shape[0] if value.dim() > 1 else 1
        wanted = max(_LEAST_PATCHES, _PATCHES_PER_ELEMENT * self._products.shape[-1])
        each = min(positions, -(-wanted // (batches * rows)))
        patches = self._windows.at(value, np.sort(random.permutation(positions)[:each]))
        if self._added is not None:
            patches -= self._added  # in place, which keeps their layout
        self.count += patches.shape[1]
        blocks, size = self._sums.shape[1:]
        if blocks == 1:
            moments(patches, sums=self._sums[:, 0], products=self._products[:, 0])
        else:
            self._add_blocks(patches, blocks, size)
        if not bool(np.isfinite(self._sums).all()):
            raise CalibrationError(
                "the input of the layer holds NaN or infinity",
                where=self.layer.name,
                remedy="look for such values in the data; detent.calibrate names the sample",
            )

    def _add_blocks(self, patches: npt.NDArray[np.float32], blocks: int, size: int) -> None:
        lacking = blocks * size - patches.shape[2]
        full = np.pad(patches, [(0, 0), (0, 0), (0, lacking)])
        for group, block in np.ndindex(self._sums.shape[:2]):
            part = np.ascontiguousarray(full[group : group + 1, :, block * size : (block + 1) * size])
            moments(part, sums=self._sums[group, block : block + 1], products=self._products[group, block : block + 1])

    def merge(self, other: _Tally) -> None:
        """Add what another side has seen."""
        self.count += other.count
        self._sums += other._sums
        self._products += other._products

    def moments(self) -> LayerMoments:
        """What was seen."""
        return LayerMoments(count=self.count, sums=self._sums, products=self._products)
