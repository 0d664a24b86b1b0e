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
import detent.exporters
from detent import _core
from harness import Row, compare, print_rows, time_in_turns, write_section
from networks import NETWORKS, add_data_option, load_zoo

TARGET = "onnxruntime"
MICRO_IMAGES = 4
"""How many images tflite-micro runs in a turn."""
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
    """Calls by name."""
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


def against_tflite_micro(zoo: Any, network: str, options: argparse.Namespace) -> list[Row]:
    """The program with the rules of tflite-micro against its own kernels, which have one thread and take one image."""
    from tflite_micro.python.tflite_micro import runtime

    use_threads(1)
    qmodel = detent.quantize(zoo.load(network), zoo.calibration(512, 64), target="tflite", progress=False)
    program, images = detent.lower(qmodel), zoo.images("test")[0].numpy()
    with tempfile.TemporaryDirectory() as folder:
        path = detent.export(qmodel, Path(folder) / "model.tflite").path
        agreement = detent.exporters.verify(path, qmodel, torch.from_numpy(images[:MICRO_IMAGES]))
        assert agreement.equal, str(agreement)
        interpreter = runtime.Interpreter.from_file(str(path), arena_size=64 * 2**20)
    pictures = np.ascontiguousarray(images[:MICRO_IMAGES].transpose(0, 2, 3, 1))

    def micro() -> None:
        for picture in pictures:
            interpreter.set_input(picture[None], 0)
            interpreter.invoke()
            interpreter.get_output(0)

    calls = {
        "program": lambda: program.run(images[: options.batches[-1]]).outputs[0],
        "tflite-micro": micro,
    }
    times = time_in_turns(calls, rounds=max(3, options.rounds // 3), chosen=min, clock=time.process_time)
    # By the image: the rival's kernels take no more at a time.
    each = {"program": times["program"] / options.batches[-1], "tflite-micro": times["tflite-micro"] / MICRO_IMAGES}
    name = f"{network}, 1 threads, {options.batches[-1]} images: tflite-micro"
    note = "by the image, tflite-micro runs one at a time; all codes equal"
    return [compare(name, each, "program", "tflite-micro", at_least=50.0, note=note)]


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
        rows = [*measure(zoo, network, options), *against_tflite_micro(zoo, network, options)]
        print_rows(network, rows)
        if not options.no_write:
            write_section("integer", network, rows)


if __name__ == "__main__":
    main()
