"""Batches that run side by side: how many, and the threads they run in."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

import torch

from detent.kernels.threads import limit_threads, num_threads

__all__ = ["sharing_cores", "worker_count"]

_MOST: Final = 4
"""Batches alive at once, at most: each holds its activations in memory. Further cores work inside a batch."""


def worker_count(*, in_order: bool = False) -> int:
    """Workers that keep torch's threads busy.

    Args:
        in_order: batches must run one after the other. Operators that draw random numbers would draw others if two ran
            at the same time.
    """
    return 1 if in_order else min(_MOST, torch.get_num_threads())


@contextmanager
def sharing_cores(size: int, name: str, *, each: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """Threads that share torch's and the kernels' threads among them. Leaving waits for the tasks that have begun.

    Args:
        size: how many.
        name: begins their names.
        each: torch's threads within each of them, for sums whose bits depend on that; None takes an equal share.
    """
    threads = torch.get_num_threads()

    def share() -> None:
        torch.set_num_threads(each or max(1, threads // size))
        limit_threads(max(1, num_threads() // size))

    pool = ThreadPoolExecutor(size, name, initializer=share)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)
