"""Rounding learned block by block: the kernels of a block together, on what the quantized blocks before it give.

Block reconstruction (Li et al. 2021, BRECQ, arXiv:2102.05426, algorithm 1) with soft rounding (Nagel et al. 2020,
AdaRound, arXiv:2004.10568), random dropping of activation rounding (Wei et al. 2022, QDrop, arXiv:2203.05740) and steps
learned along (Esser et al. 2020, LSQ, arXiv:1902.08153). A batch is taken in parts of fixed size, each in a thread of
its own, and their gradients are added in order: the same bits on any number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from detent.config import LearnedConfig
from detent.rounding.block_data import BlockData
from detent.rounding.block_state import BlockParts, BlockState, Trainee
from detent.rounding.blocks import Block
from detent.rounding.dropping import Dropping
from detent.rounding.learned_kernels import Anneal
from detent.rounding.learning_network import BlockRun, Given, LearningNetwork

__all__ = ["Learned", "learn_block"]

_CHECKS: Final = 10
"""How often in a block the present rounding is judged."""
_BETAS: Final = (20.0, 2.0)
"""Exponents of the regularizer, from the end of the warm-up on (AdaRound's)."""
_ENDING: Final = 0.05
"""Last learning rate, in parts of the first."""
_DROPPED: Final = 128
"""Of 256 entries, how many stay unrounded (QDrop's half)."""

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Learned:
    """What became of a block.

    Args:
        state: its rounding; what it was where nothing was better.
        before: error on the samples that judge as it was, relative to the values compared.
        after: as it is now.
        steps: taken.
        diverged: the loss was not finite, which ended it.
    """

    state: BlockState
    before: float
    after: float
    steps: int
    diverged: bool = False

    @property
    def better(self) -> bool:
        """Whether anything was gained."""
        return self.after < self.before

    def figures(self) -> dict[str, npt.NDArray[Any]]:
        """The same as arrays by name."""
        facts = {
            "before": np.array(self.before, np.float64),
            "after": np.array(self.after, np.float64),
            "steps": np.array(self.steps, np.int64),
            "diverged": np.array(int(self.diverged), np.int64),
        }
        tables = {item.name: getattr(self.state, item.name) for item in fields(self.state)}
        return facts | {f"{table}.{name}": array for table, some in tables.items() for name, array in some.items()}

    @classmethod
    def of(cls, figures: Mapping[str, npt.NDArray[Any]]) -> Learned:
        """From such arrays."""
        tables: dict[str, dict[str, npt.NDArray[Any]]] = {item.name: {} for item in fields(BlockState)}
        for key, array in figures.items():
            table, _, name = key.partition(".")
            if name:
                tables[table][name] = array
        return cls(
            state=BlockState(**tables),
            before=float(figures["before"]),
            after=float(figures["after"]),
            steps=int(figures["steps"]),
            diverged=bool(figures["diverged"]),
        )


def learn_block(
    network: LearningNetwork,
    block: Block,
    parts: BlockParts,
    data: BlockData,
    options: LearnedConfig,
    pool: ThreadPoolExecutor,
    *,
    seed: tuple[int, ...],
    show: Callable[[int], None] = lambda step: None,
) -> Learned:
    """Learn the rounding of a block; the best one of those judged on the way is kept.

    Args:
        network: the quantized network.
        block: of it.
        parts: what may change, and how it is now.
        data: samples to learn on and to judge by.
        options: of learning.
        pool: threads that use one of torch's threads each.
        seed: of the order of samples and of what is dropped.
        show: told how many steps are done.
    """
    judge = _Judge(network, block, data, pool)
    best = parts.start()
    least = before = judge.error(best.given(parts))
    if not before > 0:
        return Learned(state=best, before=before, after=before, steps=0)
    trainee = Trainee(parts, options)
    # No sample twice in a batch.
    count = max(1, min(options.batch, len(data.learning)) // data.part)
    learners = [_Part(network, block, data, trainee, options, before) for _ in range(count)]
    order = _Order(data.learning, count * data.part, seed)
    every, without = max(1, options.steps // _CHECKS), 0
    step = 0
    for step in range(1, options.steps + 1):
        samples = np.split(order.take(), count)
        given = trainee.given()
        at = step / options.steps
        seeds = [(*seed, step, place) for place in range(count)]
        results = list(
            pool.map(lambda one, *rest: one.gradients(*rest), learners, [given] * count, samples, seeds, [at] * count)
        )
        if not all(math.isfinite(loss) for loss, _ in results):
            return Learned(state=best, before=before, after=least, steps=step, diverged=True)
        gradients = [sum(some[1:], some[0]) / count for some in zip(*(found for _, found in results), strict=True)]
        show(step)
        trainee.move(given.with_tensors(gradients), _anneal(step, options, parts.elements))
        if step % every and step != options.steps:
            continue
        present = trainee.state()
        error = judge.error(present.given(parts))
        if error < least:
            best, least, without = present, error, 0
        # Soft weights are not where they go before the regularizer has drawn them to codes.
        elif options.method != "soft" or at > 0.5:
            without += 1
            if without >= options.patience:
                break
    return Learned(state=best, before=before, after=least, steps=step)


def _anneal(step: int, options: LearnedConfig, elements: int) -> Anneal:
    at = step / options.steps
    rate = _ENDING + (1 - _ENDING) * 0.5 * (1 + math.cos(math.pi * (step - 1) / options.steps))
    past = (at - options.warm_up) / (1 - options.warm_up)
    first, last = _BETAS
    return Anneal(
        step=step,
        rate=rate,
        beta=first + (last - first) * min(max(past, 0.0), 1.0),
        weight=options.regularization / max(1, elements) if past >= 0 else 0.0,
    )


class _Order:
    """Samples in random order, again and again."""

    def __init__(self, samples: Integers, batch: int, seed: tuple[int, ...]) -> None:
        self._random = np.random.default_rng(list(seed))
        self._samples, self._batch = samples, batch
        self._waiting = np.zeros(0, np.int64)

    def take(self) -> Integers:
        """The next batch."""
        while len(self._waiting) < self._batch:
            self._waiting = np.concatenate([self._waiting, self._random.permutation(self._samples)])
        taken, self._waiting = self._waiting[: self._batch], self._waiting[self._batch :]
        return taken


class _Part:
    """Computes gradients for parts of batches; one at a time."""

    def __init__(
        self,
        network: LearningNetwork,
        block: Block,
        data: BlockData,
        trainee: Trainee,
        options: LearnedConfig,
        unit: float,
    ) -> None:
        self._data, self._options, self._unit = data, options, unit
        self._dropping = Dropping()
        self._run = network.run_of(
            block, given=trainee.given(), gradients=True, functions=network.drops(block.values, self._dropping)
        )

    def gradients(
        self, given: Given, samples: Integers, seed: tuple[int, ...], at: float
    ) -> tuple[float, list[torch.Tensor]]:
        """The loss, in parts of that at the start, and its gradients, in the order of what is given."""
        data, dropping = self._data, self._dropping
        if self._options.activations == "drop":
            dropping.random, dropping.below = np.random.default_rng(list(seed)), _DROPPED
        elif self._options.activations == "gradual":
            dropping.share = at
        inputs = [
            dropping.mix(float_, quantized)
            for float_, quantized in zip(data.float_inputs(samples), data.inputs(samples), strict=True)
        ]
        leaves = [tensor.detach().requires_grad_() for tensor in given.tensors()]
        with torch.enable_grad():
            found = self._run(data.network_inputs(samples), inputs, leaves)
            loss = data.error(found, samples) / self._unit
            loss.backward()  # type: ignore[no-untyped-call]
        gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        return float(loss.detach()), gradients


class _Judge:
    """The error of a rounding on the samples that take no part in learning."""

    def __init__(self, network: LearningNetwork, block: Block, data: BlockData, pool: ThreadPoolExecutor) -> None:
        self._network, self._block, self._data, self._pool = network, block, data, pool
        self._run: BlockRun | None = None

    def error(self, given: Given) -> float:
        """Mean squared error at the values compared, relative to their energy."""
        if self._run is None:
            self._run = self._network.run_of(self._block, given=given)
        run, data = self._run, self._data

        def of(samples: Integers) -> float:
            found = run(data.network_inputs(samples), data.inputs(samples), given.tensors())
            return float(data.error(found, samples)) * len(samples)

        parts = data.parts(data.judging)
        return math.fsum(self._pool.map(of, parts)) / len(data.judging)
