"""Silence while torch's exporter works: it warns about its own code and logs tracebacks of what detent explains."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet_torch"]


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Hide torch's warnings about itself and its log; a user who sets TORCH_LOGS gets the log."""
    loggers = [] if os.environ.get("TORCH_LOGS") else _torch_loggers()
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"torch\.|copyreg|contextlib")
            yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def _torch_loggers() -> list[logging.Logger]:
    known = logging.root.manager.loggerDict.items()
    return [log for name, log in known if name.split(".")[0] == "torch" and isinstance(log, logging.Logger)]
