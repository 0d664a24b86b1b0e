"""The command group: version, the debug switch, and the one place where exceptions become messages and exit codes."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer
from rich.console import Console
from typer.core import TyperGroup

from detent.cli import demo, info, inspect, quantize, targets, verify
from detent.errors import DetentError

__all__ = ["EXIT_ERROR", "EXIT_INTERRUPTED", "app"]

EXIT_ERROR: Final = 1
EXIT_INTERRUPTED: Final = 130
"""128 + SIGINT, what shells report for a program stopped with Ctrl-C."""


class ReportingGroup(TyperGroup):
    """Turns exceptions of any command into a message on standard error and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interruption:
            _complain("interrupted", str(interruption) or "no file was left half-written")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except DetentError as error:
            if ctx.meta.get("debug"):
                raise
            _complain("error", str(error))
            raise typer.Exit(EXIT_ERROR) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            # click's own usage errors carry an exit code and are shown by click; anything else is not foreseen.
            if ctx.meta.get("debug") or hasattr(error, "exit_code"):
                raise
            _complain("unexpected error", f"{type(error).__name__}: {error}")
            _complain("to do", "run again with --debug for the traceback, and report it if it is detent's")
            raise typer.Exit(EXIT_ERROR) from None


def _complain(label: str, message: str) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[bold red]{label}:[/] ", end="")
    console.print(message, markup=False)


app = typer.Typer(
    cls=ReportingGroup,
    help="Quantizes trained PyTorch networks after training, and exports them for real runtimes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from detent import __version__

        typer.echo(f"detent {__version__}")
        raise typer.Exit


@app.callback()
def _group(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


app.command(no_args_is_help=True)(quantize.quantize)
app.command()(demo.demo)
app.command(no_args_is_help=True)(inspect.inspect)
app.command(no_args_is_help=True)(verify.verify)
app.command()(targets.targets)
app.command()(info.info)
