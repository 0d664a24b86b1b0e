"""Threads for batches that run side by side."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from detent.kernels.threads import limit_threads, num_threads

__all__ = ["sharing_cores"]


@contextmanager
def sharing_cores(size: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Threads that share torch's and the kernels' threads among them. Leaving waits for the tasks that have begun."""
    threads = torch.get_num_threads()

    def share() -> None:
        torch.set_num_threads(max(1, threads // size))
        limit_threads(max(1, num_threads() // size))

    pool = ThreadPoolExecutor(size, name, initializer=share)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)
