"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

__all__ = ["Debug"]


def _remember(context: typer.Context, wanted: bool) -> Any:
    context.meta["debug"] = wanted  # shared by the contexts of a command and its group
    return wanted


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", callback=_remember)]
