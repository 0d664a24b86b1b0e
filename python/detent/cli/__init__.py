"""The `detent` command. Each command imports what it needs when it runs, so that `detent --help` is immediate."""

from __future__ import annotations

from detent.cli.app import app

__all__ = ["main"]


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 an error detent explains, 2 wrong usage, 130 interrupted."""
    app(prog_name="detent")
