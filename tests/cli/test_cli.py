"""The command line: what it prints, its exit codes, and that errors come without tracebacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch import nn
from typer.testing import CliRunner, Result

import detent
from detent.cli.app import app
from detent.cli.models import find_model
from detent.errors import ConfigError


def run(*arguments: str) -> Result:
    # Wide enough that no cell of a table is broken over two lines.
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def test_version() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout == f"detent {detent.__version__}\n"


def test_targets_lists_all_and_shows_one_with_its_sources() -> None:
    assert "imx500" in run("targets").stdout
    shown = run("targets", "tflite").stdout
    assert "step 1/256, zero point -128" in shown
    assert "source: https://" in shown


def test_a_printed_target_is_a_file_to_start_from(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(run("targets", "imx500", "--json").stdout)
    assert run("targets", str(path)).stdout == run("targets", "imx500").stdout


def test_info_tells_build_and_versions() -> None:
    result = run("info")
    assert result.exit_code == 0
    assert "torch" in result.stdout
    assert detent.__version__ in result.stdout


def test_an_error_is_a_message_on_standard_error_and_exit_code_one() -> None:
    result = run("targets", "imx50")
    assert result.exit_code == 1
    assert "did you mean 'imx500'" in result.stderr
    assert "Traceback" not in result.output


def test_debug_lets_the_error_through() -> None:
    result = run("targets", "imx50", "--debug")
    assert isinstance(result.exception, ConfigError)


@pytest.mark.parametrize("arguments", [["targts"], ["targets", "--jsn"], ["quantize", "m.pt2"], ["targets", "--json"]])
def test_wrong_usage_is_exit_code_two(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_interruption_is_exit_code_130_and_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("detent.targets.target_names", interrupt)
    result = run("targets")
    assert result.exit_code == 130
    assert "interrupted" in result.stderr


def test_an_unforeseen_error_has_no_traceback_but_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("detent.targets.target_names", fail)
    result = run("targets")
    assert result.exit_code == 1
    assert "RuntimeError: boom" in result.stderr
    assert "--debug" in result.stderr
    assert "Traceback" not in result.output


def test_help_is_immediate_because_torch_is_not_imported() -> None:
    code = (
        "import sys, detent.cli\n"
        "try: sys.argv[1:] = ['--help']; detent.cli.main()\n"
        "except SystemExit as stop: assert stop.code in (0, None), stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "quantize" in done.stdout


def test_targets_say_what_kernels_may_have_on_request() -> None:
    assert "uniform, codebooks 4/2/3/5/6/7 per tensor or channel, groups of any" in run("targets", "default").stdout
    assert "groups of 16/32/64/128" in run("targets", "onnxruntime").stdout
    assert "codebooks" not in run("targets", "imx500").stdout


def test_inspect_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    assert run("inspect", str(tmp_path / "weights.bin")).exit_code == 1
    (tmp_path / "broken.json").write_text("{")
    result = run("inspect", str(tmp_path / "broken.json"))
    assert result.exit_code == 1
    assert "not valid JSON" in result.stderr


def test_options_are_checked_before_any_work(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 1, 8, 8), np.float32))
    common = ["--data", str(tmp_path / "x.npz"), "--out", str(tmp_path / "out")]
    result = run("quantize", "torch.nn:Identity", *common, "--activation-metric", "mes")
    assert result.exit_code == 1
    assert "did you mean 'mse'" in result.stderr
    assert not (tmp_path / "out").exists()


FACTORY = """
from torch import nn
class Nets:
    small = staticmethod(lambda: nn.Linear(2, 2))
ready = nn.Linear(2, 2)
number = 3
def broken(): return 5
def needs(width): return nn.Linear(width, width)
def fails(): raise OSError("no weights")
"""


def test_models_come_from_files_and_factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_factories.py").write_text(FACTORY)
    (tmp_path / "my_syntax.py").write_text("def model(:")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_model("folder/net.pt2") == Path("folder/net.pt2")
    assert isinstance(find_model("my_factories:Nets.small"), nn.Linear)
    assert isinstance(find_model("my_factories:ready"), nn.Linear)
    for argument, message in [
        ("net.onnx", "neither"),
        ("my_factories:", "neither"),
        ("no_such_module:x", "cannot import"),
        ("my_factories:absent", "cannot import"),
        ("my_factories:number", "not a function"),
        ("my_factories:broken", "returned a int"),
        ("my_factories:needs", "without arguments"),
        ("my_factories:fails", "the factory failed: OSError: no weights"),
        ("my_syntax:model", "importing the model failed: SyntaxError"),
    ]:
        with pytest.raises(ConfigError, match=message):
            find_model(argument)
