"""The narrowest widths that keep a metric of the user's: raised tensor by tensor, most sensitive first."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from detent.config import MixedPrecisionConfig, QuantizationConfig
from detent.edit import Rule
from detent.errors import ConfigError
from detent.graph import Graph
from detent.mixed_precision import assignment_of, widths_of
from detent.mixing import Scored, prepare
from detent.quantized import QuantizedModel, assemble
from detent.records.moments import InputMoments
from detent.records.sensitivity import SensitivityTable
from detent.records.statistics import Statistics
from detent.records.widths import Widths
from detent.scoring import Request
from detent.statistics import progress_bar
from detent.targets import Target

__all__ = ["KeptAccuracy", "Trial", "keep_accuracy"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One evaluation.

    Args:
        raised: the tensors raised since the trial before, with their new widths in words.
        metric: the user's metric.
    """

    raised: tuple[str, ...]
    metric: float


@dataclass(frozen=True, kw_only=True)
class KeptAccuracy:
    """What was found.

    Args:
        widths: the narrowest widths tried that keep the metric; the widest there are if none do.
        kept: whether they keep it.
        metric_of_float: the metric of the float network.
        metric: that of the quantized one.
        trials: every evaluation, in order.
    """

    widths: Widths
    kept: bool
    metric_of_float: float
    metric: float
    trials: tuple[Trial, ...]

    def __str__(self) -> str:
        lines = [f"float {self.metric_of_float:.6g}"]
        lines += [f"{trial.metric:.6g}  {', '.join(trial.raised) or 'at the start'}" for trial in self.trials]
        return "\n".join([*lines, "kept" if self.kept else "not kept with the widest widths"])


def keep_accuracy(
    graph: Graph,
    stats: Statistics,
    data: Any,
    evaluate: Callable[[nn.Module], float],
    tolerated_drop: float,
    *,
    start: Widths | None = None,
    raised_at_once: int = 1,
    target: str | Path | Target = "default",
    config: QuantizationConfig | Mapping[str, Any] | None = None,
    mixed_precision: MixedPrecisionConfig | Mapping[str, Any] | None = None,
    rules: Sequence[Rule] = (),
    moments: InputMoments | None = None,
    table: SensitivityTable | None = None,
    progress: bool = True,
    **options: Any,
) -> KeptAccuracy:
    """Raise widths, most sensitive tensor first, until a metric is kept. Give the result's `widths` to `detent.plan`.

    Every step raises the tensors whose next wider candidate saves most of the expected error, plans and evaluates.

    Args:
        graph: the captured network.
        stats: what calibration saw of it.
        data: calibration batches in any form `detent.calibrate` takes.
        evaluate: measures a model, higher is better, e.g. its accuracy on validation data; it is also given the float
            network.
        tolerated_drop: how far below that of the float network the metric may be, in its own unit.
        start: widths to begin with, e.g. those of `choose_widths`; None takes the narrowest candidates.
        raised_at_once: tensors raised between two evaluations; more cost fewer evaluations and may raise too many.
        target: name of a built-in target or path of a target file.
        config: options; single ones can be given by keyword and take precedence.
        mixed_precision: options of scoring, and candidate widths.
        rules: what to decide otherwise for some tensors; a width they ask for is fixed.
        moments: what `detent.collect_moments` saw, for options that need it.
        table: scores of this graph, made by `score` with the same options; None makes them.
        progress: show progress on a terminal.
        **options: fields of `QuantizationConfig`.

    Raises:
        ConfigError: a negative or infinite drop, a metric that is not a finite number, or as `choose_widths`.
    """
    _check(evaluate, tolerated_drop, raised_at_once)
    settings = QuantizationConfig.resolve(config, options)
    request = Request.of(
        graph, stats, target, settings, mixed_precision, rules=rules, moments=moments, progress=progress
    )
    scored = prepare(request, data, table)
    least = _measured(evaluate, graph.module) - tolerated_drop
    steps = _raises(scored, start)
    trials: list[Trial] = []
    with progress_bar("keeping accuracy", "evaluations", -(-len(steps) // raised_at_once), wanted=progress) as show:
        done = 0
        while True:
            names = tuple(step.words for step in steps[max(0, done - raised_at_once) : done])
            widths = widths_of(scored.table, steps.assignment(done), scored.settled)
            trials.append(Trial(raised=names, metric=_measured(evaluate, assemble(graph, request.plan(widths)))))
            kept = trials[-1].metric >= least
            if kept or done >= len(steps):
                break
            done = min(done + raised_at_once, len(steps))
            show(len(trials))
    return KeptAccuracy(
        widths=widths,
        kept=kept,
        metric_of_float=least + tolerated_drop,
        metric=trials[-1].metric,
        trials=tuple(trials),
    )


def _check(evaluate: object, tolerated_drop: object, raised_at_once: object) -> None:
    if not callable(evaluate):
        raise ConfigError("`evaluate` must be a function from a model to a number")
    number = isinstance(tolerated_drop, int | float) and not isinstance(tolerated_drop, bool)
    if not number or not 0 <= float(tolerated_drop) < math.inf:  # type: ignore[arg-type]
        raise ConfigError(f"`tolerated_drop` must be a finite number from 0, got {tolerated_drop!r}")
    if type(raised_at_once) is not int or raised_at_once < 1:
        raise ConfigError(f"`raised_at_once` must be a whole number from 1, got {raised_at_once!r}")


def _measured(evaluate: Callable[[nn.Module], float], model: nn.Module | QuantizedModel) -> float:
    try:
        metric = float(evaluate(model))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"`evaluate` must return a number: {error}") from None
    if not math.isfinite(metric):
        raise ConfigError(f"`evaluate` returned {metric}", remedy="return a finite number, higher for a better model")
    return metric


@dataclass(frozen=True)
class _Raise:
    slot: int
    choice: int
    words: str


class _Steps(list[_Raise]):
    """The raises in order, from a first assignment."""

    def __init__(self, first: Sequence[int], steps: Sequence[_Raise]) -> None:
        super().__init__(steps)
        self._first = first

    def assignment(self, done: int) -> list[int]:
        """The candidates of all slots after some raises."""
        choices = list(self._first)
        for step in self[:done]:
            choices[step.slot] = step.choice
        return choices


def _raises(scored: Scored, start: Widths | None) -> _Steps:
    """All raises from the start to the widest candidates: what saves most of the expected error first."""
    table = scored.table
    first = [len(one.bits) - 1 for one in table] if start is None else list(assignment_of(table, start))
    choices, steps = list(first), []
    tensors = list(table)
    while any(choices):
        # Candidates are listed from wide to narrow, so a raise is one place to the left.
        gains = [
            (float(one.scores[choice] - one.scores[choice - 1]), -slot)
            for slot, (one, choice) in enumerate(zip(tensors, choices, strict=True))
            if choice
        ]
        slot = -max(gains)[1]
        choices[slot] -= 1
        bits = tensors[slot].bits[choices[slot]]
        steps.append(_Raise(slot, choices[slot], f"{tensors[slot].role} of {tensors[slot].name} to {bits} bits"))
    return _Steps(first, steps)
