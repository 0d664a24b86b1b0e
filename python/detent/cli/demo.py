"""`detent demo`: the whole way on a built-in network, in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detent.cli.options import Debug

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the ONNX files, plans and the figure.")] = Path("out/demo"),
    debug: Debug = False,
) -> None:
    """Quantize a small network that reads handwritten digits, for two targets, and check the result."""
    from detent.demo.run import run_demo

    run_demo(out)
