"""A small captured network with a choice of widths, made once for the tests of mixed precision that need no other."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

import detent
from detent.records.distribution import Distribution
from tests.mixed_targets import write_target
from tests.pipeline.test_mixing import Net

__all__ = ["QUICK", "choose", "images", "network", "target"]

QUICK: Final = {"samples": 8, "probes": 4, "evaluated": 2}


@functools.cache
def images() -> Tensor:
    """Forty random images."""
    return torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(1))


@functools.cache
def network() -> tuple[detent.Graph, detent.Statistics]:
    """The network and its statistics."""
    torch.manual_seed(0)
    graph = detent.capture(Net().eval(), images()[:2])
    return graph, detent.calibrate(graph, images(), progress=False)


@functools.cache
def target() -> Path:
    """A target with widths 8, 4, 2 of kernels and 8, 4 of activations."""
    return write_target(Path(tempfile.mkdtemp()))


def choose(budget: Any, *, mixed: dict[str, Any] | None = None, data: Any = None, **given: Any) -> Distribution:
    """`detent.choose_widths` for the network."""
    options = {"target": target(), "mixed_precision": {**QUICK, **(mixed or {})}, "progress": False, **given}
    return detent.choose_widths(*network(), images() if data is None else data, budget, **options)
