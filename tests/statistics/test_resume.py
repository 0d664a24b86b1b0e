"""Interrupted and resumed: the same bits as in one go, and no file of another run is taken for one's own."""

from __future__ import annotations

import _thread
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detent.errors import CalibrationError, FormatError
from detent.records.statistics import read_statistics
from detent.statistics import calibrate
from detent.statistics.checkpoint import Checkpoint
from detent.statistics.collector import Collector
from tests.statistics.networks import residual_graph, samples

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def graph():
    return residual_graph()


@pytest.fixture(scope="module")
def images():
    return samples(150)


@pytest.fixture(scope="module")
def reference(graph, images):
    return calibrate(graph, images, progress=False, batch_size=16).to_bytes()


def stopping(images, after, error):
    """Batches of 5 that end in an error."""
    for index, batch in enumerate(images.split(5)):
        if index == after:
            raise error
        yield batch


@pytest.mark.parametrize("after", [1, 4, 13, 29])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("the network is gone")])
def test_interrupted_while_reading(graph, images, reference, tmp_path, after, error):
    path = tmp_path / "partial.safetensors"
    options = {"progress": False, "batch_size": 16, "resume": path}
    with pytest.raises(type(error)) as caught:
        calibrate(graph, stopping(images, after, error), **options)
    if isinstance(error, KeyboardInterrupt):
        assert "resume=" in str(caught.value)
    assert calibrate(graph, images.split(9), **options).to_bytes() == reference
    assert calibrate(graph, images, **options).to_bytes() == reference  # complete: nothing left to count


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("value", [0, 2, 5])
def test_interrupted_inside_a_batch(graph, images, reference, tmp_path, value, threads, monkeypatch):
    """Batches that are being counted are finished, and then everything is saved."""
    path = tmp_path / "partial.safetensors"
    observe = Collector.observe
    seen = []

    def interrupting(self, index, tensor):
        observe(self, index, tensor)
        if index == value:
            seen.append(index)
            if len(seen) == 3:
                _thread.interrupt_main()

    before = torch.get_num_threads()
    # A process started in the background of a shell ignores interrupts.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(threads)
    with monkeypatch.context() as patch:
        patch.setattr(Collector, "observe", interrupting)
        with pytest.raises(KeyboardInterrupt, match="resume="):
            calibrate(graph, images, progress=False, batch_size=16, resume=path)
    signal.signal(signal.SIGINT, handler)
    assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert 48 <= read_statistics(path)[0].samples < 150
    assert calibrate(graph, images, progress=False, batch_size=16, resume=path).to_bytes() == reference


def test_finished_work_is_not_lost_to_a_full_disk(graph, images, reference, tmp_path, monkeypatch):
    def full(self, path):
        raise FormatError("cannot write the file: No space left on device", where=str(path))

    monkeypatch.setattr(Checkpoint, "save", full)
    options = {"progress": False, "batch_size": 16, "resume": tmp_path / "partial.safetensors"}
    statistics = calibrate(graph, images, save_every=100, **options)
    assert any("No space left on device" in note for note in statistics.notes)
    assert replace(statistics, notes=()).to_bytes() == reference
    with pytest.raises(FormatError, match="No space left"):
        calibrate(graph, images, save_every=2, **options)


def test_killed_and_resumed(graph, images, reference, tmp_path):
    path = tmp_path / "partial.safetensors"
    script = textwrap.dedent(f"""
        import time
        from detent.statistics import calibrate
        from tests.statistics.networks import residual_graph, samples

        def slow():
            for batch in samples(150).split(10):
                yield batch
                time.sleep(0.2)

        calibrate(residual_graph(), slow, progress=False, batch_size=16, resume={str(path)!r}, save_every=1)
        """)
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert calibrate(graph, images, progress=False, batch_size=16, resume=path).to_bytes() == reference
    assert not [other for other in tmp_path.iterdir() if other != path and not other.name.startswith(".")]


@pytest.fixture
def partial(graph, images, tmp_path):
    path = tmp_path / "partial.safetensors"
    with pytest.raises(OSError):
        calibrate(graph, stopping(images, 13, OSError()), progress=False, batch_size=16, resume=path)
    return path


def test_other_data_are_refused(graph, images, partial):
    options = {"progress": False, "batch_size": 16, "resume": partial}
    shuffled = images[torch.randperm(150, generator=torch.Generator().manual_seed(3))]
    with pytest.raises(CalibrationError, match="do not begin with the 64 samples"):
        calibrate(graph, shuffled, **options)
    with pytest.raises(CalibrationError, match="do not begin with the 64 samples"):
        calibrate(graph, images[:30], **options)


def test_other_runs_are_refused(images, graph, partial):
    with pytest.raises(CalibrationError, match="another batch size"):
        calibrate(graph, images, progress=False, batch_size=32, resume=partial)
    with pytest.raises(CalibrationError, match="another set of values"):
        calibrate(graph, images, progress=False, batch_size=16, resume=partial, values=["relu"])
    with pytest.raises(CalibrationError, match="another model"):
        calibrate(residual_graph(dynamic_batch=False, batch=16), images, progress=False, resume=partial)
    finished = partial.with_name("finished.safetensors")
    calibrate(graph, images, progress=False).save(finished)
    with pytest.raises(CalibrationError, match="finished statistics"):
        calibrate(graph, images, progress=False, resume=finished)


def test_damaged_resume_file(graph, images, partial):
    partial.write_bytes(partial.read_bytes()[:-10])
    with pytest.raises(FormatError, match="not a complete statistics file"):
        calibrate(graph, images, progress=False, batch_size=16, resume=partial)


def test_resume_where_nothing_can_be_written(graph, images, tmp_path):
    def unread():
        raise AssertionError("the data are not touched")

    with pytest.raises(FormatError, match="Is a directory"):
        calibrate(graph, unread, progress=False, resume=tmp_path)
    with pytest.raises(FormatError, match="cannot write the file"):
        calibrate(graph, unread, progress=False, resume=tmp_path / "missing" / "partial.safetensors")
