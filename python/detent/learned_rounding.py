"""Rounding learned on data, behind a plan: the step between planning and applying for those who have minutes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from detent._arguments import check_plan_is_of, expect, path_of
from detent.config import LearnedConfig
from detent.errors import CalibrationError, ConfigError
from detent.graph import Graph
from detent.graph.side_by_side import sharing_cores
from detent.learned_plan import LearnedPlan
from detent.quantized import assemble
from detent.records.finished import FinishedParts, digest_of_data, digest_of_texts
from detent.records.plan import QuantPlan
from detent.rounding.attention import attention_of_samples
from detent.rounding.block_walk import BlockWalk, Samples
from detent.rounding.blocks import Block, find_blocks
from detent.rounding.kept_values import Shelf
from detent.rounding.learned import Learned, learn_block
from detent.rounding.learning_network import LearningNetwork, whole_network
from detent.statistics import first_samples, progress_bar

__all__ = ["learn_rounding"]

_LEAST: Final = 8
"""Samples without which there is nothing to judge by."""


def learn_rounding(
    graph: Graph,
    plan: QuantPlan,
    data: Any,
    *,
    options: LearnedConfig | Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> QuantPlan:
    """A plan whose kernels, biases and steps were learned together, one block of the network after the other.

    No labels: each block learns to give what the float one gives (Li et al. 2021, BRECQ, arXiv:2102.05426), on the
    inputs that the quantized blocks before it give it. The last eighth of the samples judges: of the roundings met on
    the way the one that is best there is kept, and a note names blocks where that is the former one; the whole plan
    stays as it was if the outputs of the network come no closer to float. Frozen kernels and grids stay as they are,
    kernels of several layers and power-of-two steps too. Same bits on any number of threads.

    Args:
        graph: the captured network.
        plan: made for it, best with kernels rounded in closed form (`detent.round_kernels`).
        data: calibration batches in any form `calibrate` takes.
        options: a `LearnedConfig`, or a mapping of its fields; its `start` is for `detent.quantize`.
        checkpoint: a file for the blocks that are done: written after each, read if it exists. Work that continues ends
            with the same bits; the file stays when it is done.
        progress: show a progress bar, if the error output is a terminal.

    Raises:
        CalibrationError: there are fewer than eight samples, they do not fit the model, a value is not finite, or the
            checkpoint belongs to something else.
        ConfigError: the plan is not for this graph, an option is wrong, or the network draws random numbers.
        FormatError: the checkpoint is damaged, or cannot be written.
    """
    expect(graph, Graph, "graph", "detent.capture")
    check_plan_is_of(plan, graph.fingerprint(), "plan")
    settings = LearnedConfig.of(options, "options")
    # In inference mode, where a caller may be, there are no gradients.
    with torch.inference_mode(False):
        return _learn(graph, plan, data, settings, checkpoint, progress)


def _learn(
    graph: Graph, plan: QuantPlan, data: Any, settings: LearnedConfig, checkpoint: str | Path | None, progress: bool
) -> QuantPlan:
    batches = first_samples(graph, data, settings.samples, parts=4)
    samples = Samples(graph, batches)
    if samples.count < _LEAST or not len(samples.learning):
        raise CalibrationError(
            f"{samples.count} samples cannot be split into some to learn on and some to judge by",
            remedy=f"give {max(_LEAST, 2 * samples.part)} samples or more",
        )
    finished = FinishedParts()
    if checkpoint is not None:
        finished = FinishedParts(
            "learning", path_of(checkpoint, "checkpoint"), _identity(graph, plan, settings, batches)
        )
    learning = _Learning(graph, plan, samples, settings, finished)
    with tempfile.TemporaryDirectory(prefix="detent-") as folder:
        learning.run(Shelf(settings.memory_mb, Path(folder)), progress)
    return learning.judged()


def _identity(
    graph: Graph, plan: QuantPlan, settings: LearnedConfig, batches: Sequence[Sequence[torch.Tensor]]
) -> dict[str, str]:
    """All that the result depends on, by what an error calls it."""
    return {
        "model": graph.fingerprint(),
        "set of options": digest_of_texts([settings.model_dump_json(exclude={"memory_mb"})]),
        "set of data": digest_of_data(batches),
        "plan": digest_of_texts([plan.to_json()]),
    }


def _show_from(show: Callable[[int], None], begun: int, step: int) -> None:
    show(begun + step)


class _Learning:
    """Learns one block after the other."""

    def __init__(
        self, graph: Graph, plan: QuantPlan, samples: Samples, options: LearnedConfig, finished: FinishedParts
    ) -> None:
        self._graph, self._plan, self._samples = graph, plan, samples
        self._options, self._finished = options, finished
        self._outputs = tuple(item.name for item in graph.float_outputs() if item.node.op != "placeholder")
        self._logits = self._outputs if options.loss == "fisher" else ()
        self._learned = LearnedPlan(graph, plan, options)
        self._network = LearningNetwork(
            graph, assemble(graph, plan).graph_module, self._learned.layers, self._learned.biased
        )
        self._learned.begin(self._network.biases, self._network.has_grid)
        if whole_network(graph).draws_random_numbers:
            raise ConfigError(
                "the network draws random numbers, so that what is learned would not be the same again",
                remedy="put the model in evaluation mode, and leave out what draws in that mode too",
            )

    def run(self, shelf: Shelf, progress: bool) -> None:
        """Learn what is not done yet."""
        turns = self._turns()
        blocks = [block for block, _ in turns]
        with (
            sharing_cores(torch.get_num_threads(), "detent-learn", each=1) as pool,
            progress_bar("learning rounding", "steps", sum(one.steps for _, one in turns), wanted=progress) as show,
        ):
            weights = self._weights(blocks, pool)
            walk = BlockWalk(self._graph, self._network, self._samples, shelf, pool, weights, self._logits)
            done = 0
            for number, (block, options) in enumerate(turns):
                self._turn(walk, number, block, options, blocks, pool, partial(_show_from, show, done))
                done += options.steps
                show(done)

    def _turns(self) -> list[tuple[Block, LearnedConfig]]:
        """The blocks to be learned, each with its options."""
        options, layers = self._options, self._learned.layers
        found: list[tuple[Block, LearnedConfig]] = []
        if options.steps:
            found += [(block, options) for block in find_blocks(self._graph, layers, options.granularity)]
        if options.network_steps:
            found += [
                (replace(whole, compared=self._outputs or whole.compared), options.for_network())
                for whole in find_blocks(self._graph, layers, "network")
            ]
        return found

    def _weights(self, blocks: Sequence[Block], pool: ThreadPoolExecutor) -> Mapping[str, Any]:
        if self._options.attention == "none" or not blocks:
            return {}
        values = list(dict.fromkeys(name for block in blocks for name in block.compared))
        samples = self._samples
        return attention_of_samples(self._graph, values, samples.inputs, samples.parts, pool, seed=self._options.seed)

    def _turn(
        self,
        walk: BlockWalk,
        number: int,
        block: Block,
        options: LearnedConfig,
        blocks: Sequence[Block],
        pool: ThreadPoolExecutor,
        show: Callable[[int], None],
    ) -> None:
        data = walk.enter(block)
        parts = self._learned.parts(block, options, self._samples.device)
        parts = parts.with_units(walk.magnitudes(block, parts.start().given(parts)))
        if number < len(self._finished.parts):
            learned = Learned.of(self._finished.parts[number])
        else:
            seed = (options.seed, number)
            learned = learn_block(self._network, block, parts, data, options, pool, seed=seed, show=show)
            self._finished.add(learned.figures())
        self._learned.take(block, learned, data.numbers)
        walk.leave(block, learned.state.given(parts), blocks[number + 1 :])

    def judged(self) -> QuantPlan:
        """The plan as it was learned, if outputs of the network, where there are such numbers, are closer to float."""
        found = self._learned.finished()
        if not self._learned.layers:
            return self._learned.unchanged("no kernel of the network can be learned")
        if not self._outputs:
            return found
        before, after = self._output_errors(self._plan), self._output_errors(found)
        if after < before:
            said = "learned rounding brought the outputs on held-out samples closer to float"
            note = f"{said} (squared error {after:.3g}, {before:.3g} without)"
            return replace(found, notes=tuple(dict.fromkeys([*found.notes, note])))
        note = (
            "learned rounding brought the outputs on held-out samples no closer to float "
            f"(squared error {after:.3g}, {before:.3g} without) and was left out"
        )
        return self._learned.unchanged(note)

    def _output_errors(self, plan: QuantPlan) -> float:
        """Squared errors at the outputs relative to their energy, on the samples that judge."""
        runs = whole_network(self._graph), whole_network(self._graph, assemble(self._graph, plan).graph_module)
        errors: dict[str, float] = {}
        energies: dict[str, float] = {}
        for samples in self._samples.judging_parts:
            floats, rounded = (run(self._samples.inputs.take(samples), []) for run in runs)
            for name, wanted in floats.items():
                exact = wanted.double()
                errors[name] = errors.get(name, 0.0) + float((rounded[name].double() - exact).square().sum())
                energies[name] = energies.get(name, 0.0) + float(exact.square().sum())
        return float(np.mean([errors[name] / (energies[name] or 1.0) for name in errors]))
