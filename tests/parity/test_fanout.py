"""The harness itself: it must notice differences, and put things back."""

from __future__ import annotations

import numpy as np
import pytest

from detent import _core
from tests import cases
from tests.fanout import VARIANTS, assert_parity, assert_same_bits, current, on_every_variant, running


def test_variants_cover_every_isa_and_thread_count() -> None:
    assert {v.isa for v in VARIANTS} == set(_core.available_isas())
    assert len(VARIANTS) == 3 * len(_core.available_isas())


def test_running_switches_and_restores() -> None:
    before = current()

    def fail_inside() -> None:
        with running(VARIANTS[0]):
            assert current() == ("baseline", 1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_inside()
    assert current() == before


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (np.float32([0.0]), np.float32([-0.0])),
        (np.float32([1.0]), np.float64([1.0])),
        (np.float32([1.0]), np.float32([[1.0]])),
        (np.float32([1.0]), np.float32([np.nan])),
        ({"a": 1}, {"a": 2}),
        ([1.0, 2.0], [1.0]),
        (0.1 + 0.2, 0.3),
    ],
)
def test_differences_are_noticed(actual: object, expected: object) -> None:
    with pytest.raises(AssertionError):
        assert_same_bits(actual, expected)


def test_any_nan_equals_any_other() -> None:
    assert_same_bits(np.float32([np.nan, -0.0]), np.float32([-np.nan, -0.0]))


def test_a_kernel_that_depends_on_the_variant_fails() -> None:
    with pytest.raises(AssertionError, match="baseline-2"):
        assert_parity(_core.num_threads, 1)
    with pytest.raises(AssertionError):
        on_every_variant(_core.num_threads)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", cases.SHAPES)
def test_layouts_keep_values_and_have_no_gaps(shape: str, layout: str) -> None:
    x = cases.samples(cases.SHAPES[shape])
    y = cases.LAYOUTS[layout](x)
    np.testing.assert_array_equal(x, y)
    if y.size:
        order = np.argsort([-s for s in y.strides], kind="stable")
        assert y.transpose(order).flags.c_contiguous


@pytest.mark.parametrize("gap", cases.GAPS)
def test_gap_views_are_not_dense(gap: str) -> None:
    y = cases.GAPS[gap](cases.samples((4, 6)))
    assert y.shape == (4, 6)
    assert not y.flags.c_contiguous
