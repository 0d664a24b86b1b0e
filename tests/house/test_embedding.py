"""The example of docs/embed-the-kernels.md builds against the installed package and runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import detent

PAGE = Path(__file__).resolve().parents[2] / "docs" / "embed-the-kernels.md"
PACKAGE = Path(detent.get_include()).parent / "lib" / "cmake" / "detent"


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found.group(1)


@pytest.mark.skipif(not PACKAGE.is_dir(), reason="built in place: the CMake package comes with an installed wheel")
def test_another_project_links_the_kernels(tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(block("cmake"))
    (tmp_path / "main.cpp").write_text(block("cpp"))
    # The tools that were installed beside this interpreter come first.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for command in (
        ["cmake", "-S", ".", "-B", "build", f"-Ddetent_ROOT={PACKAGE}"],
        ["cmake", "--build", "build"],
    ):
        built = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True)
        assert built.returncode == 0, built.stdout + built.stderr
    printed = subprocess.run([tmp_path / "build" / "consumer"], capture_output=True, text=True, check=True).stdout
    assert printed == "0.5 -4 3.5\n"
