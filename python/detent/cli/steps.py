"""What `detent quantize` does, step by step, through the front door."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

import detent
from detent._validation import parse_json
from detent.config import Preprocessing, QuantizationConfig, resolve_preprocessing
from detent.errors import FormatError
from detent.exporters import check_io_type
from detent.pipeline import calibrate_for_rewrites, checked_budget, checked_latency, decide, passes_over_data
from detent.records.files import read_text
from detent.records.moving import momentum_to_calibrate
from detent.statistics import first_batch
from detent.targets import load_target

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Export", "quantize_to_folder"]


@dataclass(frozen=True, kw_only=True)
class Export:
    """How `model.onnx` is written.

    Args:
        inputs: element type of its inputs, None for the target's.
        outputs: likewise of its outputs.
    """

    inputs: str | None = None
    outputs: str | None = None


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
    export: Export | None,
) -> None:
    """Quantize and write `plan.json`, `statistics.safetensors` and `model.onnx` into the folder `out`.

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
    if export is not None:
        check_io_type(export.inputs, "input")
        check_io_type(export.outputs, "output")
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
    if export is not None:
        with _step(console, "export"):
            detent.export(quantized, out / "model.onnx", inputs=export.inputs, outputs=export.outputs)
        written.append("model.onnx")
    _remove(partial, scores, learning)
    console.print(f"written to {out}: {', '.join(written)}", markup=False, soft_wrap=True)


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
