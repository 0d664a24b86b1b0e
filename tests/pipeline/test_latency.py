"""Budgets of latency: times as a mapping or a file, everywhere a budget is, and mistakes before the work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import detent
from detent.cli.app import app
from detent.errors import ConfigError, FormatError
from tests.pipeline.mixed_network import QUICK, choose, images, network, target
from tests.pipeline.test_mixing import Net

TIMES: dict[tuple[str, int | None, int], float] = {
    (kind, kernel, value): base * kernel * value * 1e-6
    for kind, base in (("conv2d", 3), ("linear", 1))
    for kernel in (8, 4, 2)
    for value in (8, 4)
} | {("add", None, 8): 2e-5, ("add", None, 4): 1e-5}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("times") / "times.json"
    lines = [
        {"layer": layer, "kernel_bits": kernel, "input_bits": value, "time": time}
        for (layer, kernel, value), time in TIMES.items()
    ]
    path.write_text(json.dumps(lines))
    return path


def test_a_file_is_the_same_as_a_mapping(file: Path) -> None:
    graph, _ = network()
    limit = {"latency": "50%"}
    found = choose(limit, latency=TIMES)
    assert found.use["latency"] <= found.limits["latency"]
    assert found.widths == choose(limit, latency=file).widths == choose(limit, latency=str(file)).widths
    plan = detent.plan(*network(), target=target(), widths=found.widths)
    assert detent.resources(graph, plan=plan, latency=file).latency == pytest.approx(found.use["latency"])


def test_one_call_and_fronts_take_times(file: Path) -> None:
    graph, stats = network()
    options: dict[str, Any] = {"target": target(), "mixed_precision": QUICK, "progress": False}
    whole = detent.quantize(graph, images(), budget={"latency": "50%"}, latency=file, **options)
    assert whole.plan.widths == choose({"latency": "50%"}, latency=TIMES).widths
    front = detent.pareto(graph, stats, images(), "latency", ["90%", "50%"], latency=TIMES, **options)
    assert [point.amount <= point.distribution.limits["latency"] for point in front.points] == [True, True]


def test_what_the_table_leaves_out_is_in_the_notes() -> None:
    graph, _ = network()
    few = {key: time for key, time in TIMES.items() if key[0] != "linear"}
    options: dict[str, Any] = {"target": target(), "mixed_precision": QUICK, "progress": False}
    whole = detent.quantize(graph, images(), budget={"latency": "50%"}, latency=few, **options)
    assert any("nothing for head" in note for note in whole.notes)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", FormatError, "not valid JSON"),
        ("{}", ConfigError, "is a list, got a dict"),
        ('[{"layer": "conv2d", "input_bits": 8}]', ConfigError, "'time' is missing"),
        ('[{"layer": "conv2d", "kernels": 8, "input_bits": 8, "time": 1}]', ConfigError, "unknown key 'kernels'"),
        ('[{"layer": "conv2d", "kernel_bits": "8", "input_bits": 8, "time": 1}]', ConfigError, "kernel_bits"),
        ('[{"layer": "convv2d", "kernel_bits": 8, "input_bits": 8, "time": 1}]', ConfigError, "did you mean 'conv2d'"),
        ('[{"layer": "add", "input_bits": 8, "time": 1}, {"layer": "add", "input_bits": 8, "time": 2}]', ConfigError,
         "there is a time"),
        ('[{"layer": "add", "input_bits": 8, "time": -1}]', ConfigError, "not below 0"),
        ('[{"layer": "conv2d", "kernel_bits": 8, "input_bits": 8, "time": 1}]', ConfigError, r"no entry for \(8, 4\)"),
    ],
)  # fmt: skip
def test_wrong_files_are_refused_before_calibration(
    tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    path = tmp_path / "times.json"
    path.write_text(text)

    def data() -> Iterator[Tensor]:
        raise AssertionError("the data were read")

    for call in (detent.quantize, detent.choose_widths):
        given = network() if call is detent.choose_widths else network()[:1]
        with pytest.raises(error, match=message):
            call(*given, data, budget={"latency": "50%"}, latency=path, target=target(), progress=False)


@pytest.mark.parametrize(
    ("budget", "latency", "message"),
    [
        ({"latency": "50%"}, None, "nothing is known"),
        ({"weights": "50%"}, TIMES, "for a budget that limits it"),
        (None, TIMES, "for a budget that limits it"),
        ({"latency": "50%"}, Path("missing.json"), "cannot read"),
        ({"latency": "50%"}, 7, "latency table"),
    ],
)
def test_times_and_limits_come_together(budget: Any, latency: Any, message: str) -> None:
    with pytest.raises((ConfigError, FormatError), match=message):
        detent.quantize(network()[0], images(), budget=budget, latency=latency, target=target(), progress=False)
    if budget is not None:
        with pytest.raises((ConfigError, FormatError), match=message):
            choose(budget, latency=latency)
        with pytest.raises((ConfigError, FormatError), match=message):
            detent.pareto(*network(), images(), next(iter(budget)), ["50%"], latency=latency, target=target())


def test_the_command_takes_times(file: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    batch = torch.export.Dim("batch")
    exported = torch.export.export(Net().eval(), (images()[:2],), dynamic_shapes=({0: batch},))
    torch.export.save(exported, tmp_path / "net.pt2")
    np.savez(tmp_path / "data.npz", x=images().numpy())
    out = tmp_path / "out"
    arguments = ["quantize", tmp_path / "net.pt2", "--data", tmp_path / "data.npz", "--target", target(), "--out", out]
    arguments += ["--no-onnx", "--budget", "latency=60%"]

    def run(*more: object) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in (*arguments, *more)])

    result = run("--latency", file)
    assert result.exit_code == 0, result.output
    assert any("latency" in note for note in detent.QuantPlan.load(out / "plan.json").notes)
    (out / "plan.json").unlink()
    for more, message in (((), "nothing is known"), (("--latency", tmp_path / "no.json"), "cannot read the file")):
        result = run(*more)
        assert result.exit_code == 1
        assert message in " ".join(result.stderr.split())
        assert not (out / "plan.json").exists()
