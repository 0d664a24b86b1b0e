"""Batches run side by side, each in one thread with accumulators of its own.

Statistics merge exactly, so whole batches can be spread over the cores: an operator on one core does not wait for
others, and its result cannot depend on how torch would have split it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock
from typing import Any, NamedTuple

from detent.graph.side_by_side import sharing_cores
from detent.statistics.batches import Batch
from detent.statistics.collector import Collector

__all__ = ["Counted", "Job", "Workers"]


@dataclass(frozen=True)
class Job:
    """A batch to count.

    Args:
        batch: the model's inputs.
        samples: how many of its samples count; the others are padding.
        before: samples counted before it.
        digest: hash of all samples up to its end; empty if nobody needs it.
    """

    batch: Batch
    samples: int
    before: int
    digest: str


class Counted(NamedTuple):
    """How far the data are counted.

    Args:
        samples: samples counted in every value.
        digest: hash of these samples; empty if nobody needs it.
    """

    samples: int
    digest: str


class Workers:
    """Threads that count batches. A thread is never interrupted: a batch is counted in all values or in none.

    Args:
        collectors: one per worker.
        count: runs a job with a worker's collector; raises what is wrong with it.
        start: what the collectors have counted before.
        show: told the number of samples counted, now and then.
    """

    def __init__(
        self,
        collectors: Sequence[Collector],
        count: Callable[[Job, Collector], None],
        start: Counted,
        show: Callable[[int], None],
    ) -> None:
        self._size = len(collectors)
        self._idle: SimpleQueue[Collector] = SimpleQueue()
        for collector in collectors:
            self._idle.put(collector)
        self._count = count
        self._show = show
        self._sharing = sharing_cores(self._size, "detent-calibrate")
        self._pending: deque[Future[None]] = deque()
        self._lock = Lock()
        self._counted = start
        self._failed = False

    def __enter__(self) -> Workers:
        self._pool = self._sharing.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._sharing.__exit__(*error)

    @property
    def counted(self) -> Counted:
        """How far the data are counted; true while no batch is being run."""
        return self._counted

    def submit(self, job: Job) -> None:
        """Hand over a batch; waits until a worker is free.

        Raises:
            Exception: what went wrong in an earlier batch; the first in the order of the data.
        """
        while len(self._pending) >= self._size:
            self._await_first()
        self._pending.append(self._pool.submit(self._run, job))

    def drain(self) -> None:
        """Wait until every batch is counted.

        Raises:
            Exception: what went wrong; in the first such batch in the order of the data.
        """
        while self._pending:
            self._await_first()

    def stop(self) -> bool:
        """Take no more batches and wait for the last one; whether all of them were counted."""
        self._pool.shutdown(wait=True)
        return not self._failed

    def _await_first(self) -> None:
        self._pending[0].result()
        self._pending.popleft()
        self._show(self._counted.samples)

    def _run(self, job: Job) -> None:
        collector = self._idle.get()
        try:
            self._count(job, collector)
        except BaseException:
            self._failed = True
            raise
        finally:
            self._idle.put(collector)
        with self._lock:
            self._counted = max(self._counted, Counted(job.before + job.samples, job.digest))
