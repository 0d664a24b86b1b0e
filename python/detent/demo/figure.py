"""A histogram with the clipping limits that different rules choose on it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detent.errors import ConfigError
from detent.records.files import write_atomically
from detent.records.statistics import TensorStatistics

__all__ = ["Limits", "draw_thresholds"]

Limits = tuple[float, float]
"""Real values of the lowest and the highest code."""

BARS: Final = 160
STYLES: Final = ("-", "--", "-.", ":", (0, (1, 3)))
COLOURS: Final = ("#444444", "#1b7837", "#2166ac", "#b35806", "#b2182b")


def draw_thresholds(statistics: TensorStatistics, lines: Mapping[str, Limits], *, title: str, path: Path) -> None:
    """Write a PNG of a value's histogram, with a vertical line at every limit.

    Args:
        statistics: of the value.
        lines: name of each rule to the limits it chose; a lower limit of zero is not drawn.
        title: name of the value.
        path: the PNG; complete or not there.

    Raises:
        ConfigError: matplotlib is not installed.
        FormatError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("drawing needs matplotlib", remedy="install it with: pip install 'detent[report]'") from None
    edges, counts = _bars(statistics)
    figure = Figure(figsize=(9, 4.5), dpi=130, layout="constrained")
    axes: Any = figure.subplots()
    axes.stairs(counts, edges, fill=True, color="#c7d3e3")
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)
    for (name, (lower, upper)), style, colour in zip(lines.items(), STYLES, COLOURS, strict=False):
        axes.axvline(upper, linestyle=style, color=colour, linewidth=1.8, label=f"{name}: {lower:.3g} .. {upper:.3g}")
        if lower != 0:
            axes.axvline(lower, linestyle=style, color=colour, linewidth=1.8)
    axes.set_title(f"{title}: values seen in calibration, and what an 8-bit grid covers")
    axes.set_xlabel("value")
    axes.set_ylabel("elements per bar")
    axes.legend(title="limits chosen by")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_atomically(path, buffer.getvalue())


def _bars(statistics: TensorStatistics) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """About `BARS` bars from the fine histogram: edges `[bars + 1]` and counts `[bars]`, no element lost."""
    counts = statistics.counts
    per_bar = max(1, -(-len(counts) // BARS))
    padded = np.zeros(-(-len(counts) // per_bar) * per_bar, np.int64)
    padded[: len(counts)] = counts
    bars = padded.reshape(-1, per_bar).sum(axis=1)
    edges = (statistics.first_bin + per_bar * np.arange(len(bars) + 1)) * statistics.width
    return edges.astype(np.float64), bars
