"""A small network whose rounding is learned, and plans with few bits for it."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import detent
from detent.corrections.output import Stepped, output_error
from detent.quantized import assemble

__all__ = ["FEW", "Net", "captured", "codes_of", "images", "learned", "lost", "plan_of", "planned", "symmetric_target"]

FEW: Final[dict[str, Any]] = {"weights_bits": 2}
"""Options of plans that leave much to be gained."""


class Net(nn.Module):
    """A residual block between plain layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.left, self.right = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.right(F.relu(self.left(x))) + x)
        return self.head(x.mean((2, 3)))


class SharedGrid(nn.Module):
    """Values of two layers on one grid where the inputs of a concatenation have that of its output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(torch.cat([F.relu(self.left(x)), x], 1))


@functools.cache
def images() -> Tensor:
    """Images whose channels and neighbours go together, as those of photographs do; the last 64 are for judging."""
    generator = torch.Generator().manual_seed(6)
    smooth = F.avg_pool2d(torch.randn(192, 3, 10, 10, generator=generator), 3, 1)
    return torch.einsum("nchw,dc->ndhw", smooth, torch.randn(3, 3, generator=generator))


@functools.cache
def captured() -> detent.Graph:
    """The network."""
    torch.manual_seed(5)
    return detent.capture(Net().eval(), images()[:2])


def planned(graph: detent.Graph, data: Any, **options: Any) -> detent.QuantPlan:
    """A plan from the data, with nearest rounding."""
    stats = detent.calibrate(graph, data, progress=False, channels=True)
    return detent.plan(graph, stats, **{**FEW, **options})


@functools.cache
def plan_of(**options: Any) -> detent.QuantPlan:
    """A plan for the network."""
    return planned(captured(), images()[:128], **options)


def learned(plan: detent.QuantPlan | None = None, data: Any = None, **options: Any) -> detent.QuantPlan:
    """The network's rounding, learned in a few steps."""
    given = {"steps": 30, "method": "soft", "regularization": 1.0, **options}
    data = images()[:128] if data is None else data
    return detent.learn_rounding(captured(), plan or plan_of(), data, options=given, progress=False)


def lost(graph: detent.Graph, plan: detent.QuantPlan, data: Any) -> float:
    """The error of the outputs on some data, relative to their energy."""
    batch = [data] if isinstance(data, Tensor) else list(data)
    ours, theirs = (Stepped(module).outputs(batch) for module in (graph.module, assemble(graph, plan).graph_module))
    return output_error([(ours, theirs)])


def codes_of(plan: detent.QuantPlan, layer: str) -> np.ndarray:
    """Codes that the plan has for a kernel."""
    codes = plan.weights[layer].codes
    assert codes is not None
    return np.asarray(codes.codes)


@functools.cache
def symmetric_target() -> Path:
    """A file of a target whose activations have symmetric grids of 8 or 4 bits, its kernels 8, 4 or 2."""
    activations = {"kind": "symmetric", "bits": [8, 4], "signed": None}
    rule = {"activations": activations, "input_bits": None, "weights": {"kind": "symmetric", "bits": [8, 4, 2]}}
    entry = {
        "schema_version": 1,
        "extends": "imx500",
        "name": "symmetric",
        "version": "1",
        "description": "Symmetric activations.",
        "sources": [],
        "defaults": {"weights": None, "bias_bits": None, "activations": activations, "input_bits": None},
        "ops": {
            **{op: {**rule, "weights": None} for op in detent.load_target("imx500").ops},
            **dict.fromkeys(("conv", "conv_transposed", "linear"), rule),
        },
    }
    path = Path(tempfile.mkdtemp()) / "symmetric.json"
    path.write_text(json.dumps(entry), encoding="utf-8")
    return path
