"""The demonstration: one calibration, two targets, five ways to choose thresholds, checked in a real runtime."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import detent
from detent.demo.data import Split, calibration_images, load_test
from detent.demo.figure import Limits, draw_thresholds
from detent.demo.network import accuracy, load_network
from detent.errors import ConfigError, FormatError
from detent.graph import Graph
from detent.quantized import QuantizedModel
from detent.records.plan import QuantPlan
from detent.records.statistics import Statistics

__all__ = ["DemoResult", "TargetResult", "VariantResult", "run_demo"]

FloatArray = npt.NDArray[np.float32]
TARGETS: Final = ("imx500", "onnxruntime")
VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "no clipping": {"activation_metric": "noclipping"},
    "MSE": {"activation_metric": "mse"},
    "MSE, z = 9": {"activation_metric": "mse", "z_threshold": 9.0},
    "MSE, z = 5": {"activation_metric": "mse", "z_threshold": 5.0},
    "MSE, z = 3": {"activation_metric": "mse", "z_threshold": 3.0},
}
VARIANT_TARGET: Final = "onnxruntime"
"""The figure needs limits that can be anywhere; on imx500 they are powers of two."""


@dataclass(frozen=True)
class TargetResult:
    """One target: top-1 in PyTorch and in ONNX Runtime, and how far the two agree on the test images."""

    target: str
    top1: float
    runtime_top1: float
    agreement: float
    largest_difference_steps: float
    onnx: Path


@dataclass(frozen=True)
class VariantResult:
    """One way to choose thresholds: top-1, and the limits of the activation in the figure."""

    name: str
    top1: float
    limits: Limits
    plan_s: float


@dataclass(frozen=True)
class DemoResult:
    """Everything the demonstration prints."""

    float_top1: float
    targets: tuple[TargetResult, ...]
    variants: tuple[VariantResult, ...]
    activation: str
    figure: Path


def run_demo(out: Path, console: Console | None = None) -> DemoResult:
    """Run the demonstration, print its tables, and write plans, statistics, ONNX files and the figure into `out`.

    Raises:
        ConfigError: scikit-learn, onnxruntime or matplotlib is not installed.
        FormatError: the folder cannot be written.
    """
    console = console or Console(highlight=False)
    _make_folder(out)
    network, test = load_network(), load_test()
    float_top1 = accuracy(network, test)
    images = calibration_images()
    console.print(f"A network of {_parameters(network):,} parameters, trained on scikit-learn's handwritten digits.")
    with _timed(console, "captured"):
        graph = detent.capture(network, images[:2])
    with _timed(console, f"calibrated once on {len(images)} training images"):
        statistics = detent.calibrate(graph, images, progress=False)
    statistics.save(out / "statistics.safetensors")
    results = []
    for target in TARGETS:
        with _timed(console, f"planned, applied, exported and run for {target}"):
            results.append(_run_target(graph, statistics, target, test, out))
    _print_targets(console, float_top1, tuple(results), len(test.images))
    activation, variants = _run_variants(graph, statistics, test)
    figure = out / "thresholds.png"
    lines = {variant.name: variant.limits for variant in variants}
    draw_thresholds(statistics[activation], lines, title=activation, path=figure)
    _print_variants(console, activation, variants)
    console.print(f"written to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}", soft_wrap=True)
    return DemoResult(float_top1, tuple(results), variants, activation, figure)


def _run_target(graph: Graph, statistics: Statistics, target: str, test: Split, out: Path) -> TargetResult:
    plan = detent.plan(graph, statistics, target=target)
    plan.save(out / f"{target}.plan.json")
    quantized = detent.apply(graph, plan)
    onnx = out / f"{target}.onnx"
    detent.export(quantized, onnx)
    with torch.inference_mode():
        ours: Tensor = quantized(test.images)
    # ONNX Runtime may rewrite only what is made for it; a file for another chip it runs as written, as a reference.
    theirs = torch.from_numpy(_run_onnx(onnx, test.images.numpy(), optimize=target == "onnxruntime"))
    return TargetResult(
        target=target,
        top1=_top1(ours, test.labels),
        runtime_top1=_top1(theirs, test.labels),
        agreement=_top1(theirs, ours.argmax(1)),
        largest_difference_steps=float((ours - theirs).abs().max()) / _output_step(quantized),
        onnx=onnx,
    )


def _run_onnx(path: Path, images: FloatArray, *, optimize: bool) -> FloatArray:
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(
            "the demo runs its ONNX files in onnxruntime", remedy="install it with: pip install 'detent[demo]'"
        ) from None
    options = onnxruntime.SessionOptions()
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images})
    return np.asarray(logits)


def _output_step(quantized: QuantizedModel) -> float:
    grid = quantized.plan.activation_grid(quantized.output_names[0])
    if grid is None:
        raise ConfigError("the demo's output is not quantized", where=quantized.plan.target)
    return float(grid.scale[0])


def _run_variants(graph: Graph, statistics: Statistics, test: Split) -> tuple[str, tuple[VariantResult, ...]]:
    """Plans by every variant, and the activation on which they differ most."""
    plans: dict[str, tuple[QuantPlan, float]] = {}
    for name, options in VARIANTS.items():
        start = time.perf_counter()
        plan = detent.plan(graph, statistics, target=VARIANT_TARGET, **options)
        plans[name] = plan, time.perf_counter() - start
    widest, narrowest = plans["no clipping"][0], plans["MSE, z = 3"][0]
    spreads = {
        name: _span(widest, name) / _span(narrowest, name)
        for name, entry in widest.activations.items()
        if entry.grid is not None and name in statistics
    }
    activation = max(spreads, key=lambda name: spreads[name])
    results = []
    for name, (plan, seconds) in plans.items():
        top1 = accuracy(detent.apply(graph, plan), test)
        results.append(VariantResult(name, top1, _limits(plan, activation), seconds))
    return activation, tuple(results)


def _limits(plan: QuantPlan, activation: str) -> Limits:
    grid = plan.activation_grid(activation)
    if grid is None:
        raise ConfigError("the activation is not quantized", where=activation)
    lower, upper = grid.limits
    return float(lower[0]), float(upper[0])


def _span(plan: QuantPlan, activation: str) -> float:
    lower, upper = _limits(plan, activation)
    return upper - lower


def _print_targets(console: Console, float_top1: float, results: tuple[TargetResult, ...], images: int) -> None:
    table = Table(title=f"top-1 on {images} digits of writers never seen", title_justify="left")
    table.add_column("target", no_wrap=True)
    for heading in ("float", "quantized", "runtime", "same answer", "max diff", "file"):
        table.add_column(heading, justify="right")
    for result in results:
        table.add_row(
            result.target,
            f"{float_top1:.2%}",
            f"{result.top1:.2%}",
            f"{result.runtime_top1:.2%}",
            f"{result.agreement:.2%}",
            f"{result.largest_difference_steps:.2f}",
            f"{result.onnx.stat().st_size / 1000:.0f} kB",
        )
    console.print(table)
    console.print("runtime: the exported file in ONNX Runtime; max diff: of a logit, in steps of the output grid")


def _print_variants(console: Console, activation: str, variants: tuple[VariantResult, ...]) -> None:
    table = Table(title=f"five plans for {VARIANT_TARGET}, same statistics", title_justify="left")
    table.add_column("chosen by")
    for heading in (f"limits of {activation}", "top-1", "planning"):
        table.add_column(heading, justify="right")
    for variant in variants:
        lower, upper = variant.limits
        limits = f"{lower:.3f} .. {upper:.3f}"
        table.add_row(variant.name, limits, f"{variant.top1:.2%}", f"{variant.plan_s * 1000:.0f} ms")
    console.print(table)


def _top1(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())


def _parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FormatError(f"cannot create the output folder: {error.strerror}", where=str(out)) from None


@contextmanager
def _timed(console: Console, what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    console.print(f"{time.perf_counter() - start:6.2f} s  {what}")
