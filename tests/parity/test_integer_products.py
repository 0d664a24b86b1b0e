"""Convolutions and linear layers on codes equal their NumPy twins on every instruction set and thread count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detent.kernels.integer_products import integer_conv, integer_linear
from detent.kernels.reference import integer as twin
from detent.kernels.requantize import RULES, Requantization, Rule
from tests.fanout import assert_parity

TYPES = {"uint8": np.uint8, "int8": np.int8, "uint16": np.uint16, "int16": np.int16}

CONVS: dict[str, dict[str, Any]] = {
    "one_by_one": {"x": (2, 5, 7, 9), "kernel": (6, 5, 1, 1)},
    "three_by_three": {"x": (2, 4, 9, 11), "kernel": (9, 4, 3, 3), "before": (1, 1)},
    "many_positions": {"x": (3, 2, 40, 37), "kernel": (5, 2, 3, 3), "before": (1, 1)},
    "many_samples": {"x": (40, 3, 6, 6), "kernel": (4, 3, 3, 3)},
    "strided": {"x": (2, 3, 11, 13), "kernel": (5, 3, 3, 3), "stride": (2, 3), "before": (1, 2)},
    "stride_beyond_the_kernel": {"x": (1, 2, 16, 15), "kernel": (3, 2, 2, 2), "stride": (5, 4)},
    "dilated": {"x": (1, 3, 14, 12), "kernel": (4, 3, 3, 2), "dilation": (2, 3), "before": (2, 0)},
    "dilated_and_strided": {"x": (1, 3, 17, 19), "kernel": (4, 3, 3, 3), "dilation": (3, 2), "stride": (2, 2)},
    "grouped": {"x": (2, 6, 8, 8), "kernel": (9, 2, 3, 3), "groups": 3, "before": (1, 1)},
    "depthwise": {"x": (2, 7, 12, 10), "kernel": (7, 1, 3, 3), "groups": 7, "before": (1, 1)},
    "depthwise_strided": {"x": (2, 5, 13, 9), "kernel": (10, 1, 5, 5), "groups": 5, "stride": (2, 2), "before": (2, 2)},
    "depthwise_small_maps": {"x": (5, 9, 4, 4), "kernel": (9, 1, 3, 3), "groups": 9, "before": (1, 1)},
    "depthwise_rows_of_16": {"x": (2, 3, 20, 37), "kernel": (3, 1, 3, 3), "groups": 3, "before": (1, 1)},
    "depthwise_many_rows": {
        "x": (1, 2, 70, 9),
        "kernel": (2, 1, 3, 2),
        "groups": 2,
        "before": (1, 0),
        "stride": (2, 1),
    },
    "depthwise_dilated": {
        "x": (2, 3, 19, 30),
        "kernel": (3, 1, 3, 3),
        "groups": 3,
        "before": (3, 2),
        "dilation": (3, 2),
    },
    "depthwise_beyond_64_bytes": {"x": (1, 2, 5, 90), "kernel": (2, 1, 3, 3), "groups": 2, "stride": (1, 5)},
    "depthwise_much_padding": {"x": (1, 3, 2, 3), "kernel": (3, 1, 3, 3), "groups": 3, "before": (6, 7)},
    "many_channels": {"x": (2, 600, 5, 5), "kernel": (33, 600, 3, 3), "before": (1, 1)},
    "uneven_padding": {"x": (1, 2, 6, 7), "kernel": (3, 2, 3, 3), "before": (0, 2), "after": (3, 1)},
    "much_padding": {"x": (1, 2, 2, 3), "kernel": (3, 2, 3, 3), "before": (6, 7)},
    "a_row": {"x": (3, 4, 1, 50), "kernel": (5, 4, 1, 7), "before": (0, 3)},
    "a_single_value": {"x": (1, 1, 1, 1), "kernel": (1, 1, 1, 1)},
    "no_samples": {"x": (0, 3, 5, 5), "kernel": (2, 3, 3, 3)},
    "no_room": {"x": (2, 3, 2, 5), "kernel": (2, 3, 3, 3)},
}


def codes(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> np.ndarray:
    ends = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(ends.min, ends.max, shape, dtype, endpoint=True)


def kernel_of(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(-127, 127, shape, np.int16, endpoint=True)


def ending(rule: Rule, outputs: int, dtype: Any, per_channel: bool = True) -> Requantization:
    spread = np.random.default_rng(outputs).uniform(0.5, 2, outputs if per_channel else 1)
    wide = np.iinfo(dtype).bits > 8
    ends = {"lowest": -128, "highest": 127, "zero_point": -5}
    return Requantization.of(rule, spread * (1e-7 if wide else 1e-3), **ends)


def check_conv(case: dict[str, Any], dtype: Any, rule: Rule, bias: bool = True, widened: int = 1) -> None:
    options = {key: value for key, value in case.items() if key not in ("x", "kernel")}
    x, kernel = codes(case["x"], dtype), kernel_of(case["kernel"]) * np.int16(widened)
    outputs = len(kernel)
    options["zero_point"] = int(codes((1,), dtype, 5)[0])
    options["bias"] = np.random.default_rng(2).integers(-5000, 5000, outputs) if bias else None
    how = ending(rule, outputs, dtype)
    found = integer_conv(x, kernel, how, np.int8, **options)
    if 0 in found[0].shape:
        assert found[1] == (0, 0)
        return
    assert_parity(
        lambda: integer_conv(x, kernel, how, np.int8, **options), twin.integer_conv(x, kernel, how, np.int8, **options)
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("case", CONVS)
def test_convolutions(case: str, dtype: str) -> None:
    check_conv(CONVS[case], TYPES[dtype], "float", bias=dtype != "int8")


@pytest.mark.parametrize("rule", RULES)
def test_rules(rule: Rule) -> None:
    check_conv(CONVS["grouped"], np.int8, rule)
    if rule in ("float", "int16x8"):
        check_conv(CONVS["grouped"], np.int16, rule)


@pytest.mark.parametrize("rule", RULES)
def test_rules_of_depthwise_layers(rule: Rule) -> None:
    check_conv(CONVS["depthwise"], np.uint8, rule)
    check_conv(CONVS["depthwise_small_maps"], np.int8, rule)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("case", ["one_by_one", "three_by_three", "depthwise"])
def test_kernels_beyond_8_bits(case: str, dtype: str) -> None:
    check_conv(CONVS[case], TYPES[dtype], "float", widened=2)


@pytest.mark.parametrize("end", [-128, 127, -129, 128])
def test_kernels_at_the_ends_of_8_bits(end: int) -> None:
    x, kernel = np.full((2, 5, 6, 6), 255, np.uint8), np.full((3, 5, 3, 3), end, np.int16)
    how = ending("float", 3, np.uint8)
    assert_parity(lambda: integer_conv(x, kernel, how, np.int8), twin.integer_conv(x, kernel, how, np.int8))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_geometry(data: st.DataObject) -> None:
    small = st.integers(1, 3)
    groups, inputs, per_group = (data.draw(small) for _ in range(3))
    window, stride, dilation = ((data.draw(small), data.draw(small)) for _ in range(3))
    before, after = ((data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))) for _ in range(2))
    sizes = tuple(
        data.draw(st.integers(max(1, (window[d] - 1) * dilation[d] + 1 - before[d] - after[d]), 14)) for d in (0, 1)
    )
    case = {
        "x": (data.draw(small), groups * inputs, *sizes),
        "kernel": (groups * per_group, inputs, *window),
        "stride": stride,
        "dilation": dilation,
        "before": before,
        "after": after,
        "groups": groups,
    }
    check_conv(case, TYPES[data.draw(st.sampled_from(sorted(TYPES)))], "float")


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 1, 1), (3, 7, 5), (70, 33, 300), (64, 64, 10), (0, 4, 3)])
def test_linear(rows: int, inputs: int, outputs: int, dtype: str, per_channel: bool) -> None:
    x, kernel = codes((rows, inputs), TYPES[dtype]), kernel_of((outputs, inputs))
    bias = np.random.default_rng(3).integers(-5000, 5000, outputs)
    how = ending("float", outputs, TYPES[dtype], per_channel)
    given: dict[str, Any] = {"zero_point": 3, "bias": bias}
    if rows == 0:
        assert integer_linear(x, kernel, how, np.int8, **given)[0].shape == (0, outputs)
        return
    wanted = twin.integer_linear(x, kernel, how, np.int8, **given)
    assert_parity(lambda: integer_linear(x, kernel, how, np.int8, **given), wanted)


def test_accumulators_of_32_bits_wrap_around() -> None:
    x, kernel = np.full((1, 70000), 255, np.uint8), np.full((1, 70000), 127, np.int16)
    how = ending("float", 1, np.uint8)
    found = integer_linear(x, kernel, how, np.int8)
    assert found[1] == (255 * 127 * 70000 - 2**32,) * 2
    assert_parity(lambda: integer_linear(x, kernel, how, np.int8), twin.integer_linear(x, kernel, how, np.int8))


def test_types_of_results() -> None:
    x, kernel = codes((2, 3, 5, 5), np.uint8), kernel_of((4, 3, 3, 3))
    for dtype, lowest in ((np.uint8, 0), (np.int16, -9000), (np.uint16, 0), (np.int32, -(10**6))):
        how = Requantization.of("float", np.array([0.9]), zero_point=0, lowest=lowest, highest=255)
        wanted = twin.integer_conv(x, kernel, how, dtype)
        assert_parity(lambda how=how, dtype=dtype: integer_conv(x, kernel, how, dtype), wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((1, 4, 5, 5))}, "x must have dtype uint8"),
        ({"x": np.zeros((1, 4, 5, 5), np.int32)}, "codes of 8 or 16 bits"),
        ({"x": np.zeros((4, 5, 5), np.int8)}, "must have four axes"),
        ({"x": np.zeros((1, 3, 5, 5), np.int8)}, "1 groups do not fit"),
        ({"x": np.zeros((1, 5, 5, 4), np.int8).transpose(0, 3, 1, 2)}, "x of shape .* must be in C order"),
        ({"kernel": np.zeros((6, 4, 3, 3), np.int8)}, "kernel must have dtype int16"),
        ({"kernel": np.zeros((6, 4, 0, 3), np.int16)}, "must have channels and elements"),
        ({"groups": 0}, "0 groups do not fit"),
        ({"groups": 4}, "4 groups do not fit"),
        ({"stride": (0, 1)}, "strides and dilations must be in"),
        ({"dilation": (1, -1)}, "strides and dilations must be in"),
        ({"before": (-1, 0)}, "padding must be in"),
        ({"zero_point": 128}, "128 is no code of x, -128..127"),
        ({"bias": np.zeros(6, np.int32)}, "bias must have dtype int64"),
        ({"bias": np.zeros(5, np.int64)}, "bias must have 6 elements"),
        ({"how": ending("float", 5, np.int8)}, "one for each of 6 channels, got 5"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "x": np.zeros((1, 4, 5, 5), np.int8),
        "kernel": np.zeros((6, 4, 3, 3), np.int16),
        "how": ending("float", 6, np.int8),
    }
    given |= change
    with pytest.raises(ValueError, match=message):
        integer_conv(given.pop("x"), given.pop("kernel"), given.pop("how"), np.int8, **given)


def test_codes_of_16_bits_need_accumulators_of_64() -> None:
    how = ending("ruy", 6, np.int8)
    with pytest.raises(ValueError, match="those of 16-bit codes have 64"):
        integer_conv(np.zeros((1, 4, 5, 5), np.int16), np.zeros((6, 4, 3, 3), np.int16), how, np.int8)


@pytest.mark.parametrize(
    ("x", "kernel", "message"),
    [
        (np.zeros((2, 3), np.int8), np.zeros((4, 2), np.int16), "kernel must be \\[outputs, 3\\]"),
        (np.zeros((2, 3, 1), np.int8), np.zeros((4, 3), np.int16), "must have two axes"),
        (np.zeros((2, 0), np.int8), np.zeros((4, 0), np.int16), "kernel must have elements"),
    ],
)
def test_refusals_of_linear_layers(x: np.ndarray, kernel: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        integer_linear(x, kernel, ending("float", 4, np.int8), np.int8)
