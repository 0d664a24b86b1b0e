"""Fake quantization, codes and tensor error against memcpy, NumPy and torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from detent.kernels.error import tensor_error
from detent.kernels.quantize import dequantize, fake_quantize, in_range_mask, lut_fake_quantize, quantize
from detent.kernels.reference import error as error_twin
from detent.kernels.reference import quantize as twins
from harness import Row, compare, limit, rate, time_in_turns

TITLE = "quantize: 64 x 192 x 32 x 32 = 12.6 M float32, out of cache"
SHAPE = (64, 192, 32, 32)
CHANNELS = SHAPE[1]
QMIN, QMAX = -128, 127

_rng = np.random.default_rng(0)
_ONE = np.array([0.02], np.float32), np.zeros(1, np.int32)
_POW2 = np.array([2.0**-5], np.float32), np.zeros(1, np.int32)
_PER_CHANNEL = _rng.uniform(0.01, 0.05, CHANNELS).astype(np.float32), np.zeros(CHANNELS, np.int32)
_TABLE = np.array([-128, -80, -50, -30, -18, -9, -4, -1, 0, 2, 6, 12, 22, 40, 70, 127], np.float32)


def _activations() -> np.ndarray:
    return _rng.standard_normal(SHAPE, np.float32)


def _channels_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


def verify() -> None:
    """Timed calls equal their twins; the large ones on a slice, and against themselves in pieces."""
    x = _activations()
    for piece in (x[:4], _channels_last(x[:4])):
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
    x = _activations()
    last = _channels_last(x)
    rivals, torch_call = _large_calls(x, last)
    times = time_in_turns(rivals)
    goals = {"fake_quantize": 0.9, "fake_quantize, power of two": 0.9}
    rows = [compare(name, times, name, "memcpy", at_least=goals.get(name)) for name in rivals if name != "memcpy"]
    if torch_call is not None:
        pair = {"fake_quantize": rivals["fake_quantize"], "torch.fake_quantize_per_tensor_affine": torch_call}
        times = time_in_turns(pair, rounds=3)
        rows.append(
            compare("fake_quantize", times, "fake_quantize", "torch.fake_quantize_per_tensor_affine", at_least=20)
        )
    return rows + _small_calls()


def _large_calls(
    x: np.ndarray, last: np.ndarray
) -> tuple[dict[str, Callable[[], object]], Callable[[], object] | None]:
    out, out_last = np.empty_like(x), np.empty_like(last)
    codes, mask = np.empty(SHAPE, np.int8), np.empty(SHAPE, np.bool_)
    packed = np.empty(x.size // 2, np.uint8)
    limits = (QMIN, QMAX)
    calls: dict[str, Callable[[], object]] = {
        "memcpy": lambda: np.copyto(out, x),
        "fake_quantize": lambda: fake_quantize(x, *_ONE, *limits, out=out),
        "fake_quantize, power of two": lambda: fake_quantize(x, *_POW2, *limits, out=out),
        "fake_quantize, in place": lambda: fake_quantize(out, *_ONE, *limits, out=out),
        "fake_quantize, per channel": lambda: fake_quantize(x, *_PER_CHANNEL, *limits, axis=1, out=out),
        "fake_quantize, per channel, channels last": lambda: fake_quantize(
            last, *_PER_CHANNEL, *limits, axis=1, out=out_last
        ),
        "quantize to int8": lambda: quantize(x, *_ONE, *limits, dtype="int8", out=codes),
        "quantize to packed int4": lambda: quantize(x, *_ONE, -8, 7, dtype="int4", out=packed),
        "dequantize int8": lambda: dequantize(codes, *_ONE, out=out),
        "in_range_mask": lambda: in_range_mask(x, *_ONE, *limits, out=mask),
        "lut_fake_quantize, 16 levels": lambda: lut_fake_quantize(x, _ONE[0], _TABLE, out=out),
        "tensor_error, p = 2": lambda: tensor_error(x, *_ONE, *limits),
        "tensor_error, p = 2, per channel": lambda: tensor_error(x, *_PER_CHANNEL, *limits, axis=1),
        "tensor_error, p = 1, channels last": lambda: tensor_error(last, *_PER_CHANNEL, *limits, p=1.0, axis=1),
    }
    try:
        import torch
    except ImportError:
        return calls, None
    tensor = torch.from_numpy(x)
    return calls, lambda: torch.fake_quantize_per_tensor_affine(tensor, float(_ONE[0][0]), 0, QMIN, QMAX)


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
