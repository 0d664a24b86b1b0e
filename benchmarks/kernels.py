"""Kernel benchmarks: each section verifies its kernel against the NumPy twin, then times it against rivals.

    python benchmarks/kernels.py [--only SECTION ...] [--threads N] [--no-write]

A section is a module `benchmarks/kernel_<name>.py` with

* `TITLE: str`, one line printed above its rows;
* `verify() -> None`, which raises AssertionError unless the kernel gives what its twin gives, on the timed inputs or on
  slices of them that the twin can afford;
* `measure() -> list[harness.Row]`, which times, in turns with its rivals (`harness.time_in_turns`), and returns rows
  with goals.

Sections are found by file name. Rows go to `benchmarks/results/kernels.json`, a section at a time, with the machine
each ran on. The exit status says whether verification passed, not whether goals were met: goals depend on the machine.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from types import ModuleType

from detent import _core
from harness import print_rows, write_section


def find_sections() -> dict[str, ModuleType]:
    """All sections by name."""
    names = sorted(path.stem for path in Path(__file__).resolve().parent.glob("kernel_*.py"))
    return {name.removeprefix("kernel_"): importlib.import_module(name) for name in names}


def main() -> None:
    """Run the sections asked for, all by default."""
    sections = find_sections()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=sorted(sections), metavar="SECTION", help=", ".join(sections))
    parser.add_argument("--threads", type=int, default=1, help="threads for detent and its rivals (default 1)")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    _core.set_num_threads(options.threads)
    _limit_torch(options.threads)
    for name, section in sections.items():
        if options.only and name not in options.only:
            continue
        section.verify()
        rows = section.measure()
        print_rows(section.TITLE, rows)
        if not options.no_write:
            write_section("kernels", name, rows)


def _limit_torch(threads: int) -> None:
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
