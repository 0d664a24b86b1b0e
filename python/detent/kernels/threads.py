"""How many threads the kernels use. Results never depend on it."""

from __future__ import annotations

from detent import _core

__all__ = ["limit_threads", "num_threads", "set_num_threads"]


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
