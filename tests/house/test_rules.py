"""The rules of the house: floors, names, sizes, and nothing that belongs to one machine."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("python", "csrc", "cmake", "tests", "benchmarks", "docs", ".ci")
PACKAGE = sorted((ROOT / "python" / "detent").rglob("*.py"))
NATIVE = sorted([*(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc").rglob("*.cpp")])
VAGUE = {"utils", "util", "common", "misc", "stuff", "tools"}


def text_files() -> list[Path]:
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in FOLDERS:
        found += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    skipped = {".so", ".pyc", ".safetensors", ".npz", ".png", ".onnx"}
    return [path for path in found if path.suffix not in skipped and "__pycache__" not in path.parts]


def test_a_room_imports_from_lower_floors_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlinter.cli import lint_imports

    monkeypatch.chdir(ROOT)
    assert lint_imports(no_cache=True) == 0


@pytest.mark.parametrize("module", ["detent", "detent.kernels", "detent.targets", "detent.config", "detent.cli"])
def test_the_lower_floors_import_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONWARNINGS": "error"}, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("path", [*PACKAGE, *NATIVE], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_have_telling_names_and_fit_in_a_head(path: Path) -> None:
    assert path.stem not in VAGUE
    assert len(path.read_text().splitlines()) <= 440


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of the body without the docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_fit_on_a_screen(path: Path) -> None:
    long = {function.name: code_lines(function) for function in functions(path)}
    assert not {name: lines for name, lines in long.items() if lines > 60}


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_public_functions_say_what_they_do(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    public = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    assert [node.name for node in public if not node.name.startswith("_") and not ast.get_docstring(node)] == []


def test_nothing_names_a_machine_or_a_package_registry() -> None:
    folders = "|".join(("work", "root", "home", "Users", "mnt", "tmp"))
    machine = re.compile(rf"(?:^|[\s\"'`(=])/(?:{folders})/\w")
    registry = re.compile(r"pypi\.org|pythonhosted\.org|download\.pytorch\.org")
    this = Path(__file__).resolve()
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in text_files()
        if path.resolve() != this and path.name != ".git"
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if machine.search(line) or registry.search(line)
    ]
    assert wrong == []
