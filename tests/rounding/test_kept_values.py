"""Kept values come back to half precision of each sample, from memory and from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from detent.rounding.kept_values import KeptValues, Shelf

EVERY = np.arange(12)


def kept_in(folder: Path, value: Tensor, axis: int = 0, memory_mb: int = 1, parts: int = 3) -> KeptValues:
    """A value, put part by part, the last one first but one."""
    samples = value.shape[axis]
    kept = KeptValues(Shelf(memory_mb, folder), samples, axis)
    size = samples // parts
    for start in (0, *range(samples - size, 0, -size)):
        kept.put(start, value.narrow(axis, start, size))
    return kept


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_close(found: Tensor, value: Tensor, axis: int) -> None:
    """Within half precision of the largest magnitude of the sample."""
    assert found.dtype == value.dtype
    assert found.shape == value.shape
    errors, magnitudes = ((one.movedim(axis, 0).flatten(1).double().abs().amax(1)) for one in (found - value, value))
    assert bool((errors <= 2.0**-11 * magnitudes).all())


@pytest.mark.parametrize("memory_mb", [0, 1])
@pytest.mark.parametrize("magnitude", [1e-38, 1e-30, 1e-3, 1.0, 1e5, 1e30, 1e37])
def test_any_magnitude(magnitude: float, memory_mb: int, tmp_path: Path) -> None:
    value = numbers(12, 5, 7) * magnitude
    assert_close(kept_in(tmp_path, value, memory_mb=memory_mb).take(EVERY), value, 0)


def test_each_sample_has_its_own_magnitude(tmp_path: Path) -> None:
    value = numbers(12, 40) * 10.0 ** torch.linspace(-30, 30, 12)[:, None]
    value[3] = 0
    assert_close(kept_in(tmp_path, value).take(EVERY), value, 0)


@pytest.mark.parametrize("magnitude", [1.0, 1 - 2.0**-24, 1 - 2.0**-12, 2.0**15, 65504.0, 65520.0])
def test_at_the_ends_of_half_precision(magnitude: float, tmp_path: Path) -> None:
    value = torch.tensor([[magnitude, magnitude / 3], [-magnitude, 2.0**-14]])
    kept = KeptValues(Shelf(1, tmp_path), 2, 0)
    kept.put(0, value)
    assert_close(kept.take(np.arange(2)), value, 0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_whole_numbers_are_exact(dtype: torch.dtype, tmp_path: Path) -> None:
    value = (numbers(12, 6) * 100).abs().to(dtype)
    value[0, 0] = torch.iinfo(dtype).max if dtype != torch.bool else True
    assert torch.equal(kept_in(tmp_path, value).take(EVERY), value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_floating_point_numbers_keep_their_type(dtype: torch.dtype, tmp_path: Path) -> None:
    value = numbers(12, 6).to(dtype)
    assert_close(kept_in(tmp_path, value).take(EVERY), value, 0)


def test_channels_last_stays(tmp_path: Path) -> None:
    value = numbers(12, 5, 4, 3).contiguous(memory_format=torch.channels_last)
    found = kept_in(tmp_path, value).take(EVERY)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert_close(found, value, 0)
    plain = kept_in(tmp_path, numbers(12, 5, 4, 3)).take(EVERY)
    assert plain.is_contiguous()


@pytest.mark.parametrize("axis", [1, 2])
def test_samples_along_another_axis(axis: int, tmp_path: Path) -> None:
    value = numbers(12, 5, 7).movedim(0, axis).contiguous()
    kept = kept_in(tmp_path, value, axis)
    assert_close(kept.take(EVERY), value, axis)
    assert kept.size == 35


def test_samples_in_any_order(tmp_path: Path) -> None:
    value = numbers(12, 5)
    kept = kept_in(tmp_path, value)
    chosen = np.array([7, 0, 7, 11])
    assert torch.equal(kept.take(chosen), kept.take(EVERY)[chosen])


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_told(wrong: float, tmp_path: Path) -> None:
    value = numbers(12, 5)
    kept = kept_in(tmp_path, value)
    assert kept.is_finite
    value[5, 2] = wrong
    kept = kept_in(tmp_path, value)
    assert not kept.is_finite
    rest = np.delete(EVERY, 5)
    assert_close(kept.take(rest), value[rest], 0)


def test_files_hold_the_same_and_go_away(tmp_path: Path) -> None:
    value = numbers(12, 5, 7)
    on_disk, in_memory = (kept_in(tmp_path, value, memory_mb=memory) for memory in (0, 1))
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size == 2 * value.numel()
    assert torch.equal(on_disk.take(EVERY), in_memory.take(EVERY))
    on_disk.drop()
    assert list(tmp_path.iterdir()) == []


def test_memory_is_given_back(tmp_path: Path) -> None:
    shelf = Shelf(1, tmp_path)
    for _ in range(3):
        kept = KeptValues(shelf, 12, 0)
        kept.put(0, numbers(12, 40_000))
        assert list(tmp_path.iterdir()) == []
        kept.drop()
        kept.drop()


def test_what_does_not_fit_goes_to_files_and_less_may_still_fit(tmp_path: Path) -> None:
    shelf = Shelf(1, tmp_path)
    files = []
    for size in (30_000, 30_000, 10_000):
        kept = KeptValues(shelf, 12, 0)
        kept.put(0, numbers(12, size))
        files.append(len(list(tmp_path.iterdir())))
    assert files == [0, 1, 1]


def test_nothing_put_is_nothing_to_drop(tmp_path: Path) -> None:
    KeptValues(Shelf(1, tmp_path), 12, 0).drop()
