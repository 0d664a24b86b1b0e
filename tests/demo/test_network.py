"""The demo's data and network: shipped weights, honest split, reproducible training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detent.demo import network as demo_network
from detent.demo.data import CALIBRATION_IMAGES, calibration_images, load_test, load_training
from detent.demo.network import DigitsNet, accuracy, load_network
from detent.demo.train import train
from detent.errors import FormatError


def test_the_splits_are_disjoint_and_real() -> None:
    training, test = load_training(), load_test()
    assert training.images.shape == (1200, 1, 8, 8)
    assert test.images.shape == (597, 1, 8, 8)
    assert training.images.dtype == torch.float32
    assert float(training.images.min()) == 0.0
    assert float(training.images.max()) == 1.0
    seen = {image.numpy().tobytes() for image in training.images}
    assert not any(image.numpy().tobytes() in seen for image in test.images)


def test_calibration_images_come_from_the_training_split() -> None:
    images = calibration_images()
    assert images.shape == (CALIBRATION_IMAGES, 1, 8, 8)
    seen = {image.numpy().tobytes() for image in load_training().images}
    assert all(image.numpy().tobytes() in seen for image in images)


def test_the_shipped_network_reads_digits_of_unseen_writers() -> None:
    network = load_network()
    assert not network.training
    assert accuracy(network, load_test()) > 0.98


def test_the_network_has_depthwise_layers() -> None:
    groups = [m.groups for m in DigitsNet().modules() if isinstance(m, torch.nn.Conv2d)]
    assert sum(count > 1 for count in groups) == 3


def test_training_is_reproducible_and_learns() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        first, second = train(epochs=2), train(epochs=2)
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert accuracy(first, load_test()) > 0.3  # chance is 0.1


def test_damaged_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / demo_network.WEIGHTS_FILE).write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00damaged!")
    monkeypatch.setattr(demo_network.resources, "files", lambda _: tmp_path)
    with pytest.raises(FormatError, match=r"digits\.safetensors"):
        load_network()
