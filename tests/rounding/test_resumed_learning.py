"""Learning that is interrupted or killed goes on to the same bits; files of other work and damaged ones are refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import detent
from detent.cli.app import app
from detent.errors import CalibrationError, FormatError
from detent.learned_rounding import learn_rounding
from detent.records.finished import FinishedParts
from tests.mixed_targets import write_target
from tests.rounding.networks import Net, captured, images, learned, plan_of

SHORT: dict[str, Any] = {
    "method": "soft",
    "regularization": 1.0,
    "steps": 6,
    "network_steps": 4,
    "kernel_step_rate": 0.01,
}
TURNS = 4
"""Three blocks, and all the network."""


def resumed(path: Path, plan: detent.QuantPlan | None = None, data: Any = None, **options: Any) -> detent.QuantPlan:
    return detent.learn_rounding(
        captured(),
        plan or plan_of(),
        images()[:64] if data is None else data,
        options={**SHORT, **options},
        checkpoint=path,
        progress=False,
    )


@contextmanager
def interrupted(after: int) -> Iterator[list[int]]:
    """Learning that ends when so many blocks more are done; the list counts them."""
    add, done = FinishedParts.add, [0]

    def counted(finished: FinishedParts, figures: Any) -> None:
        add(finished, figures)
        done[0] += 1
        if done[0] == after:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FinishedParts, "add", counted)
        yield done


@pytest.fixture(scope="module")
def whole() -> str:
    return learned(data=images()[:64], **SHORT).to_json()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("learning") / "learning.partial"
    resumed(path)
    return path


def test_the_same_bits_as_in_one_go(whole: str, tmp_path: Path) -> None:
    path = tmp_path / "learning.partial"
    for _ in range(2):
        with interrupted(1), pytest.raises(KeyboardInterrupt):
            resumed(path)
    with interrupted(-1) as done:
        assert resumed(path).to_json() == whole
    assert done == [TURNS - 2]
    before = path.read_bytes()
    with interrupted(-1) as done:
        assert resumed(path).to_json() == whole
    assert done == [0]
    assert path.read_bytes() == before


def test_interrupted_within_a_block(whole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "learning.partial"

    @contextmanager
    def bar(*_: Any, **__: Any) -> Iterator[Any]:
        def show(done: int) -> None:
            if done == 10:
                raise KeyboardInterrupt

        yield show

    with monkeypatch.context() as patch:
        patch.setattr("detent.learned_rounding.progress_bar", bar)
        with pytest.raises(KeyboardInterrupt):
            resumed(path)
    with interrupted(-1) as done:
        assert resumed(path).to_json() == whole
    assert done == [TURNS - 1]


def test_memory_does_not_matter(whole: str, tmp_path: Path) -> None:
    path = tmp_path / "learning.partial"
    with interrupted(2), pytest.raises(KeyboardInterrupt):
        resumed(path)
    assert resumed(path, memory_mb=0).to_json() == whole


KILLED = """
import json, sys, time
import detent
from detent.records.finished import FinishedParts
from tests.rounding.networks import captured, images

add = FinishedParts.add

def slow(finished, figures):
    add(finished, figures)
    time.sleep(300)

FinishedParts.add = slow
plan = detent.QuantPlan.load(sys.argv[1])
options = json.loads(sys.argv[3])
detent.learn_rounding(captured(), plan, images()[:64], options=options, checkpoint=sys.argv[2], progress=False)
"""


def test_killed_and_continued_in_another_process(whole: str, tmp_path: Path) -> None:
    path = tmp_path / "learning.partial"
    plan_of().save(tmp_path / "plan.json")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folder for folder in sys.path if folder)}
    arguments = [sys.executable, "-c", KILLED, str(tmp_path / "plan.json"), str(path), json.dumps(SHORT)]
    process = subprocess.Popen(arguments, env=environment)
    try:
        deadline = time.monotonic() + 120
        while not path.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    with interrupted(-1) as done:
        assert resumed(path).to_json() == whole
    assert done == [TURNS - 1]


OTHER: list[tuple[dict[str, Any], str]] = [
    ({"steps": 7}, "another set of options"),
    ({"seed": 1}, "another set of options"),
    ({"method": "straight_through"}, "another set of options"),
    ({"data": images()[:48]}, "another set of data"),
    ({"data": images()[:64].flip(0)}, "another set of data"),
    ({"plan": plan_of(weights_bits=3)}, "another plan"),
]


@pytest.mark.parametrize(("given", "message"), OTHER)
def test_a_file_of_other_work_is_refused(finished: Path, given: dict[str, Any], message: str) -> None:
    before = finished.read_bytes()
    with pytest.raises(CalibrationError, match=message) as error:
        resumed(finished, **given)
    assert error.value.where == str(finished)
    assert "checkpoint" in str(error.value.remedy)
    assert finished.read_bytes() == before


def test_a_file_of_another_model_is_refused(finished: Path) -> None:
    torch.manual_seed(8)
    graph = detent.capture(Net().eval(), images()[:2])
    plan = detent.plan(graph, detent.calibrate(graph, images()[:64], progress=False))
    before = finished.read_bytes()
    with pytest.raises(CalibrationError, match="another model"):
        detent.learn_rounding(graph, plan, images()[:64], options=SHORT, checkpoint=finished, progress=False)
    assert finished.read_bytes() == before


def test_files_that_cannot_be_used(finished: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    for raw in (finished.read_bytes()[:-5], b"", b"no such file", finished.read_bytes()[:40]):
        damaged.write_bytes(raw)
        with pytest.raises(FormatError):
            resumed(damaged)
        assert damaged.read_bytes() == raw
    with pytest.raises(FormatError, match="cannot write"):
        resumed(tmp_path / "missing" / "learning")


def test_the_command_continues_learning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shorter(*given: Any, options: Any, **named: Any) -> detent.QuantPlan:
        return learn_rounding(*given, options={"steps": 4}, **named)

    monkeypatch.setattr("detent.pipeline.learn_rounding", shorter)
    batch = torch.export.Dim("batch")
    exported = torch.export.export(Net().eval(), (images()[:2],), dynamic_shapes=({0: batch},))
    torch.export.save(exported, tmp_path / "net.pt2")
    np.savez(tmp_path / "data.npz", x=images()[:32].numpy())

    def run(out: str, *more: str) -> Result:
        given = ["quantize", tmp_path / "net.pt2", "--data", tmp_path / "data.npz", "--target", write_target(tmp_path)]
        given += ["--weights-bits", 2, "--rounding", "learned", "--no-onnx", "--out", tmp_path / out, *more]
        return CliRunner().invoke(app, [str(argument) for argument in given])

    result = run("whole")
    assert result.exit_code == 0, result.output
    with interrupted(1):
        result = run("parts")
    assert result.exit_code == 130
    assert "--resume continues" in result.stderr
    assert (tmp_path / "parts" / "learning.partial").exists()
    with interrupted(-1) as done:
        assert run("parts", "--resume").exit_code == 0
    assert done == [TURNS - 2]
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["plan.json", "statistics.safetensors"]
    plans = [detent.QuantPlan.load(tmp_path / folder / "plan.json") for folder in ("whole", "parts")]
    assert plans[0].to_json() == plans[1].to_json()
