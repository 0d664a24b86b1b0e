"""Progress of passes over data, on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(doing: str, unit: str, total: int | None, *, wanted: bool) -> Iterator[Callable[[int], None]]:
    """Shows how much is done, if the error output is a terminal.

    Args:
        doing: what is being done.
        unit: what is counted.
        total: how many there are, None if unknown.
        wanted: False shows nothing.

    Yields:
        A function that takes how many are done.
    """
    console = Console(stderr=True)
    if not wanted or not console.is_terminal:
        yield lambda done: None
        return
    count, left = MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(
        TextColumn(doing), BarColumn(), count, TextColumn(unit), left, console=console, transient=True
    ) as bar:
        task = bar.add_task(doing, total=total)
        yield lambda done: bar.update(task, completed=done)
