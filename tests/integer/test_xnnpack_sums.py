"""XNNPACK's rule of sums against a scalar form of it, and programs that have it."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

import detent
from detent.integer.fixed_point import shifted_total
from detent.integer.operations import Sum
from tests.models import MODELS, build

RATIOS = st.floats(2.0**-9, 2.0**7, width=32)
CODES = st.integers(-255, 255)


@given(RATIOS, RATIOS, CODES, CODES)
def test_the_rule(by_a: float, by_b: float, a: int, b: int) -> None:
    exponent = math.floor(math.log2(max(by_a, by_b)))
    unit = 2 ** (20 - exponent)
    # Multipliers have 21 bits: the greater one lies in 2^20..2^21.
    first, second = round(by_a * unit), round(by_b * unit)
    assert 2**20 <= max(first, second) <= 2**21
    wanted = math.floor((a * first + b * second) / unit + 0.5)
    found = shifted_total(np.array([a]), np.array([b]), (by_a, by_b, 1.0))
    assert found.tolist() == [wanted]
    assert abs(wanted - (a * by_a + b * by_b)) <= 0.5 + 2 * 255 / unit


def test_ties_go_upward() -> None:
    codes = np.array([-3, -1, 1, 3])
    assert shifted_total(codes, np.zeros(4, np.int64), (0.5, 0.5, 1.0)).tolist() == [-1, 0, 1, 2]


def test_programs_have_it() -> None:
    torch.manual_seed(0)
    inputs = list(MODELS["residual"].inputs(16))
    qmodel = detent.quantize(build("residual"), inputs, target="onnxruntime", progress=False)
    program = detent.lower(qmodel, runtime="xnnpack")
    assert {one.rule for one in program.operations if isinstance(one, Sum)} == {"xnnpack"}
    ours, theirs = (
        detent.lower(qmodel, runtime=name).run(*inputs, all_tensors=True) for name in ("xnnpack", "onnxruntime")
    )
    for name, codes in ours.codes.items():
        assert np.abs(codes.astype(int) - theirs.codes[name].astype(int)).max() <= 2
