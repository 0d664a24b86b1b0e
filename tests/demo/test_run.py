"""The demonstration end to end: its figures hold, and its files are what they claim to be."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

import detent
from detent.demo.run import DemoResult, run_demo
from detent.errors import FormatError


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoResult, str, Path]:
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    console = Console(file=io.StringIO(), width=120, highlight=False)
    result = run_demo(out, console)
    assert isinstance(console.file, io.StringIO)
    return result, console.file.getvalue(), out


def test_quantization_costs_less_than_a_point(demonstration: tuple[DemoResult, str, Path]) -> None:
    result, _, _ = demonstration
    assert result.float_top1 > 0.98
    assert [row.target for row in result.targets] == ["imx500", "onnxruntime"]
    for row in result.targets:
        assert row.top1 >= result.float_top1 - 0.01


def test_the_runtime_agrees(demonstration: tuple[DemoResult, str, Path]) -> None:
    result, _, _ = demonstration
    for row in result.targets:
        assert row.agreement >= 0.995
        assert row.largest_difference_steps <= 1.001


def test_one_calibration_serves_every_rule(demonstration: tuple[DemoResult, str, Path]) -> None:
    result, _, _ = demonstration
    spans = {row.name: row.limits[1] - row.limits[0] for row in result.variants}
    assert list(spans) == ["no clipping", "MSE", "MSE, z = 9", "MSE, z = 5", "MSE, z = 3"]
    assert spans["no clipping"] >= spans["MSE"] >= spans["MSE, z = 5"] >= spans["MSE, z = 3"]
    assert spans["no clipping"] > 1.2 * spans["MSE, z = 3"]


def test_files_and_tables(demonstration: tuple[DemoResult, str, Path]) -> None:
    result, printed, out = demonstration
    assert {path.name for path in out.iterdir()} == {
        *("imx500.onnx", "imx500.plan.json", "onnxruntime.onnx", "onnxruntime.plan.json"),
        *("statistics.safetensors", "thresholds.png"),
    }
    assert result.figure.read_bytes().startswith(b"\x89PNG\r\n")
    assert detent.QuantPlan.load(out / "imx500.plan.json").target == "imx500"
    assert detent.Statistics.load(out / "statistics.safetensors").samples == 256
    assert f"{result.float_top1:.2%}" in printed
    assert "MSE, z = 5" in printed


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FormatError, match="cannot create the output folder"):
        run_demo(tmp_path / "file" / "out", Console(file=io.StringIO()))
