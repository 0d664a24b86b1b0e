"""`detent info`: what is installed and what the kernels were built for."""

from __future__ import annotations

from importlib import metadata

from rich.console import Console
from rich.table import Table

from detent.cli.options import Debug

__all__ = ["info"]

_PACKAGES = ("torch", "numpy", "onnx", "onnxscript", "onnxruntime", "safetensors", "pydantic")


def info(debug: Debug = False) -> None:
    """Show the build of the kernels and the versions of the libraries detent works with."""
    import detent

    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in detent.build_info().items():
        table.add_row(name, ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value))
    for package in _PACKAGES:
        try:
            table.add_row(package, metadata.version(package))
        except metadata.PackageNotFoundError:
            table.add_row(package, "not installed")
    Console(highlight=False).print(table)
