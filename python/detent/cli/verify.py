"""`detent verify`: an exported file in its runtime against the integer program, tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from detent.cli.options import Debug
from detent.errors import ConfigError

__all__ = ["verify"]

DIFFERENT = 3
"""Exit code where codes differ; 1 is an error."""


def verify(
    file: Annotated[Path, typer.Argument(help="model.onnx or model.tflite.", show_default=False)],
    model: Annotated[str, typer.Option(help="The network it came from: a .pt2 file, or package.module:factory.")],
    plan: Annotated[Path, typer.Option(help="plan.json of the same run.")],
    data: Annotated[Path, typer.Option(help="Inputs: an .npz file, samples along the first axis.")],
    samples: Annotated[int, typer.Option(help="How many to compare.", min=1)] = 64,
    runtime: Annotated[
        str | None,
        typer.Option(help="onnxruntime, tflite_micro, litert, litert_reference or akida; by the file otherwise."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Run FILE in its runtime and say where its codes first differ from the integer program's."""
    from detent.cli.models import find_model
    from detent.cli.steps import planned_model
    from detent.exporters import verify as compare

    console = Console(highlight=False)
    if not file.is_file():
        raise ConfigError("there is no such file", where=str(file))
    quantized, inputs = planned_model(find_model(model), plan, data, samples)
    found = compare(file, quantized, inputs, runtime=runtime)
    found.show(console)
    if not found.tensors:
        raise ConfigError("the file shows none of the model's tensors", where=str(file), remedy="export it again")
    if not found.equal:
        raise typer.Exit(DIFFERENT)
