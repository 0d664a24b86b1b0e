"""C headers compile without a warning, and the example of the documentation reads them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import detent
from detent.demo.data import calibration_images
from detent.demo.network import load_network
from detent.errors import ConfigError

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "read_parameters.c"
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
PARAMETERS: dict[str, Any] = {
    "classes": ["null", 'éins "q" ??/ \\n', "1"],
    "rate": 16000,
    "mean": [0.25, -1.5],
    "big": 2**40,
    "on": True,
    "none": [],
}


@pytest.fixture(scope="module")
def qmodel() -> detent.QuantizedModel:
    return detent.quantize(load_network(), calibration_images()[:256], target="tflite", progress=False)


def compiled(folder: Path, source: Path, *flags: str) -> Path:
    assert COMPILER is not None
    command = [COMPILER, *flags, "-Wall", "-Wextra", "-Werror", "-I", folder, source, "-o", folder / "program"]
    subprocess.run([str(word) for word in command], check=True)
    return folder / "program"


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_the_example_reads_the_header(qmodel: detent.QuantizedModel, tmp_path: Path) -> None:
    ends = {"inputs": "int8", "outputs": "int8"}
    report = detent.export(qmodel, tmp_path / "model.h", parameters=PARAMETERS, **ends)
    file = detent.export(qmodel, tmp_path / "model.tflite", parameters=PARAMETERS, **ends)
    assert (report.format, report.bytes) == ("c", (tmp_path / "model.h").stat().st_size)
    program = compiled(tmp_path, EXAMPLE, "-std=c11")
    said = subprocess.run([program, *PARAMETERS], capture_output=True, text=True, check=True).stdout.splitlines()
    lowered = detent.lower(qmodel)
    grid = lowered.grid(lowered.operations[0].output)
    assert said[0] == f"{file.bytes} bytes"
    scale = re.search(r"input x: int8 1x8x8x1, scale (\S+), zero point (\S+)", said[1])
    assert scale is not None
    assert np.float32(scale[1]) == np.float32(grid.scale)
    assert int(scale[2]) == grid.zero_point
    assert said[3] == f"code of 0.5: {int(grid.codes(np.array([0.5], np.float32))[0])}"
    assert said[4:] == [
        'classes = null éins "q" ??/ \\n 1',
        "rate = 16000",
        "mean = 0.25 -1.5",
        "big = 1099511627776",
        "on = 1",
        "none =",
    ]
    assert subprocess.run([program, "other"], capture_output=True, check=False).returncode == 2


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_the_bytes_are_those_of_the_file_in_c_and_in_cpp(qmodel: detent.QuantizedModel, tmp_path: Path) -> None:
    detent.export(qmodel, tmp_path / "model.h", name="net")
    file = detent.export(qmodel, tmp_path / "model.tflite").path
    source = tmp_path / "write.cpp"
    source.write_text(
        '#include <cstdio>\n#include "model.h"\nint main() {\n'
        "  if (reinterpret_cast<uintptr_t>(net_data) % 16 || net_parameters_count) return 1;\n"
        "  if (net_parameters[0].name || net_inputs_count != 1 || net_outputs_count != 1) return 2;\n"
        "  if (net_inputs[0].scale != 0 || net_outputs[0].scale != 0) return 4;\n"
        "  return std::fwrite(net_data, 1, net_size, stdout) == net_size ? 0 : 3;\n}\n"
    )
    program = compiled(tmp_path, source, "-x", "c++", "-std=c++17")
    assert subprocess.run([program], capture_output=True, check=True).stdout == file.read_bytes()


@pytest.mark.parametrize("name", ["9lives", "a-b", "", "é", "a b"])
def test_names_that_c_does_not_have_are_refused(qmodel: detent.QuantizedModel, name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no name in C"):
        detent.export(qmodel, tmp_path / "model.h", name=name)
    assert not list(tmp_path.iterdir())
