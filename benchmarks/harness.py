"""Timing, comparison and results for every benchmark: verify first, then time, then write JSON.

Machines are shared and their clocks wander, so nothing here reports a lone time that matters: rivals are timed in turns
within one run (`time_in_turns`) and a `Row` carries the ratio.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from detent import _core

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured figure.

    Args:
        name: what was measured.
        seconds: median time of one call.
        figure: the number the goal speaks of, in `unit`.
        unit: e.g. `"x memcpy"`, `"G elements/s"`, `"ms"`.
        goal: the least (or, with `at_most`, the greatest) acceptable figure; None if there is none.
        at_most: the goal is an upper limit.
        note: anything a reader needs to judge the figure.
    """

    name: str
    seconds: float
    figure: float
    unit: str
    goal: float | None = None
    at_most: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without a goal."""
        if self.goal is None:
            return None
        return self.figure <= self.goal if self.at_most else self.figure >= self.goal


def time_in_turns(
    rivals: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 9,
    warmups: int = 1,
    floor_s: float = 0.002,
    chosen: Callable[[list[float]], float] = statistics.median,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds per call of each rival, timed in turns so that a slow moment of the machine hits all alike.

    A rival faster than `floor_s` is called several times per turn. `chosen` takes the least time, say, instead of the
    median: rivals with threads that wait for each other lose more than others to a busy machine. `clock` may be
    `time.process_time` where all of them work on one thread.
    """
    repeats: dict[str, int] = {}
    for name, call in rivals.items():
        for _ in range(warmups):
            call()
        start = clock()
        call()
        repeats[name] = max(1, int(floor_s / max(clock() - start, 1e-9)))
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, call in rivals.items():
            start = clock()
            for _ in range(repeats[name]):
                call()
            times[name].append((clock() - start) / repeats[name])
    return {name: chosen(values) for name, values in times.items()}


def compare(
    name: str, times: Mapping[str, float], ours: str, rival: str, *, at_least: float | None = None, note: str = ""
) -> Row:
    """How many times faster `ours` is than `rival`, both from one `time_in_turns`."""
    return Row(
        name=name, seconds=times[ours], figure=times[rival] / times[ours], unit=f"x {rival}", goal=at_least, note=note
    )


def rate(name: str, seconds: float, elements: int, *, at_least: float | None = None, note: str = "") -> Row:
    """Throughput in units of 1e9 elements per second."""
    return Row(
        name=name, seconds=seconds, figure=elements / seconds / 1e9, unit="G elements/s", goal=at_least, note=note
    )


def limit(name: str, seconds: float, *, at_most_ms: float | None = None, note: str = "") -> Row:
    """An absolute time in milliseconds with an upper limit."""
    return Row(name=name, seconds=seconds, figure=seconds * 1e3, unit="ms", goal=at_most_ms, at_most=True, note=note)


def print_rows(title: str, rows: Sequence[Row]) -> None:
    """Print rows as a table."""
    print(f"\n{title}")
    for row in rows:
        goal = "" if row.goal is None else f"goal {'<=' if row.at_most else '>='} {row.goal:g}"
        verdict = {None: "", True: "ok", False: "MISSED"}[row.met]
        line = f"  {row.name:<58} {row.seconds * 1e3:10.3f} ms {row.figure:9.3g} {row.unit:<26} {goal:<14} {verdict:<7}"
        print(f"{line}{row.note}".rstrip())


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    libraries = {}
    for package in ("numpy", "torch", "onnxruntime"):
        try:
            libraries[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "compiler": _core.compiler,
        "isa": _core.active_isa(),
        "threads": _core.num_threads(),
        "libraries": libraries,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    for line in lines:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def write_network(file: str, network: str, found: Mapping[str, Any]) -> None:
    """Put the table of one network into `results/<file>.json`: an interruption loses one table at most."""
    results = {"machine": machine(), "networks": dict(sorted({**written(file), network: found}.items()))}
    (RESULTS / f"{file}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def written(file: str) -> dict[str, Any]:
    """The tables of the networks in `results/<file>.json`."""
    path = RESULTS / f"{file}.json"
    networks: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["networks"] if path.exists() else {}
    return networks


def write_section(file: str, section: str, rows: Sequence[Row]) -> Path:
    """Put the rows of one section into `results/<file>.json`, replacing that section only."""
    path = RESULTS / f"{file}.json"
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    data[section] = {
        "machine": machine(),
        "rows": [{**asdict(row), "met": row.met} for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(sorted(data.items())), indent=1) + "\n", encoding="utf-8")
    return path
