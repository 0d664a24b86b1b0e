"""Statistics travel to disk and back bit by bit; a file that is not what was written is refused."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from safetensors.numpy import load as parse
from safetensors.numpy import save as build

from detent.errors import CalibrationError, FormatError
from detent.kernels.statistics import StatisticsAccumulator
from detent.records.statistics import Statistics, TensorStatistics


def tensor_statistics(*arrays, channel_axis=None, constant=False):
    accumulator = StatisticsAccumulator(channel_axis)
    for array in arrays:
        accumulator.update(array)
    return TensorStatistics(accumulator.state(), constant=constant)


def noise(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def example(seed=0, fingerprint="f" * 64, names=("x", "layer.0/conv", "zeros")):
    arrays = (noise(seed, 4, 3, 5), noise(seed + 1, 4, 6), np.zeros((4, 2), np.float32))
    tensors = {name: tensor_statistics(array, channel_axis=1) for name, array in zip(names, arrays, strict=False)}
    return Statistics(tensors, 4, fingerprint, ("a note",))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "statistics.safetensors"
    example().save(path)
    return path


def test_properties():
    x = noise(3, 4, 3, 5)
    x[0, 0, 0] = 0
    tensor = tensor_statistics(x, channel_axis=1)
    assert tensor.count == 60
    assert tensor.zeros == 1
    assert tensor.minimum == x.min()
    assert tensor.maximum == x.max()
    assert tensor.mean == pytest.approx(x.mean(dtype=np.float64))
    assert tensor.std == pytest.approx(x.std(dtype=np.float64))
    assert tensor.width == 2.0**tensor.exponent
    assert tensor.counts.sum() == 60
    assert tensor.first_bin == np.floor(x.min() / tensor.width)
    np.testing.assert_array_equal(tensor.channel_minimum, x.min(axis=(0, 2)))
    np.testing.assert_array_equal(tensor.channel_maximum, x.max(axis=(0, 2)))
    np.testing.assert_allclose(tensor.channel_mean, x.mean(axis=(0, 2), dtype=np.float64), rtol=1e-12)


def test_states_are_frozen_copies():
    accumulator = StatisticsAccumulator()
    accumulator.update(noise(0, 2, 3))
    state = accumulator.state()
    tensor = TensorStatistics(state)
    for array in tensor.state.values():
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    accumulator.update(noise(1, 2, 3))
    assert tensor.count == 6


def test_round_trip(saved):
    loaded = Statistics.load(saved)
    assert loaded == example()
    assert list(loaded) == ["x", "layer.0/conv", "zeros"]
    assert loaded.samples == 4
    assert loaded.notes == ("a note",)
    assert loaded["x"] == example()["x"]


def test_same_statistics_same_bytes(saved, tmp_path):
    for run in range(5):
        again = tmp_path / f"{run}.safetensors"
        Statistics.load(str(saved)).save(str(again))
        assert again.read_bytes() == saved.read_bytes()


def test_merge_is_exact_and_symmetric():
    first, second = noise(1, 5, 3, 7), noise(2, 9, 3, 7) * 100
    whole = tensor_statistics(first, second, channel_axis=1)
    one, two = (tensor_statistics(array, channel_axis=1) for array in (first, second))
    assert one.merge(two) == two.merge(one) == whole
    assert one.count == first.size


def test_merge_of_whole_records():
    merged = example(0).merge(example(10))
    assert merged.samples == 8
    assert merged["x"].count == 120
    assert merged.notes == ("a note",)


def test_merge_refuses_strangers():
    with pytest.raises(CalibrationError, match="different graphs"):
        example().merge(example(fingerprint="0" * 64))
    with pytest.raises(CalibrationError, match="different values"):
        example().merge(example(names=("x", "y", "zeros")))
    other = {**example().tensors, "zeros": tensor_statistics(np.zeros((4, 3), np.float32), channel_axis=1)}
    with pytest.raises(CalibrationError, match="cannot be merged"):
        example().merge(Statistics(other, 4, "f" * 64))


def test_constants_merge_to_themselves():
    once, other = (tensor_statistics(noise(seed, 1, 3), constant=True) for seed in (0, 1))
    assert once.merge(once) == once
    with pytest.raises(ValueError, match="differs"):
        once.merge(other)


def test_values_that_share_a_grid_are_taken_together():
    first, second = noise(1, 5, 3, 7), noise(2, 5, 4, 2)
    values = [tensor_statistics(array, channel_axis=1) for array in (first, second)]
    pooled = TensorStatistics.pool(values)
    assert pooled.count == first.size + second.size
    assert pooled.maximum == max(first.max(), second.max())
    assert pooled.channel_mean is None
    assert TensorStatistics.pool(reversed(values)) == pooled
    with pytest.raises(ValueError, match="no value"):
        TensorStatistics.pool([])


def test_table_names_every_value():
    text = str(example())
    for name in example():
        assert name in text
    assert "100.0%" in text
    assert text.endswith("note: a note")


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -1])
def test_truncated_file(saved, kept):
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(FormatError, match="not a complete statistics file") as caught:
        Statistics.load(saved)
    assert str(saved) in str(caught.value)
    assert caught.value.remedy


def test_any_flipped_bit_is_noticed(saved):
    raw = saved.read_bytes()
    rng = np.random.default_rng(0)
    header = 8 + int.from_bytes(raw[:8], "little")
    places = {*range(8), *rng.integers(8, header, 150).tolist(), *rng.integers(header, len(raw), 150).tolist()}
    for place in sorted(places):
        damaged = bytearray(raw)
        damaged[place] ^= 1 << int(rng.integers(8))
        saved.write_bytes(damaged)
        with pytest.raises(FormatError):
            Statistics.load(saved)


def edited(saved, change_meta=None, change_arrays=None, *, sign=False):
    """Rewrite a file as somebody with safetensors at hand would, with a digest that fits if `sign`."""
    from detent.records import tensor_file as module

    raw = saved.read_bytes()
    arrays = parse(raw)
    meta = json.loads(json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]["detent"])
    if change_meta:
        change_meta(meta)
    if change_arrays:
        change_arrays(arrays)
    if sign:
        meta.pop("digest")
        meta["digest"] = module._digest(meta, arrays)
    saved.write_bytes(build(arrays, metadata={"detent": json.dumps(meta)}))


def test_edited_file(saved):
    edited(saved, change_meta=lambda meta: meta.update(samples=5))
    with pytest.raises(FormatError, match="changed after it was written"):
        Statistics.load(saved)


def test_missing_tensors(saved):
    edited(saved, change_arrays=lambda arrays: arrays.pop(next(iter(arrays))), sign=True)
    with pytest.raises(FormatError, match="contradict themselves"):
        Statistics.load(saved)


def test_counts_that_do_not_add_up(saved):
    def spoil(arrays):
        arrays["x/counts"] = arrays["x/counts"] + 1

    edited(saved, change_arrays=spoil, sign=True)
    with pytest.raises(FormatError, match="contradict themselves"):
        Statistics.load(saved)


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda meta: meta.update(version=99), "format version 99"),
        (lambda meta: meta.update(format="detent.plan"), "holds 'detent.plan'"),
    ],
)
def test_other_formats(saved, change, pattern):
    edited(saved, change_meta=change, sign=True)
    with pytest.raises(FormatError, match=pattern):
        Statistics.load(saved)


def test_strange_files(tmp_path):
    path = tmp_path / "other.safetensors"
    with pytest.raises(FormatError, match="No such file"):
        Statistics.load(path)
    path.write_bytes(build({"weight": noise(0, 3)}))
    with pytest.raises(FormatError, match="not a complete statistics file"):
        Statistics.load(path)
    path.write_text("hello")
    with pytest.raises(FormatError, match="not a complete statistics file"):
        Statistics.load(path)
    with pytest.raises(FormatError, match="Is a directory"):
        Statistics.load(tmp_path)


def test_nothing_half_written(saved, monkeypatch):
    before = saved.read_bytes()

    def full_disk(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(FormatError, match="No space left on device"):
        example(5).save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_missing_folder(tmp_path):
    with pytest.raises(FormatError, match="cannot write the file"):
        example().save(tmp_path / "missing" / "statistics.safetensors")
    assert not list(tmp_path.iterdir())
