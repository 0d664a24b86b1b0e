"""What `detent quantize` does, step by step, through the front door."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

import detent
from detent._validation import parse_json
from detent.config import Preprocessing, QuantizationConfig, resolve_preprocessing
from detent.errors import ConfigError, FormatError
from detent.exporters import check_io_type, format_of
from detent.pipeline import calibrate_for_rewrites, checked_budget, checked_latency, decide, passes_over_data
from detent.records.files import read_text
from detent.records.moving import momentum_to_calibrate
from detent.statistics import first_batch, first_samples
from detent.targets import load_target

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Export", "planned_model", "quantize_to_folder"]


@dataclass(frozen=True, kw_only=True)
class Export:
    """Which files are written besides the plan, and how.

    Args:
        names: of the files; their suffixes say the format.
        inputs: element type of their inputs, None for the target's.
        outputs: likewise of their outputs.
    """

    names: tuple[str, ...] = ("model.onnx",)
    inputs: str | None = None
    outputs: str | None = None

    def check(self) -> None:
        """Refuse what no export could do, before any work.

        Raises:
            ConfigError: a name with a folder or of an unknown format, or an unknown element type.
        """
        for name in self.names:
            if Path(name).name != name:
                raise ConfigError(f"{name!r} is not the name of a file", remedy="files are written into --out")
            format_of(name)
        check_io_type(self.inputs, "input")
        check_io_type(self.outputs, "output")

    def write(self, quantized: detent.QuantizedModel, out: Path, console: Console) -> None:
        """Write the files into a folder and say what a user should know of them."""
        for name in self.names:
            ends = {"inputs": self.inputs, "outputs": self.outputs}
            options = {option: kind for option, kind in ends.items() if kind is not None}
            report = detent.export(quantized, out / name, **options)
            for note in report.notes:
                console.print(f"note: {name}: {note}", markup=False, soft_wrap=True)


def quantize_to_folder(
    model: nn.Module | Path,
    data: Path,
    out: Path,
    *,
    target: str,
    options: Mapping[str, Any],
    rules: Path | None,
    preprocessing: Path | None,
    budget: Mapping[str, Any] | None,
    latency: Path | None,
    resume: bool,
    batch_size: int,
    export: Export,
) -> None:
    """Quantize and write `plan.json`, `statistics.safetensors` and what `export` names into the folder `out`.

    An interrupted calibration leaves `calibration.partial` there, interrupted scores of widths `scores.partial`, and
    learning that was interrupted `learning.partial`; a run with `resume` continues them.

    Raises:
        DetentError: whatever is wrong with the model, the data, the options or the folder.
    """
    console = Console(highlight=False)
    # Cheap mistakes first: a wrong option should not cost a calibration.
    load_target(target)
    config = QuantizationConfig(**options)
    config.refuse_hessians()
    records = _read_preprocessing(preprocessing)
    limits = checked_budget(budget)
    times = checked_latency(limits, latency)
    export.check()
    asked = () if rules is None else detent.edit.load_rules(rules)
    _make_folder(out)
    with _step(console, "capture"):
        example, _ = first_batch(data, model)
        graph = detent.transform(detent.capture(model, example, preprocessing=records), target=target, config=config)
    if config.rewrites_by_statistics:
        with _step(console, "transform"):
            first = calibrate_for_rewrites(graph, data, config, progress=console.is_terminal)
            graph = detent.transform(graph, first, target=target, config=config)
    passes = passes_over_data(graph, target, config, asked, limits, None, times)
    partial, scores, learning = (out / f"{name}.partial" for name in ("calibration", "scores", "learning"))
    if not resume:
        _remove(partial, scores, learning)
    with _step(console, "calibrate"), _resumable(partial):
        statistics = detent.calibrate(
            graph,
            data,
            progress=console.is_terminal,
            batch_size=batch_size,
            moving_maximum=momentum_to_calibrate(config, asked),
            resume=partial,
        )
        statistics.save(out / "statistics.safetensors")
    with _step(console, "plan"), _resumable(partial):
        plan = decide(
            graph,
            statistics,
            data,
            passes,
            target=target,
            config=config,
            rules=asked,
            budget=limits,
            latency=times,
            checkpoint=scores,
            rounding_checkpoint=learning,
            progress=console.is_terminal,
        )
        plan.save(out / "plan.json")
        quantized = detent.apply(graph, plan)
    quantized.summary(console)
    written = ["plan.json", "statistics.safetensors"]
    if export.names:
        with _step(console, "export"):
            export.write(quantized, out, console)
        written.extend(export.names)
    _remove(partial, scores, learning)
    console.print(f"written to {out}: {', '.join(written)}", markup=False, soft_wrap=True)


def planned_model(
    model: nn.Module | Path, plan: Path, data: Path, samples: int
) -> tuple[detent.QuantizedModel, list[torch.Tensor]]:
    """The quantized model of a saved plan, and the first samples of the data as its inputs.

    Raises:
        DetentError: the plan does not belong to the model, or the data do not fit it.
    """
    decided = detent.QuantPlan.load(plan)
    config = QuantizationConfig(**decided.config)
    example, _ = first_batch(data, model)
    graph = detent.capture(model, example, preprocessing=dict(decided.preprocessing) or None)
    graph = detent.transform(graph, target=decided.target, config=config)
    if config.rewrites_by_statistics:
        first = calibrate_for_rewrites(graph, data, config, progress=False)
        graph = detent.transform(graph, first, target=decided.target, config=config)
    batches = first_samples(graph, data, samples, parts=1)
    inputs = [
        parts[0] if spec.batch_axis is None else torch.cat(parts, spec.batch_axis)
        for spec, parts in zip(graph.inputs, map(list, zip(*batches, strict=True)), strict=True)
    ]
    return detent.apply(graph, decided), inputs


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _read_preprocessing(path: Path | None) -> Preprocessing | dict[str, Preprocessing] | None:
    if path is None:
        return None
    remedy = "write the fields of detent.Preprocessing, or an object of them for each input"
    return resolve_preprocessing(parse_json(read_text(path), str(path), remedy=remedy), str(path))


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FormatError(f"cannot create the output folder: {error.strerror}", where=str(out)) from None


@contextmanager
def _resumable(partial: Path) -> Iterator[None]:
    """An interruption says whether the work goes on from where it was."""
    try:
        yield
    except KeyboardInterrupt:
        kept = "; the same command with --resume continues" if partial.exists() else ""
        raise KeyboardInterrupt(f"no file was left half-written{kept}") from None


@contextmanager
def _step(console: Console, name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    console.print(f"{name:>9} {time.perf_counter() - start:6.2f} s")
