"""Speed of integer programs against torch's float forward pass and onnxruntime's integer kernels.

    python benchmarks/integer.py [--data FOLDER] [--networks ...] [--threads 1 2] [--batches 1 128] [--rounds 15]

A figure above 1 says that the program is faster. Rivals take turns within one run, with the same number of threads and
the same images, and the least time of each counts: that of the processor where there is one thread, which a busy
machine disturbs less. onnxruntime runs the exported file with all of its graph optimizations. Before anything is timed,
the program's classes are compared with those of the file in onnxruntime and its codes with those on one thread of the
slowest instruction set. Rows go to `benchmarks/results/integer.json`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import detent
from detent import _core
from harness import Row, compare, print_rows, time_in_turns, write_section
from networks import NETWORKS, add_data_option, load_zoo

TARGET = "onnxruntime"
Rivals = dict[str, Callable[[], Any]]


def use_threads(count: int) -> None:
    """The same number of threads for torch and detent."""
    torch.set_num_threads(count)
    _core.set_num_threads(count)


def session_of(path: Path, threads: int) -> Any:
    """onnxruntime with its integer kernels; its threads sleep while others have their turn."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def rivals(model: torch.nn.Module, program: detent.IntegerProgram, path: Path, x: np.ndarray, threads: int) -> Rivals:
    """Calls by name; one of TensorFlow Lite for Microcontrollers belongs here when files for it are written."""
    session, tensor = session_of(path, threads), torch.from_numpy(x)
    (entry,) = session.get_inputs()

    def forward() -> torch.Tensor:
        with torch.inference_mode():
            return model(tensor)

    return {
        "program": lambda: program.run(x).outputs[0],
        "torch float": forward,
        "onnxruntime": lambda: session.run(None, {entry.name: x})[0],
    }


def verify(program: detent.IntegerProgram, path: Path, x: np.ndarray) -> float:
    """Percent of images with onnxruntime's class; raises AssertionError where instruction sets differ."""
    before, threads = _core.active_isa(), _core.num_threads()
    found = program.run(x)
    try:
        _core.set_isa("baseline")
        _core.set_num_threads(1)
        slow = program.run(x)
    finally:
        _core.set_isa(before)
        _core.set_num_threads(threads)
    for name, codes in found.codes.items():
        np.testing.assert_array_equal(codes, slow.codes[name])
    session = session_of(path, 1)
    theirs = session.run(None, {session.get_inputs()[0].name: x})[0]
    agreeing = float(np.mean(found.outputs[0].argmax(1) == theirs.argmax(1)))
    assert agreeing > 0.98, f"{agreeing:.1%} of the classes are onnxruntime's"
    return 100 * agreeing


def measure(zoo: Any, network: str, options: argparse.Namespace) -> list[Row]:
    """Rows of one network: for each number of threads and images, times as fast as each rival."""
    model, batches = zoo.load(network).eval(), zoo.calibration(512, 64)
    images = zoo.images("test")[0].numpy()
    qmodel = detent.quantize(model, batches, target=TARGET, progress=False)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        detent.export(qmodel, path)
        program = detent.lower(qmodel)
        agreeing = verify(program, path, images[:256])
        for threads in options.threads:
            use_threads(threads)
            clock = time.process_time if threads == 1 else time.perf_counter
            for size in options.batches:
                x = np.ascontiguousarray(images[:size])
                calls = rivals(model, program, path, x, threads)
                times = time_in_turns(calls, rounds=options.rounds, warmups=2, chosen=min, clock=clock)
                note = f"{agreeing:.1f}% of 256 classes are onnxruntime's"
                for rival in ("torch float", "onnxruntime"):
                    goal = 1.0 if rival == "torch float" else None
                    name = f"{network}, {threads} threads, {size} images: {rival}"
                    rows.append(compare(name, times, "program", rival, at_least=goal, note=note))
    return rows


def main() -> None:
    """Measure the networks asked for and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 128])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    zoo = load_zoo(options.data)
    for network in options.networks:
        rows = measure(zoo, network, options)
        print_rows(network, rows)
        if not options.no_write:
            write_section("integer", network, rows)


if __name__ == "__main__":
    main()
