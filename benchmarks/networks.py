"""Trained networks and images for the benchmarks, from a data folder that a user may not have.

The folder (`--data`) holds `cifar10_*.npz` and `*.safetensors`; the file `zoo.py` beside it defines the networks.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

NETWORKS = ("resnet20", "mobilenetv2")
DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data"


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """Give a benchmark its `--data` option."""
    parser.add_argument(
        "--data", type=Path, default=DEFAULT, help="folder with checkpoints and images (default ../shared/data)"
    )


def load_zoo(data: Path) -> ModuleType:
    """The module that defines, loads and evaluates the networks.

    Raises:
        SystemExit: the folder or the module is not there.
    """
    source = data.parent / "zoo.py"
    if not data.is_dir() or not source.is_file():
        sys.exit(f"no networks at {data}: pass --data FOLDER, with zoo.py beside the folder")
    spec = importlib.util.spec_from_file_location("zoo", source)
    if spec is None or spec.loader is None:
        sys.exit(f"cannot import {source}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
