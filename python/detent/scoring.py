"""Scores of candidate widths: what every width that a target offers for a tensor does to the outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from detent._arguments import expect, fingerprint_of, path_of
from detent.candidate_widths import Setting, setting_of, widths_in
from detent.config import Budget, MixedPrecisionConfig, QuantizationConfig
from detent.edit import Rule
from detent.errors import ConfigError
from detent.graph import Graph
from detent.mixed_precision import LatencyTable
from detent.planning import plan
from detent.records.finished import FinishedParts, digest_of_data, digest_of_texts
from detent.records.moments import InputMoments
from detent.records.plan import QuantPlan
from detent.records.sensitivity import SensitivityTable
from detent.records.statistics import Statistics
from detent.records.widths import Widths
from detent.sensitivity import (
    Candidates,
    estimate_traces,
    hawq_scores,
    score_by_measuring,
    score_by_probes,
)
from detent.statistics import first_samples, progress_bar
from detent.targets import Target

__all__ = ["Request", "candidate_plans", "checked_table", "make_table", "score"]


Batches = Sequence[Sequence[torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A network and all that was asked for it, resolved and checked once.

    Args:
        setting: target, options, rules, and what they decide.
        stats: what calibration saw of the network.
        moments: what `detent.collect_moments` saw, for options that need it.
        progress: show progress on a terminal.
    """

    setting: Setting
    stats: Statistics
    moments: InputMoments | None
    progress: bool

    @classmethod
    def of(
        cls,
        graph: Graph,
        stats: Statistics,
        target: str | Path | Target,
        config: QuantizationConfig,
        mixed_precision: MixedPrecisionConfig | Mapping[str, Any] | None,
        *,
        rules: Sequence[Rule],
        moments: InputMoments | None,
        progress: bool,
        budget: Budget | None = None,
        latency: LatencyTable | str | Path | None = None,
    ) -> Request:
        """A request from the arguments that all functions of mixed precision share.

        Raises:
            ConfigError: a wrong target, option or rule, statistics of another graph, or as `setting_of`.
        """
        setting = setting_of(graph, target, config, mixed_precision, rules, budget, latency)
        fingerprint_of(graph, stats)
        return cls(setting=setting, stats=stats, moments=moments, progress=progress)

    def plan(self, widths: Widths) -> QuantPlan:
        """The plan with these widths."""
        setting = self.setting
        return plan(
            setting.graph,
            self.stats,
            target=setting.named,
            config=setting.config,
            rules=setting.rules,
            moments=self.moments,
            widths=widths,
        )


def score(
    graph: Graph,
    stats: Statistics,
    data: Any,
    *,
    target: str | Path | Target = "default",
    config: QuantizationConfig | Mapping[str, Any] | None = None,
    mixed_precision: MixedPrecisionConfig | Mapping[str, Any] | None = None,
    rules: Sequence[Rule] = (),
    moments: InputMoments | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    **options: Any,
) -> SensitivityTable:
    """Score every width that the target offers for every tensor: what it does to the outputs of the network.

    Args:
        graph: the captured network.
        stats: what calibration saw of it.
        data: calibration batches in any form `detent.calibrate` takes.
        target: name of a built-in target or path of a target file.
        config: options; single ones can be given by keyword and take precedence.
        mixed_precision: options of scoring: samples, probes, loss, candidate widths.
        rules: what to decide otherwise for some tensors; a width they ask for is the only candidate.
        moments: what `detent.collect_moments` saw, for options that need it.
        checkpoint: file for the batches that are done. If it exists, scoring goes on behind them, and the result is the
            same bits as without the interruption. It is kept when the run is complete. It knows a `metric` by its name.
        progress: show progress on a terminal.
        **options: fields of `QuantizationConfig`.

    Raises:
        ConfigError: no tensor has a choice, no output carries a gradient, or as `detent.plan`.
        CalibrationError: the data do not fit the model, a gradient is not finite, or the checkpoint is of another run.
        FormatError: the checkpoint is damaged, or cannot be written.
    """
    settings = QuantizationConfig.resolve(config, options)
    request = Request.of(
        graph, stats, target, settings, mixed_precision, rules=rules, moments=moments, progress=progress
    )
    return make_table(request, candidate_plans(request), data, checkpoint)


def candidate_plans(request: Request) -> list[QuantPlan]:
    """Plans in which the tensors take their candidate widths in turn, the widest first.

    Raises:
        ConfigError: no tensor has a choice, or as `detent.plan`.
    """
    kernels, values = widths_in(request.setting)
    rounds = max(map(len, [*kernels.values(), *values.values()]))

    def turn(table: Mapping[str, tuple[int, ...]], number: int) -> dict[str, int]:
        return {name: widths[min(number, len(widths) - 1)] for name, widths in table.items()}

    return [
        request.plan(Widths(weights=turn(kernels, number), activations=turn(values, number)))
        for number in range(rounds)
    ]


def make_table(
    request: Request, plans: Sequence[QuantPlan], data: Any, checkpoint: str | Path | None
) -> SensitivityTable:
    """The scores of the widths that plans hold, as the options ask.

    Raises:
        ConfigError, CalibrationError, FormatError: as `score`.
    """
    options = request.setting.options
    graph, placement = request.setting.graph, request.setting.placement
    if options.scores == "hawq":
        return _curvature_table(request, plans, data)
    batches = first_samples(graph, data, options.samples, parts=2)
    finished = FinishedParts()
    if checkpoint is not None:
        finished = FinishedParts("scoring", path_of(checkpoint, "checkpoint"), _identity(request, plans, batches))
    with progress_bar("scoring widths", "batches", len(batches), wanted=request.progress) as show:
        if options.scores == "measured":
            return score_by_measuring(
                graph, placement, plans, batches, **options.measuring, show=show, finished=finished
            )
        return score_by_probes(
            graph,
            placement,
            plans,
            batches,
            probes=options.probes,
            loss=options.loss,
            seed=options.seed,
            show=show,
            finished=finished,
        )


def _curvature_table(request: Request, plans: Sequence[QuantPlan], data: Any) -> SensitivityTable:
    """HAWQ scores, from traces of the tensors with a choice."""
    options = request.setting.options
    graph, placement = request.setting.graph, request.setting.placement
    candidates = Candidates.of(graph, placement, plans)
    batches = first_samples(graph, data, options.samples, parts=1)
    with progress_bar("estimating traces", "backward passes", None, wanted=request.progress) as show:
        traces = estimate_traces(
            graph,
            placement,
            batches,
            values=[name for slot in candidates.slots if slot.role == "activations" for name in slot.grids],
            kernels=[slot.name for slot in candidates.slots if slot.role == "weights"],
            stats=request.stats,
            probes=max(2, options.probes),
            loss=options.loss,
            seed=options.seed,
            show=show,
        )
    return hawq_scores(traces, candidates)


def _identity(request: Request, plans: Sequence[QuantPlan], batches: Batches) -> dict[str, str]:
    """All that scores depend on, by what an error calls it."""
    options = request.setting.options
    if options.scores == "measured":
        metric = options.metric
        named = None if metric is None else f"{getattr(metric, '__module__', '')}.{getattr(metric, '__qualname__', '')}"
        method = f"measured { ({**options.measuring, 'metric': named}) }"
    else:
        method = f"probes {(options.probes, options.loss, options.seed)}"
    return {
        "model": request.setting.graph.fingerprint(),
        "method or options of scoring": method,
        "set of data": digest_of_data(batches),
        "target, set of rules, options or statistics": digest_of_texts(one.to_json() for one in plans),
    }


def checked_table(table: SensitivityTable, setting: Setting, plans: Sequence[QuantPlan]) -> SensitivityTable:
    """A table that is given, with the candidates of these plans only.

    Raises:
        ConfigError: it is of another model, of other tensors or of other widths.
    """
    expect(table, SensitivityTable, "table", "detent.score")
    if table.fingerprint != setting.graph.fingerprint():
        raise ConfigError("the scores are of another model", remedy="score this model with detent.score")
    wanted = {(slot.role, slot.name): slot for slot in Candidates.of(setting.graph, setting.placement, plans).slots}
    kept = []
    for tensor in table:
        slot = wanted.pop((tensor.role, tensor.name), None)
        places = [] if slot is None else [place for place, bits in enumerate(tensor.bits) if bits in slot.bits]
        if slot is None or slot.members != tensor.members or not places:
            raise _of_others(tensor.name)
        kept.append(tensor.narrowed(places))
    if wanted:
        raise _of_others(next(iter(wanted.values())).name)
    return replace(table, tensors=tuple(kept))


def _of_others(name: str) -> ConfigError:
    remedy = "score with the same target, rules and options"
    return ConfigError("the scores are of other tensors or widths", where=name, remedy=remedy)
