"""`detent verify` and the files that `detent quantize` writes for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from detent.cli.app import app
from detent.demo.data import calibration_images

FACTORY = "detent.demo.network:load_network"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    np.savez(folder / "calib.npz", x=calibration_images()[:64].numpy())
    given = ("--data", folder / "calib.npz", "--target")
    files = ("--export", "model.tflite", "--c-array", "--input-dtype", "int8", "--rounding", "gptq")
    result = run("quantize", FACTORY, *given, "tflite", "--out", folder / "tflite", "--no-onnx", *files)
    assert result.exit_code == 0, result.output
    assert "bytes on the device" in result.stdout
    result = run("quantize", FACTORY, *given, "onnxruntime", "--out", folder / "onnxruntime")
    assert result.exit_code == 0, result.output
    return folder


def verify(folder: Path, file: str, plan: str, *more: object) -> Result:
    options = ("--model", FACTORY, "--plan", folder / plan / "plan.json", "--data", folder / "calib.npz")
    return run("verify", folder / file, *options, *more)


def test_files_are_written_by_their_suffixes(folder: Path) -> None:
    written = {"model.tflite", "model.h", "plan.json", "statistics.safetensors"}
    assert {path.name for path in (folder / "tflite").iterdir()} == written


@pytest.mark.parametrize(("file", "runtime"), [("tflite/model.tflite", "tflite"), ("onnxruntime/model.onnx", "onnx")])
def test_equal_files(folder: Path, file: str, runtime: str) -> None:
    if runtime == "tflite":
        pytest.importorskip("tflite_micro")
    result = verify(folder, file, file.split("/", maxsplit=1)[0], "--samples", 8)
    assert result.exit_code == 0, result.output
    assert "0 of " in result.stdout
    assert "8 samples" in result.stdout
    assert "classify" in result.stdout


def test_files_of_another_plan_differ(folder: Path) -> None:
    pytest.importorskip("tflite_micro")
    result = verify(folder, "tflite/model.tflite", "onnxruntime", "--samples", 4)
    assert result.exit_code == 3, result.output
    assert "first in" in result.stdout


@pytest.mark.parametrize(
    ("file", "more", "message"),
    [
        ("tflite/model.h", (), "no runtime at hand"),
        ("none.onnx", (), "there is no such file"),
        ("onnxruntime/model.onnx", ("--runtime", "cuda"), "unknown runtime"),
        ("onnxruntime/model.onnx", ("--runtime", "litert"), "no TensorFlow Lite file"),
        ("tflite/plan.json", ("--runtime", "onnxruntime"), "cannot read the file"),
    ],
)
def test_bad_input(folder: Path, file: str, more: tuple[str, ...], message: str) -> None:
    result = verify(folder, file, "onnxruntime", *more)
    assert result.exit_code == 1
    assert message in result.stderr


@pytest.mark.parametrize(
    ("name", "message"), [("../model.tflite", "not the name of a file"), ("model.tfl", "did you mean '.tflite'")]
)
def test_names_of_files_are_checked_before_any_work(folder: Path, name: str, message: str, tmp_path: Path) -> None:
    given = ("--data", folder / "calib.npz", "--out", tmp_path / "out", "--export", name)
    result = run("quantize", FACTORY, *given)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
