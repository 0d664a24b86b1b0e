"""`detent quantize` and `detent inspect` on a real network, and what they say about bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner, Result

import detent
from detent.cli.app import app
from detent.demo.data import calibration_images
from detent.demo.network import load_network

FACTORY = "detent.demo.network:load_network"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "calib.npz"
    np.savez(path, x=calibration_images()[:64].numpy())
    return path


@pytest.fixture(scope="module")
def quantized(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("quantized") / "out"
    return out, run("quantize", FACTORY, "--data", data, "--target", "imx500", "--out", out, "--z-threshold", 8)


def test_it_writes_plan_statistics_and_onnx(quantized: tuple[Path, Result]) -> None:
    out, result = quantized
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["model.onnx", "plan.json", "statistics.safetensors"]
    plan = detent.QuantPlan.load(out / "plan.json")
    assert (plan.target, plan.samples, dict(plan.config)) == ("imx500", 64, {"z_threshold": 8.0})
    onnx.checker.check_model(onnx.load(out / "model.onnx"), full_check=True)
    assert "block1.depthwise" in result.stdout


def test_inspect_shows_what_was_written(quantized: tuple[Path, Result]) -> None:
    out, _ = quantized
    plan = run("inspect", out / "plan.json")
    assert plan.exit_code == 0, plan.output
    assert "block1.depthwise" in plan.stdout
    assert "z_threshold=8.0" in plan.stdout
    statistics = run("inspect", out / "statistics.safetensors")
    assert statistics.exit_code == 0, statistics.output
    assert "64" in statistics.stdout


def test_a_saved_program_gives_the_same_plan_as_the_module(
    data: Path, quantized: tuple[Path, Result], tmp_path: Path
) -> None:
    batch = torch.export.Dim("batch")
    program = torch.export.export(load_network(), (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "net.pt2")
    result = run("quantize", tmp_path / "net.pt2", "--data", data, "--out", tmp_path / "out", "--no-onnx")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "out" / "model.onnx").exists()
    from_file, from_module = (
        detent.QuantPlan.load(folder / "plan.json") for folder in (tmp_path / "out", quantized[0])
    )
    assert len(from_file.weights) == len(from_module.weights)


def test_rules_come_from_a_file_and_are_shown(data: Path, tmp_path: Path) -> None:
    rule = detent.edit.rule(detent.edit.op("add"), detent.edit.activations(bits=16, freeze=True))
    detent.edit.save_rules([rule], tmp_path / "rules.json")
    arguments = ("quantize", FACTORY, "--data", data, "--out", tmp_path / "out", "--rules", tmp_path / "rules.json")
    result = run(*arguments, "--no-onnx")
    assert result.exit_code == 0, result.output
    plan = detent.QuantPlan.load(tmp_path / "out" / "plan.json")
    assert plan.rules == (rule,)
    assert [name for name in plan.activations if plan.activation_grid(name).bits == 16] == ["relu1", "relu3"]
    shown = run("inspect", tmp_path / "out" / "plan.json").stdout
    assert "rule 1: rule(op('add'), activations(bits=16, freeze=True))" in shown
    assert shown.count("frozen") == 2


def test_wrong_rules_stop_before_calibration(data: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules.json"
    rules.write_text('[{"where": {"name": "stem2"}, "weights": {"bits": 4}}]')
    result = run("quantize", FACTORY, "--data", data, "--out", tmp_path / "out", "--rules", rules)
    assert result.exit_code == 1
    assert "rule(name('stem2'), weights(bits=4)) matches nothing" in result.stderr
    assert list((tmp_path / "out").iterdir()) == []
    rules.write_text('[{"where": {"nam": "stem"}, "weights": {"bits": 4}}]')
    result = run("quantize", FACTORY, "--data", data, "--out", tmp_path / "out", "--rules", rules)
    assert "did you mean 'name'" in result.stderr
    assert "rule 1" in result.stderr


def test_a_moving_maximum_depends_on_the_batches(data: Path, tmp_path: Path) -> None:
    plans = {}
    for size in (8, 64):
        options = ("--activation-metric", "moving_maximum", "--moving-maximum", 0.8, "--batch-size", size)
        result = run("quantize", FACTORY, "--data", data, "--out", tmp_path / "out", "--no-onnx", *options)
        assert result.exit_code == 0, result.output
        plans[size] = detent.QuantPlan.load(tmp_path / "out" / "plan.json")
        assert any(f"momentum 0.8 over {64 // size} batches" in note for note in plans[size].notes)
    assert plans[8].config == {"activation_metric": "moving_maximum", "moving_maximum": 0.8}
    changed = [name for name, entry in plans[8].activations.items() if entry != plans[64].activations[name]]
    assert len(changed) > 2


def test_kernels_are_rounded_in_closed_form(data: Path, tmp_path: Path) -> None:
    arguments = ("--target", "imx500", "--weights-bits", 4, "--rounding", "gptq", "--out", tmp_path / "out")
    result = run("quantize", FACTORY, "--data", data, *arguments)
    assert result.exit_code == 0, result.output
    plan = detent.QuantPlan.load(tmp_path / "out" / "plan.json")
    assert plan.config["rounding"] == "gptq"
    assert any(entry.codes is not None for entry in plan.weights.values())
    wrong = run("quantize", FACTORY, "--data", data, "--rounding", "gptqq", "--out", tmp_path / "out")
    assert wrong.exit_code != 0
    assert "gptq" in wrong.output


def test_resume_leaves_nothing_behind(data: Path, quantized: tuple[Path, Result], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("quantize", FACTORY, "--data", data, "--target", "imx500", "--out", out, "--resume", "--no-onnx")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["plan.json", "statistics.safetensors"]
    again, before = ((folder / "statistics.safetensors").read_bytes() for folder in (out, quantized[0]))
    assert again == before


def test_rewrites_by_statistics_are_asked_for(data: Path, tmp_path: Path) -> None:
    arguments = ("quantize", FACTORY, "--data", data, "--out", tmp_path, "--target", "imx500", "--no-onnx")
    result = run(*arguments, "--shift-negative")
    assert result.exit_code == 0, result.output
    assert "transform" in result.stdout
    assert dict(detent.QuantPlan.load(tmp_path / "plan.json").config) == {"shift_negative": True}


def test_an_interrupted_calibration_says_how_to_go_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, resume: Path, **__: object) -> None:
        resume.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("detent.calibrate", interrupt)
    result = run("quantize", FACTORY, "--data", data, "--out", tmp_path / "out")
    assert result.exit_code == 130
    assert "the same command with --resume continues" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((FACTORY, "--target", "imx50"), "did you mean 'imx500'"),
        ((FACTORY, "--weights-bits", 3, "--target", "imx500"), "no 3-bit weights"),
        (("no_such_module:x",), "cannot import the model"),
        (("absent.pt2",), "absent.pt2"),
    ],
)
def test_bad_requests(arguments: tuple[object, ...], message: str, data: Path, tmp_path: Path) -> None:
    result = run("quantize", *arguments, "--data", data, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_bad_data(tmp_path: Path) -> None:
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 not really")
    np.savez(tmp_path / "empty.npz", x=np.zeros((0, 1, 8, 8), np.float32))
    for name in ("broken", "empty", "absent"):
        result = run("quantize", FACTORY, "--data", tmp_path / f"{name}.npz", "--out", tmp_path / "out")
        assert result.exit_code == 1, result.output
        assert "Traceback" not in result.output


def test_an_output_folder_that_cannot_be_made(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("quantize", FACTORY, "--data", data, "--out", tmp_path / "file" / "out")
    assert result.exit_code == 1
    assert "cannot create the output folder" in result.stderr


def test_raw_input_and_integer_types(data: Path, tmp_path: Path) -> None:
    images = np.load(data)["x"]
    low, high = float(images.min()), float(images.max())
    raw = np.rint((images - low) / (high - low) * 255).astype(np.uint8)
    np.savez(tmp_path / "raw.npz", frames=raw)
    record = {"scale": (high - low) / 255, "mean": -low, "dtype": "uint8", "layout": "NCHW"}
    (tmp_path / "prep.json").write_text(json.dumps(record))
    options = ("--preprocessing", tmp_path / "prep.json", "--input-dtype", "uint8", "--output-dtype", "uint8")
    result = run("quantize", FACTORY, "--data", tmp_path / "raw.npz", "--out", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    model = onnx.load(tmp_path / "out" / "model.onnx")
    ends = [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)]
    assert ends == [onnx.TensorProto.UINT8] * 2
    plan = detent.QuantPlan.load(tmp_path / "out" / "plan.json")
    assert [entry.dtype for entry in plan.preprocessing.values()] == ["uint8"]


def test_wrong_preprocessing_costs_no_calibration(data: Path, tmp_path: Path) -> None:
    (tmp_path / "prep.json").write_text('{"scale": 1, "means": 0.5}')
    command = ("quantize", FACTORY, "--data", data, "--out", tmp_path / "out")
    result = run(*command, "--preprocessing", tmp_path / "prep.json")
    assert result.exit_code != 0
    assert "did you mean 'mean'?" in result.output
    assert "prep.json" in result.output
    result = run(*command, "--input-dtype", "uint9")
    assert result.exit_code != 0
    assert "did you mean 'uint8'?" in result.output
    assert not (tmp_path / "out").exists()


def test_configuration_file(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"rounding": "learned", "learned": {"steps": 3, "samples": 32}, "weights_bits": 8}')
    command = ("quantize", FACTORY, "--data", data, "--out", tmp_path / "out", "--no-onnx", "--config", file)
    result = run(*command, "--weights-bits", 4)
    assert result.exit_code == 0, result.output
    plan = detent.QuantPlan.load(tmp_path / "out" / "plan.json")
    assert plan.config["learned"] == {"steps": 3, "samples": 32}
    assert {entry.grid.bits for entry in plan.weights.values() if entry.grid is not None} == {4}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", "a configuration is an object"),
        ("{", "not valid JSON"),
        ('{"roundng": "gptq"}', "did you mean 'rounding'?"),
        ('{"learned": {"step": 3}}', "did you mean 'steps'?"),
    ],
)
def test_wrong_configuration_file(data: Path, tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    result = run("quantize", FACTORY, "--data", data, "--out", tmp_path / "out", "--config", file)
    assert result.exit_code == 1
    assert said in result.output
    assert not (tmp_path / "out").exists()
