"""Statistics depend on which samples were seen and on nothing else; a state that was tampered with is refused."""

from __future__ import annotations

import functools
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from detent.kernels.statistics import StatisticsAccumulator
from tests.cases import awkward, samples
from tests.fanout import VARIANTS, assert_same_bits, running

FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)
DATA = hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 20)), elements=FLOATS)
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def collect(x: Any, channel_axis: int | None = 1) -> StatisticsAccumulator:
    accumulator = StatisticsAccumulator(channel_axis)
    accumulator.update(x)
    return accumulator


@quick
@given(DATA, st.data())
def test_batches_and_order_do_not_matter(x: Any, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(x))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(x)), max_size=4)))
    variant = data.draw(st.sampled_from(VARIANTS))
    accumulator = StatisticsAccumulator(1)
    with running(variant):
        for begin, end in zip([0, *cuts], [*cuts, len(x)], strict=True):
            accumulator.update(x[order[begin:end]])
    assert_same_bits(accumulator.state(), collect(x).state())


@quick
@given(DATA, st.data())
def test_padding_does_not_matter(x: Any, data: st.DataObject) -> None:
    padding = data.draw(st.integers(0, 5))
    padded = np.concatenate([x, np.full((padding, *x.shape[1:]), np.nan, np.float32)])
    accumulator = StatisticsAccumulator(1)
    accumulator.update(padded, len(x))
    assert_same_bits(accumulator.state(), collect(x).state())


@quick
@given(DATA, st.data())
def test_any_tree_of_merges_gives_the_same(x: Any, data: st.DataObject) -> None:
    parts = [collect(row[None]) for row in x]
    while len(parts) > 1:
        right = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        left = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        left.merge(right)
        parts.append(StatisticsAccumulator.from_state(left.state()))
    assert_same_bits(parts[0].state(), collect(x).state())


@quick
@given(DATA)
def test_a_state_continues_as_if_never_stored(x: Any) -> None:
    accumulator = collect(x[:1])
    resumed = StatisticsAccumulator.from_state(accumulator.state())
    assert_same_bits(resumed.state(), accumulator.state())
    resumed.update(x[1:])
    assert_same_bits(resumed.state(), collect(x).state())


@quick
@given(DATA)
def test_merging_nothing_changes_nothing(x: Any) -> None:
    full, empty = collect(x), StatisticsAccumulator(1)
    before = full.state()
    full.merge(empty)
    empty.merge(full)
    assert_same_bits(full.state(), before)
    assert_same_bits(empty.state(), before)


@quick
@given(DATA)
def test_telling_channels_apart_changes_nothing_else(x: Any) -> None:
    apart, together = collect(x, 1).state(), collect(x, None).state()
    assert_same_bits({name: apart[name] for name in together}, together)


@quick
@given(DATA, st.integers(-40, 40))
def test_scaling_by_a_power_of_two_shifts_the_exponent(x: Any, power: int) -> None:
    x = np.where(np.abs(x) < 1e-20, np.float32(0), np.clip(x, -1e20, 1e20)).astype(np.float32)
    x[0, 0, 0] = 1.5
    before, after = collect(x), collect(np.ldexp(x, power).astype(np.float32))
    assert after.exponent == before.exponent + power
    assert_same_bits(after.counts, before.counts)
    assert (after.first_bin, after.zeros) == (before.first_bin, before.zeros)
    if before.count:
        assert after.sum == np.ldexp(before.sum, power)


def test_large_batches_in_any_split() -> None:
    x = awkward((64, 3, 50, 50), finite=False)
    expected = collect(x).state()
    last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    expected_last = collect(last, -1).state()
    for variant in VARIANTS:
        with running(variant):
            for step in (1, 7, 37, 64):
                accumulator, moved = StatisticsAccumulator(1), StatisticsAccumulator(-1)
                for begin in reversed(range(0, 64, step)):
                    accumulator.update(x[begin : begin + step])
                    moved.update(last[begin : begin + step])
                assert_same_bits(accumulator.state(), expected, f"{variant} {step}")
                assert_same_bits(moved.state(), expected_last, f"{variant} {step}")


def test_the_histogram_does_not_depend_on_memory_order() -> None:
    x = samples((4, 6, 11, 13))
    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    ours, theirs = collect(x).state(), collect(last).state()
    for name in ("count", "zeros", "minimum", "maximum", "exponent", "first_bin", "counts", "channel_minimum"):
        assert_same_bits(theirs[name], ours[name])


def test_threads_may_share_an_accumulator() -> None:
    x = samples((32, 20_000))
    accumulator = StatisticsAccumulator()
    threads = [threading.Thread(target=accumulator.update, args=(row[None],)) for row in x]
    for thread in threads:
        thread.start()
    for thread in threads:
        _ = accumulator.samples
        thread.join()
    assert_same_bits(accumulator.state(), collect(x, None).state())


@pytest.fixture
def state() -> dict[str, Any]:
    x = samples((4, 3, 50))
    x[0, 0, 0] = np.nan
    return dict(collect(x).state())


def replaced(value: Any, **places: Any) -> Any:
    changed = value.copy()
    for place, entry in places.items():
        changed[int(place[1:])] = entry
    return changed


CORRUPTIONS = {
    "missing": (lambda s: s.pop("counts"), "counts missing"),
    "half the channels": (lambda s: s.pop("channel_nonfinite"), "channel_nonfinite missing"),
    "unknown": (lambda s: s.update(extra=np.zeros(1)), "extra unknown"),
    "not an array": (lambda s: s.update(count=600), "not an array"),
    "dtype": (lambda s: s.update(counts=s["counts"].astype(np.int32)), "counts has dtype int32"),
    "scalar": (lambda s: s.update(count=s["count"].reshape(1)), "instead of being one number"),
    "vector": (lambda s: s.update(counts=s["counts"].reshape(1, -1)), "not a vector"),
    "digits": (lambda s: s.update(sum_digits=s["sum_digits"][:-1]), "instead of \\[22\\]"),
    "digit": (lambda s: s.update(sum_digits=replaced(s["sum_digits"], _3=1 << 32)), "digit out of range"),
    "top digit": (lambda s: s.update(sum_digits=replaced(s["sum_digits"], _21=1 << 40)), "digit out of range"),
    "sum": (lambda s: s.update(sum_digits=replaced(s["sum_digits"], _20=1)), "sum is larger"),
    "squares": (lambda s: s.update(sum_of_squares_digits=replaced(s["sum_digits"], _21=-1)), "sum of squares"),
    "negative": (lambda s: s.update(nonfinite=np.array(-1)), "nonfinite is negative"),
    "total": (lambda s: s.update(count=s["count"] + 1), "add up to"),
    "negative count": (lambda s: s.update(counts=replaced(s["counts"], _1=-1)), "negative entry"),
    "edge": (lambda s: s.update(counts=np.append(s["counts"], 0)), "empty bin"),
    "outside": (lambda s: s.update(first_bin=np.array(4090)), "outside the histogram"),
    "moved": (lambda s: s.update(first_bin=s["first_bin"] + 1), "does not hold|do not fit"),
    "zeros": (lambda s: s.update(zeros=s["count"]), "zeros do not fit"),
    "samples": (lambda s: s.update(samples=np.array(0)), "values without samples"),
    "minimum": (lambda s: s.update(minimum=np.float32(np.nan).reshape(())), "is impossible"),
    "maximum": (lambda s: s.update(maximum=s["maximum"] * np.float32(4)), "does not suit"),
    "exponent": (lambda s: s.update(exponent=s["exponent"] - 1), "does not suit"),
    "channels": (lambda s: s.update(channel_minimum=s["channel_minimum"][:2]), "with 2 channels"),
    "channel range": (lambda s: s.update(channel_minimum=replaced(s["channel_minimum"], _0=0, _1=0, _2=0)), "make up"),
    "channel order": (lambda s: s.update(channel_minimum=s["channel_maximum"] + 1), "impossible"),
    "channel nonfinite": (lambda s: s.update(channel_nonfinite=s["channel_nonfinite"] + 1), "does not add up"),
    "channel sums": (lambda s: s.update(channel_sum_digits=s["channel_sum_digits"][:, :4]), "with 3 channels"),
    "no channel sums": (lambda s: s.update(channel_sum_digits=s["channel_sum_digits"][:0, :0]), "has no digits"),
    "channel digit": (lambda s: s.update(channel_sum_digits=s["channel_sum_digits"] - 1), "digit out of range"),
}


@pytest.mark.parametrize(("corrupt", "message"), CORRUPTIONS.values(), ids=CORRUPTIONS)
def test_corrupted_states_are_refused(state: dict[str, Any], corrupt: Any, message: str) -> None:
    StatisticsAccumulator.from_state(state)
    corrupt(state)
    with pytest.raises(ValueError, match=message):
        StatisticsAccumulator.from_state(state)


def test_states_survive_storage(tmp_path: Any) -> None:
    accumulator = collect(samples((4, 3, 50)))
    path = tmp_path / "state.npz"
    np.savez(path, **accumulator.state())
    with np.load(path, allow_pickle=False) as stored:
        assert_same_bits(StatisticsAccumulator.from_state(stored).state(), accumulator.state())
    numpy_store = pytest.importorskip("safetensors.numpy")
    numpy_store.save_file(dict(accumulator.state()), tmp_path / "state.safetensors")
    stored = numpy_store.load_file(tmp_path / "state.safetensors")
    assert_same_bits(StatisticsAccumulator.from_state(stored).state(), accumulator.state())


def test_merging_many_states_is_a_fold(state: dict[str, Any]) -> None:
    parts = [collect(samples((2, 3, 50), seed=seed)) for seed in range(6)]
    forward = functools.reduce(lambda a, b: (a.merge(b), a)[1], [p.copy() for p in parts])
    backward = functools.reduce(lambda a, b: (a.merge(b), a)[1], [p.copy() for p in reversed(parts)])
    assert_same_bits(forward.state(), backward.state())
