"""Every form of data gives the same statistics; everything else is refused with what was expected."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from detent.errors import CalibrationError, FormatError
from detent.statistics import calibrate
from tests.statistics.networks import SHAPE, residual_graph, samples


@pytest.fixture(scope="module")
def graph():
    return residual_graph()


@pytest.fixture(scope="module")
def images():
    return samples(20)


@pytest.fixture(scope="module")
def reference(graph, images):
    return calibrate(graph, images, progress=False)


def test_arrays_and_tensors(graph, images, reference):
    array = images.numpy()
    frozen = array.copy()
    frozen.setflags(write=False)
    backwards = np.ascontiguousarray(array[::-1])[::-1]
    for data in (
        array,
        frozen,
        backwards,
        images.contiguous(memory_format=torch.channels_last),
        images.requires_grad_(),
    ):
        assert calibrate(graph, data, progress=False) == reference
    images.requires_grad_(False)


def test_iterables_and_functions(graph, images, reference):
    batches = list(images.split(6))
    for data in (batches, tuple(batches), iter(batches), (batch for batch in batches), lambda: iter(batches)):
        assert calibrate(graph, data, progress=False) == reference
    for data in ([batch.numpy() for batch in batches], [[batch] for batch in batches], [{"x": b} for b in batches]):
        assert calibrate(graph, data, progress=False) == reference


def test_loader_with_labels(graph, images, reference):
    loader = DataLoader(TensorDataset(images, torch.arange(20)), batch_size=6)
    statistics = calibrate(graph, loader, progress=False)
    assert statistics.tensors == reference.tensors
    assert statistics.notes == ("the last part of each batch was taken for labels and ignored",)


def test_dict_with_labels(graph, images, reference):
    statistics = calibrate(graph, [({"x": images}, torch.arange(20))], progress=False)
    assert statistics.tensors == reference.tensors
    statistics = calibrate(graph, [{"x": images, "y": torch.arange(20)}], progress=False)
    assert statistics.tensors == reference.tensors
    assert statistics.notes == ("entry 'y' of the data is not an input of the model and was ignored",)


@pytest.mark.parametrize("names", [("x",), ("pictures",), ("x", "y"), ("pictures", "y")])
def test_npz(graph, images, reference, tmp_path, names):
    path = tmp_path / "data.npz"
    np.savez(path, **dict(zip(names, (images.numpy(), np.arange(20)), strict=False)))
    for data in (path, str(path)):
        statistics = calibrate(graph, data, progress=False)
        assert statistics.tensors == reference.tensors
        assert len(statistics.notes) == len(names) - 1


def refuse(graph, data, pattern, error=CalibrationError):
    with pytest.raises(error, match=pattern) as caught:
        calibrate(graph, data, progress=False)
    assert caught.value.remedy


def test_empty_data(graph):
    refuse(graph, [], "empty: not a single batch")
    refuse(graph, iter([]), "used up before")
    refuse(graph, list, "empty")
    refuse(graph, torch.zeros(0, *SHAPE), "is empty: shape")
    refuse(graph, [torch.zeros(2, *SHAPE), torch.zeros(0, *SHAPE)], "batch 1 is empty")


def test_iterator_used_up(graph, images):
    batches = iter([images])
    calibrate(graph, batches, progress=False)
    refuse(graph, batches, "used up before")


def test_wrong_dtype_is_never_cast(graph, images):
    refuse(graph, images.double(), "dtype float64, the model takes float32")
    refuse(graph, images.half().numpy(), "dtype float16, the model takes float32")
    refuse(graph, (images * 20).to(torch.uint8), "raw images need the normalization")
    refuse(graph, np.array(["a"] * 3), "torch does not have")


def test_wrong_shape(graph, images):
    refuse(graph, images[0], r"needs a batch axis, e.g. x.unsqueeze\(0\)")
    refuse(graph, list(images), r"needs a batch axis")
    refuse(graph, images[:, :2], r"shape \[20, 2, 8, 8\]")
    refuse(graph, images.permute(0, 2, 3, 1), r"x: float32 \[batch, 3, 8, 8\]")


def test_wrong_number_of_inputs(graph, images):
    refuse(graph, [(images, images)], "more parts that look like inputs than the 1")
    refuse(graph, [(images, torch.arange(20), torch.arange(20))], "takes 1 input")
    refuse(graph, [{"pictures": images}], "no entry for the model's input 'x'")
    refuse(graph, [()], "takes 1 input")


def test_not_data(graph):
    refuse(graph, 3, "cannot be iterated over")
    refuse(graph, [3.5], "is a float, not a tensor")
    refuse(graph, [torch.zeros(2, *SHAPE).to_sparse()], "sparse")
    refuse(graph, torch.zeros(2, *SHAPE, device="meta"), "is on meta")


def test_files(graph, images, tmp_path):
    good = tmp_path / "good.npz"
    np.savez(good, x=images.numpy())
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    refuse(graph, damaged, "cannot read the calibration data", FormatError)
    refuse(graph, tmp_path / "missing.npz", "No such file", FormatError)
    objects = tmp_path / "objects.npz"
    np.savez(objects, x=np.array([{"a": 1}], dtype=object))
    refuse(graph, objects, "Object arrays cannot be loaded|allow_pickle", FormatError)
    plain = tmp_path / "data.npy"
    np.save(plain, images.numpy())
    refuse(graph, plain, "must be .npz")
    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, a=np.zeros(3), b=np.zeros(4))
    refuse(graph, wrong, "no entry for the model's input 'x'")


def test_inputs_of_different_length():
    from detent.graph import capture
    from tests.statistics.networks import TwoInputs, build

    graph = capture(build(TwoInputs), (torch.zeros(2, 4), torch.zeros(2, 3)))
    refuse(graph, [(torch.zeros(4, 4), torch.zeros(5, 3))], "different batch sizes")
    refuse(graph, [torch.zeros(4, 4)], "takes 2 input")


def test_errors_of_the_source_are_the_users(graph, images):
    def source():
        yield images
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        calibrate(graph, source, progress=False)
