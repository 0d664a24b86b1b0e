"""Environments of their own for what vendors' packages need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

__all__ = ["environment", "packages_of", "versions"]


def environment(folder: Path, packages: tuple[str, ...]) -> Path:
    """A virtual environment with these packages; one that is there already is taken as it is."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return folder


def packages_of(folder: Path) -> Path:
    """Where the environment's packages lie."""
    return next((folder / "lib").glob("python*")) / "site-packages"


def versions(folder: Path, packages: tuple[str, ...]) -> list[str]:
    """The versions of some of its packages, as `name==version`."""
    listed = subprocess.run(
        [folder / "bin" / "python", "-m", "pip", "freeze"], capture_output=True, text=True, check=True
    )
    return [line for line in listed.stdout.split() if line.startswith(packages)]
