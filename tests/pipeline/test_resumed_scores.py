"""Scoring that is interrupted goes on to the same bits; files of other runs and damaged ones are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner, Result

import detent
from detent.cli.app import app
from detent.errors import CalibrationError, ConfigError, FormatError
from detent.records.sensitivity import SensitivityTable
from tests.pipeline.mixed_network import choose, images, network, target
from tests.pipeline.test_mixing import Net

PROBES: dict[str, Any] = {"samples": 200, "probes": 3, "widths": {"x": (8,)}}
MEASURED: dict[str, Any] = {**PROBES, "scores": "measured", "points": "usual"}


def many() -> Tensor:
    """Several batches of 64 and a smaller one."""
    return torch.cat([images(), images() * 0.5, images().flip(0), images() + 0.1, images() * 2])


def scored(mixed: dict[str, Any], data: Any = None, **given: Any) -> SensitivityTable:
    options: dict[str, Any] = {"target": target(), "progress": False, **given}
    return detent.score(*network(), many() if data is None else data, mixed_precision=mixed, **options)


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int, error: BaseException) -> None:
    @contextmanager
    def bar(*_: Any, **__: Any) -> Iterator[Callable[[int], None]]:
        def show(done: int) -> None:
            if done == after:
                raise error

        yield show

    monkeypatch.setattr("detent.scoring.progress_bar", bar)


def written(table: SensitivityTable, path: Path) -> bytes:
    table.save(path)
    return path.read_bytes()


@pytest.mark.parametrize("mixed", [PROBES, MEASURED], ids=["probes", "measured"])
def test_the_same_bits_as_in_one_go(mixed: dict[str, Any], tmp_path: Path) -> None:
    wanted = written(scored(mixed), tmp_path / "whole")
    path = tmp_path / "scores.partial"
    for after in (1, 3):
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, after, KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                scored(mixed, checkpoint=path)
    assert path.exists()
    resumed = scored(mixed, checkpoint=path)
    assert written(resumed, tmp_path / "resumed") == wanted
    # A complete one leaves nothing to do, and says the same.
    assert written(scored(mixed, checkpoint=str(path)), tmp_path / "again") == wanted


def test_finished_batches_are_not_scored_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scores.partial"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 2, OSError("gone"))
        with pytest.raises(OSError, match="gone"):
            scored(PROBES, checkpoint=path)
    seen = []
    monkeypatch.setattr("detent.sensitivity.probes.samples_in", lambda graph, batch: seen.append(1) or len(batch[0]))
    scored(PROBES, checkpoint=path)
    assert len(seen) == 2  # the batches that were left of four


def test_widths_are_chosen_with_resumed_scores(tmp_path: Path) -> None:
    path = tmp_path / "scores.partial"
    mixed = {"samples": 16}
    first, second = (choose({"weights": "60%"}, mixed=mixed, checkpoint=path) for _ in range(2))
    whole = choose({"weights": "60%"}, mixed=mixed)
    assert first.widths == second.widths == whole.widths
    assert first.objective == second.objective == whole.objective


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scores") / "scores.partial"
    scored(PROBES, checkpoint=path)
    return path


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mixed": {**PROBES, "probes": 4}}, "another method or options of scoring"),
        ({"mixed": {**PROBES, "seed": 1}}, "another method or options of scoring"),
        ({"mixed": MEASURED}, "another method or options of scoring"),
        ({"mixed": {**PROBES, "samples": 100}}, "another set of data"),
        ({"mixed": PROBES, "data": many().flip(0)}, "another set of data"),
        ({"mixed": {**PROBES, "weights_widths": (8, 4)}}, "another target"),
        ({"mixed": PROBES, "weights_metric": "mae"}, "another target, set of rules, options or statistics"),
    ],
)
def test_a_file_of_another_run_is_refused(finished: Path, given: dict[str, Any], message: str) -> None:
    before = finished.read_bytes()
    with pytest.raises(CalibrationError, match=message) as error:
        scored(checkpoint=finished, **given)
    assert error.value.where == str(finished)
    assert "checkpoint" in str(error.value.remedy)
    assert finished.read_bytes() == before


def test_a_file_of_another_model_is_refused(finished: Path) -> None:
    torch.manual_seed(5)
    graph = detent.capture(Net().eval(), images()[:2])
    stats = detent.calibrate(graph, images(), progress=False)
    with pytest.raises(CalibrationError, match="another model"):
        detent.score(graph, stats, many(), target=target(), mixed_precision=PROBES, checkpoint=finished, progress=False)


def test_files_that_cannot_be_used(finished: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.write_bytes(finished.read_bytes()[:-5])
    with pytest.raises(FormatError, match="complete"):
        scored(PROBES, checkpoint=damaged)
    table = tmp_path / "table"
    scored(PROBES).save(table)
    with pytest.raises(FormatError, match=r"detent\.sensitivity"):
        scored(PROBES, checkpoint=table)
    with pytest.raises(FormatError, match="cannot write"):
        scored(PROBES, checkpoint=tmp_path / "missing" / "scores")
    with pytest.raises(ConfigError, match="the scores are given"):
        choose({"weights": "60%"}, table=scored(PROBES), checkpoint=finished)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) + 0.1 * torch.randn(6))


def test_what_draws_random_numbers_cannot_be_resumed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = torch.randn(20, 6)
    graph = detent.capture(Noisy().eval(), data[:2])
    stats = detent.calibrate(graph, data, progress=False)
    options: dict[str, Any] = {"target": target(), "mixed_precision": {"samples": 8}, "progress": False}
    assert len(detent.score(graph, stats, data, **options)) > 0
    with pytest.raises(ConfigError, match="random numbers"):
        detent.score(graph, stats, data, checkpoint=tmp_path / "scores", **options)


def test_the_command_resumes_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    exported = torch.export.export(Net().eval(), (images()[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(exported, tmp_path / "net.pt2")
    np.savez(tmp_path / "data.npz", x=images().numpy())

    def run(out: str, *more: str) -> Result:
        given = ["quantize", tmp_path / "net.pt2", "--data", tmp_path / "data.npz", "--target", target(), "--no-onnx"]
        given += ["--budget", "weights=60%", "--out", tmp_path / out, *more]
        return CliRunner().invoke(app, [str(argument) for argument in given])

    assert run("whole").exit_code == 0
    with monkeypatch.context() as patch:
        interrupt(patch, 1, KeyboardInterrupt())
        result = run("parts")
    assert result.exit_code == 130
    assert "--resume continues" in result.stderr
    assert (tmp_path / "parts" / "scores.partial").exists()
    assert run("parts", "--resume").exit_code == 0
    names = ["plan.json", "statistics.safetensors"]
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == names
    plans = [detent.QuantPlan.load(tmp_path / folder / "plan.json") for folder in ("whole", "parts")]
    assert plans[0].to_json() == plans[1].to_json()
