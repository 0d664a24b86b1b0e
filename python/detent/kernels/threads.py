"""How many threads the kernels use. Results never depend on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from detent import _core

__all__ = ["limit_threads", "map_in_threads", "num_threads", "set_num_threads"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def num_threads() -> int:
    """Threads a kernel called from this thread may use: `DETENT_NUM_THREADS`, else the CPUs of this process."""
    return _core.num_threads()


def set_num_threads(count: int) -> None:
    """Set the threads of all kernels.

    Raises:
        ValueError: `count` is not in 1..4096.
    """
    _core.set_num_threads(count)


def limit_threads(count: int) -> None:
    """Let kernels called from this thread use at most `count` threads from now on.

    For a caller that splits the work over threads of its own.

    Raises:
        ValueError: `count` is not in 1..4096.
    """
    _core.limit_threads(count)


def map_in_threads(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """`[function(item) for item in items]`, several items at a time and each in one thread.

    For functions that spend their time in kernels: many small tensors keep the cores busier than one after the other.

    Raises:
        Exception: what `function` raised for the first item that failed.
    """
    items, threads = list(items), num_threads()
    if threads == 1 or len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(threads, len(items)), "detent", initializer=lambda: limit_threads(1)) as pool:
        try:
            return list(pool.map(function, items))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
