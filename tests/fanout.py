"""Fan-out: one call, run on every instruction set and thread count, compared bit for bit."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from detent import _core

THREADS = (1, 2, 3)


class Variant(NamedTuple):
    """One way to run a kernel."""

    isa: str
    threads: int

    def __str__(self) -> str:
        return f"{self.isa}-{self.threads}"


VARIANTS = [Variant(isa, threads) for isa, threads in itertools.product(_core.available_isas(), THREADS)]


def current() -> Variant:
    """The variant in use now."""
    return Variant(_core.active_isa(), _core.num_threads())


@contextlib.contextmanager
def running(variant: Variant) -> Iterator[None]:
    """Switch the process to `variant`, and back."""
    before = current()
    try:
        _core.set_isa(variant.isa)
        _core.set_num_threads(variant.threads)
        yield
    finally:
        _core.set_isa(before.isa)
        _core.set_num_threads(before.threads)


def assert_same_bits(actual: Any, expected: Any, where: str = "") -> None:
    """Compare arrays, numbers, records, mappings and sequences of them bit for bit.

    All NaN are one value: no kernel promises the payload or sign of a NaN. -0 and 0 differ.
    """
    if dataclasses.is_dataclass(expected):
        assert type(actual) is type(expected), where
        for field in dataclasses.fields(expected):
            assert_same_bits(getattr(actual, field.name), getattr(expected, field.name), f"{where}.{field.name}")
    elif isinstance(expected, Mapping):
        assert set(actual) == set(expected), where
        for key in expected:
            assert_same_bits(actual[key], expected[key], f"{where}[{key!r}]")
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected), where
        for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
            assert_same_bits(a, e, f"{where}[{i}]")
    elif isinstance(expected, (np.ndarray, np.generic, float)):
        _assert_same_array(np.asarray(actual), np.asarray(expected), where)
    else:
        assert actual == expected, f"{where}: {actual!r} is not {expected!r}"


def _assert_same_array(actual: np.ndarray, expected: np.ndarray, where: str) -> None:
    assert actual.dtype == expected.dtype, f"{where}: dtype {actual.dtype} is not {expected.dtype}"
    assert actual.shape == expected.shape, f"{where}: shape {actual.shape} is not {expected.shape}"
    same = actual == expected
    if expected.dtype.kind == "f":
        same = (same & (np.signbit(actual) == np.signbit(expected))) | (np.isnan(actual) & np.isnan(expected))
    if not np.all(same):
        first = tuple(int(i) for i in np.argwhere(~np.atleast_1d(same))[0])
        a, e = np.atleast_1d(actual)[first], np.atleast_1d(expected)[first]
        raise AssertionError(f"{where}: {np.sum(~same)} of {same.size} differ, first at {first}: {a!r} is not {e!r}")


def assert_parity(kernel: Callable[[], Any], expected: Any) -> None:
    """`kernel()` gives exactly `expected` on every variant; pass the twin's result as `expected`."""
    for variant in VARIANTS:
        with running(variant):
            actual = kernel()
        assert_same_bits(actual, expected, str(variant))


def on_every_variant(kernel: Callable[[], Any]) -> Any:
    """Result of `kernel()` after checking that every variant gives the same bits; for kernels without an exact twin."""
    with running(VARIANTS[0]):
        expected = kernel()
    assert_parity(kernel, expected)
    return expected
