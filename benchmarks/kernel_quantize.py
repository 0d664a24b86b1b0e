"""Fake quantization, codes and tensor error against memcpy and torch.

Large calls go round several pairs of arrays, more than any cache holds: otherwise a call finds the output of the one
before it in a large last-level cache, and what is measured is not memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from detent.kernels.error import tensor_error
from detent.kernels.quantize import dequantize, fake_quantize, in_range_mask, lut_fake_quantize, quantize
from detent.kernels.reference import error as error_twin
from detent.kernels.reference import quantize as twins
from harness import Row, compare, limit, rate, time_in_turns

TITLE = "quantize: 64 x 192 x 32 x 32 = 12.6 M float32, out of cache"
SHAPE = (64, 192, 32, 32)
CHANNELS = SHAPE[1]
SIZE = int(np.prod(SHAPE))
PAIRS = 4
QMIN, QMAX = -128, 127

Call = Callable[[np.ndarray, np.ndarray], object]

_rng = np.random.default_rng(0)
_ONE = np.array([0.02], np.float32), np.zeros(1, np.int32)
_POW2 = np.array([2.0**-5], np.float32), np.zeros(1, np.int32)
_PER_CHANNEL = _rng.uniform(0.01, 0.05, CHANNELS).astype(np.float32), np.zeros(CHANNELS, np.int32)
_TABLE = np.array([-128, -80, -50, -30, -18, -9, -4, -1, 0, 2, 6, 12, 22, 40, 70, 127], np.float32)


def _activations() -> np.ndarray:
    return _rng.standard_normal(SHAPE, np.float32)


def _as_channels_last(x: np.ndarray) -> np.ndarray:
    """The same memory read as a channels-last tensor of that shape."""
    n, c, h, w = x.shape
    return np.moveaxis(x.reshape(n, h, w, c), -1, 1)


def verify() -> None:
    """Timed calls equal their twins; the large ones on a slice, and against themselves in pieces."""
    x = _activations()
    for piece in (x[:4], _as_channels_last(x[:4])):
        for grid, axis in ((_ONE, None), (_POW2, None), (_PER_CHANNEL, 1)):
            np.testing.assert_array_equal(
                fake_quantize(piece, *grid, QMIN, QMAX, axis=axis),
                twins.fake_quantize(piece, *grid, QMIN, QMAX, axis=axis),
            )
            for p in (1.0, 2.0):
                np.testing.assert_array_equal(
                    tensor_error(piece, *grid, QMIN, QMAX, p=p, axis=axis),
                    error_twin.tensor_error(piece, *grid, QMIN, QMAX, p=p, axis=axis),
                )
    for grid, axis in ((_ONE, None), (_PER_CHANNEL, 1)):
        whole = fake_quantize(x, *grid, QMIN, QMAX, axis=axis)
        for i in range(0, SHAPE[0], 4):
            np.testing.assert_array_equal(whole[i : i + 4], fake_quantize(x[i : i + 4], *grid, QMIN, QMAX, axis=axis))
    np.testing.assert_array_equal(
        lut_fake_quantize(x[:4], _ONE[0], _TABLE), twins.lut_fake_quantize(x[:4], _ONE[0], _TABLE)
    )


def measure() -> list[Row]:
    """All figures from one run; the goals are ratios to memcpy (`numpy.copyto`) and torch."""
    pairs = itertools.cycle([(_activations(), np.zeros(SHAPE, np.float32)) for _ in range(PAIRS)])
    calls = _large_calls()
    times = time_in_turns({name: lambda call=call: call(*next(pairs)) for name, call in calls.items()})
    goals = {"fake_quantize": 0.9, "fake_quantize, power of two": 0.9}
    rows = [compare(name, times, name, "memcpy", at_least=goals.get(name)) for name in calls if name != "memcpy"]
    return rows + _against_torch(calls["fake_quantize"], pairs) + _small_calls()


def _large_calls() -> dict[str, Call]:
    codes, mask, packed = np.zeros(SHAPE, np.int8), np.zeros(SHAPE, np.bool_), np.zeros(SIZE // 2, np.uint8)
    limits = (QMIN, QMAX)
    return {
        "memcpy": lambda x, out: np.copyto(out, x),
        "fake_quantize": lambda x, out: fake_quantize(x, *_ONE, *limits, out=out),
        "fake_quantize, power of two": lambda x, out: fake_quantize(x, *_POW2, *limits, out=out),
        "fake_quantize, in place": lambda _, out: fake_quantize(out, *_ONE, *limits, out=out),
        "fake_quantize, per channel": lambda x, out: fake_quantize(x, *_PER_CHANNEL, *limits, axis=1, out=out),
        "fake_quantize, per channel, channels last": lambda x, out: fake_quantize(
            _as_channels_last(x), *_PER_CHANNEL, *limits, axis=1, out=_as_channels_last(out)
        ),
        "quantize to int8": lambda x, _: quantize(x, *_ONE, *limits, dtype="int8", out=codes),
        "quantize to packed int4": lambda x, _: quantize(x, *_ONE, -8, 7, dtype="int4", out=packed),
        "dequantize int8": lambda _, out: dequantize(codes, *_ONE, out=out),
        "in_range_mask": lambda x, _: in_range_mask(x, *_ONE, *limits, out=mask),
        "lut_fake_quantize, 16 levels": lambda x, out: lut_fake_quantize(x, _ONE[0], _TABLE, out=out),
        "tensor_error, p = 2": lambda x, _: tensor_error(x, *_ONE, *limits),
        "tensor_error, p = 2, per channel": lambda x, _: tensor_error(x, *_PER_CHANNEL, *limits, axis=1),
        "tensor_error, p = 1, channels last": lambda x, _: tensor_error(
            _as_channels_last(x), *_PER_CHANNEL, *limits, p=1.0, axis=1
        ),
    }


def _against_torch(ours: Call, pairs: Iterator[tuple[np.ndarray, np.ndarray]]) -> list[Row]:
    try:
        import torch
    except ImportError:
        return []
    theirs = "torch.fake_quantize_per_tensor_affine"
    tensors = itertools.cycle([torch.from_numpy(next(pairs)[0]) for _ in range(PAIRS)])
    times = time_in_turns(
        {
            "ours": lambda: ours(*next(pairs)),
            theirs: lambda: torch.fake_quantize_per_tensor_affine(next(tensors), float(_ONE[0][0]), 0, QMIN, QMAX),
        },
        rounds=5,
    )
    return [compare("fake_quantize", times, "ours", theirs, at_least=20)]


def _small_calls() -> list[Row]:
    small = _rng.standard_normal(64, np.float32)
    cached = _rng.standard_normal(1 << 16, np.float32)
    out = np.empty_like(cached)
    calls: dict[str, Callable[[], object]] = {
        "call": lambda: fake_quantize(small, *_ONE, QMIN, QMAX),
        "cached": lambda: fake_quantize(cached, *_ONE, QMIN, QMAX, out=out),
    }
    operator = _operator_call(small)
    if operator is not None:
        calls["operator"] = operator
    times = time_in_turns(calls, rounds=15)
    rows = [
        rate("fake_quantize, 65536 floats in cache", times["cached"], cached.size),
        limit("fake_quantize, 64 floats: overhead of a call", times["call"]),
    ]
    if operator is not None:
        rows.append(limit("torch.ops.detent.fake_quantize, 64 floats", times["operator"], at_most_ms=0.015))
    return rows


def _operator_call(small: np.ndarray) -> Callable[[], object] | None:
    try:
        import torch

        import detent.graph.operators
    except ImportError:
        return None
    assert detent.graph.operators.LIBRARY is not None
    x, scale, zero_point = (torch.from_numpy(a) for a in (small, *_ONE))
    operator = torch.ops.detent.fake_quantize.default

    def call() -> object:
        with torch.inference_mode():
            return operator(x, scale, zero_point, QMIN, QMAX)

    return call
