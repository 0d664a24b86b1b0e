"""Hessian traces travel to disk and back bit by bit, and become scores that no search can divide by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detent.errors import ConfigError, FormatError
from detent.kernels.statistics import StatisticsAccumulator
from detent.records.statistics import Statistics, TensorStatistics
from detent.records.traces import BinScores, HessianTraces, TensorTrace


def kernel(name: str = "conv", **changes: object) -> TensorTrace:
    elements = np.array([[1.0, 2.0], [0.0, 3.0]], np.float32)
    fields = {
        "name": name,
        "role": "weights",
        "size": 4,
        "trace": 6.0,
        "probe_error": 0.3,
        "sample_error": 0.5,
        "channels": np.array([3.0, 3.0]),
        "elements": elements,
    }
    return TensorTrace(**{**fields, **changes})  # type: ignore[arg-type]


def activation(name: str = "relu", sums: tuple[float, ...] = (1, 0, 0, 6), **changes: object) -> TensorTrace:
    counts = np.array([2.0, 0.0, 0.0, 3.0])
    bins = BinScores(exponent=0, first_bin=-1, sums=np.array(sums, np.float64), counts=counts)
    fields = {
        "role": "activations",
        "size": 5,
        "trace": 7.0,
        "sample_error": float("nan"),
        "channels": np.zeros(0),
        "elements": None,
        "members": (name,),
        "bins": bins,
    }
    return kernel(name, **{**fields, **changes})


def record(*tensors: TensorTrace) -> HessianTraces:
    return HessianTraces(
        tensors=tensors or (kernel(), activation()),
        method="hutchinson of outputs",
        samples=2,
        probes=8,
        tolerance=0.01,
        fingerprint="f" * 64,
        notes=("a note",),
    )


def statistics(values: list[float], names: tuple[str, ...] = ("relu",), fingerprint: str = "f" * 64) -> Statistics:
    accumulator = StatisticsAccumulator()
    accumulator.update(np.array([values], np.float32))
    return Statistics({name: TensorStatistics.of(accumulator) for name in names}, 1, fingerprint)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "traces.safetensors"
    first = record()
    first.save(path)
    loaded = HessianTraces.load(path)
    assert str(loaded) == str(first)
    for one, other in zip(first, loaded, strict=True):
        for name in ("name", "role", "size", "trace", "probe_error", "members"):
            assert getattr(one, name) == getattr(other, name)
        np.testing.assert_array_equal(one.sample_error, other.sample_error)
        np.testing.assert_array_equal(one.channels, other.channels)
    assert loaded.find("relu", "activations").elements is None
    np.testing.assert_array_equal(loaded.find("conv", "weights").elements, first.find("conv", "weights").elements)
    bins = loaded.find("relu", "activations").bins
    assert bins is not None
    assert (bins.exponent, bins.first_bin, list(bins.sums)) == (0, -1, [1, 0, 0, 6])
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "traces.safetensors"
    record().save(path)
    whole = path.read_bytes()
    for raw in (whole[:-5], whole[:-1] + b"\x01", b"", whole.replace(b"detent.traces", b"detent.tracks")):
        path.write_bytes(raw)
        with pytest.raises(FormatError):
            HessianTraces.load(path)
    with pytest.raises(FormatError, match="cannot read"):
        HessianTraces.load(tmp_path / "missing")
    with pytest.raises(FormatError, match="cannot write"):
        record().save(tmp_path / "no" / "folder")


def test_printing_and_finding() -> None:
    text = str(record())
    assert "HessianTraces(2 tensors by hutchinson of outputs, 2 samples, 8 probes)" in text
    assert "note: a note" in text
    assert text.splitlines()[2].split() == ["conv", "weights", "4", "6", "1.5", "5.0%", "8.3%"]
    assert record().find("conv", "weights").mean == 1.5
    assert [one.name for one in record().unconverged] == ["conv", "relu"]
    with pytest.raises(ConfigError, match="did you mean 'conv'"):
        record().find("conw", "weights")


def test_kernel_scores_are_never_zero() -> None:
    scores = record().scores().of_kernel("conv", (2, 2))
    np.testing.assert_allclose(scores, np.array([[1, 2], [1.5e-3, 3]]) / 1.5, rtol=1e-6)
    silent = kernel(trace=0.0, elements=np.zeros((2, 2), np.float32))
    np.testing.assert_array_equal(record(silent).scores().of_kernel("conv", (2, 2)), np.ones((2, 2)))


def test_bins_are_means_and_gaps_are_filled() -> None:
    stats = statistics([-0.5, -0.5, 0.5, 1.5, 2.5, 2.5, 2.5])
    exponent = stats["relu"].exponent
    assert exponent < 0
    width = 2.0**-exponent
    assert width == int(width)
    with pytest.raises(ConfigError, match="finer bins"):
        record().scores(stats)
    # The same histogram, in bins of one: as wide as those of the scores.
    wide = statistics([-0.5, -0.5, 0.5, 1.5, 2.5, 2.5, 2.5, 4095.5])
    assert wide["relu"].exponent == 0
    scores = record().scores(wide).of_activation("relu", len(wide["relu"].counts))
    np.testing.assert_allclose(scores[:4], [0.5, 1.0, 1.5, 2.0])
    assert (scores[4:] == 2.0).all()
    coarse = statistics([-0.5, 8191.5])
    assert coarse["relu"].exponent == 1
    np.testing.assert_allclose(
        record().scores(coarse).of_activation("relu", len(coarse["relu"].counts))[:3], [0.5, 1.25, 2]
    )


def test_values_that_share_a_grid_are_taken_together() -> None:
    tensors = activation("a", members=("a", "b")), activation("b", sums=(3, 0, 0, 0), members=())
    stats = statistics([-0.5, 4095.5], ("a", "b"))
    scores = record(*tensors).scores(stats)
    assert set(scores.activations) == {"a"}
    found = scores.of_activation("a", len(stats["a"].counts))
    np.testing.assert_allclose(found[[0, 3]], [1.0, 1.0])
    silent = activation(sums=(0, 0, 0, 0), trace=0.0)
    assert (record(silent).scores(statistics([-0.5, 4095.5])).activations["relu"] == 1).all()


def test_statistics_must_fit() -> None:
    with pytest.raises(ConfigError, match="another network"):
        record().scores(statistics([1.0], fingerprint="0" * 64))
    with pytest.raises(ConfigError, match=r"hold nothing(.|\n)*where: relu"):
        record().scores(statistics([1.0], names=("other",)))
    with pytest.raises(ConfigError, match="not told apart"):
        record(activation(bins=None)).scores(statistics([1.0]))


def test_contradictions() -> None:
    with pytest.raises(ConfigError, match="finite"):
        kernel(trace=float("nan"))
    with pytest.raises(ConfigError, match="diagonal"):
        kernel(elements=None)
    with pytest.raises(ConfigError, match="4 elements for a tensor of 5"):
        kernel(size=5)
    with pytest.raises(ConfigError, match="bins"):
        BinScores(exponent=0, first_bin=0, sums=np.zeros(2), counts=np.zeros(3))
