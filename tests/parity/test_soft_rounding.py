"""The kernels of learned rounding equal their twins bit for bit, and torch's gradients and Adam to rounding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from detent.kernels import soft_rounding
from detent.kernels.quantize import fake_quantize, quantize
from detent.kernels.reference import float_functions
from detent.kernels.reference import soft_rounding as twin
from detent.kernels.soft_rounding import Adam, SoftGrid, soft_codes, soft_gradients, soft_round, soft_start, soft_step
from tests import cases
from tests.fanout import assert_parity

SHAPES = [(1, 1), (3, 1), (0, 3), (3, 0), (2, 15), (5, 257), (2, 4095), (2, 4097), (40, 300), (1, 70_000)]


class Layer:
    """Arrays of a layer that is being learned."""

    def __init__(self, rows: int, columns: int, *, shared: bool = False, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        entries = 1 if shared else rows
        scale = rng.uniform(0.05, 0.2, entries).astype(np.float32)
        zeros = rng.integers(-1, 2, entries).astype(np.int32)
        self.grid = SoftGrid(scale=scale, zero_point=zeros, qmin=-8, qmax=7)
        self.weights = rng.normal(scale=0.5, size=(rows, columns)).astype(np.float32)
        self.base, v = soft_start(self.weights, self.grid)
        self.v = v + rng.normal(size=v.shape).astype(np.float32)
        self.gradients = rng.normal(size=v.shape).astype(np.float32)

    def stepped(self, of: Any, weight: float, steps: int = 3) -> tuple[Any, ...]:
        v, first, second = self.v.copy(), np.zeros_like(self.v), np.zeros_like(self.v)
        lost = [
            of.soft_step(
                self.gradients,
                self.base,
                v,
                (first, second),
                self.grid,
                beta=7.3,
                weight=weight,
                adam=Adam(step=step, rate=0.01),
            )
            for step in range(1, steps + 1)
        ]
        return v, first, second, lost


def check(layer: Layer) -> None:
    given = layer.base, layer.v, layer.grid
    assert_parity(lambda: soft_round(*given), twin.soft_round(*given))
    for weight in (0.0, 0.03):
        options = {"beta": 7.3, "weight": weight}
        assert_parity(
            lambda options=options: soft_gradients(layer.gradients, *given, **options),
            twin.soft_gradients(layer.gradients, *given, **options),
        )
        assert_parity(lambda weight=weight: layer.stepped(soft_rounding, weight), layer.stepped(twin, weight))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, int]) -> None:
    check(Layer(*shape))
    check(Layer(*shape, shared=True))


@pytest.mark.parametrize("beta", [1.0, 2.0, 20.0, 128.0])
def test_exponents(beta: float) -> None:
    layer = Layer(3, 300)
    given = layer.gradients, layer.base, layer.v, layer.grid
    assert_parity(
        lambda: soft_gradients(*given, beta=beta, weight=1.0), twin.soft_gradients(*given, beta=beta, weight=1.0)
    )


def test_awkward_numbers() -> None:
    layer = Layer(4, 1000)
    layer.v = cases.awkward(layer.v.shape, finite=False, spread=3.0)
    layer.gradients = cases.awkward(layer.v.shape, seed=3, finite=False)
    with np.errstate(all="ignore"):
        check(layer)


def ulps(found: np.ndarray, exact: np.ndarray) -> float:
    spacing = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    return float(np.max(np.abs(found.astype(np.float64) - exact) / spacing))


def test_exponentials_and_logarithms_are_as_good_as_stated() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([np.linspace(-87, 88, 1_000_001), rng.normal(size=500_000)]).astype(np.float32)
    assert ulps(float_functions.exp_of(x), np.exp(x.astype(np.float64))) < 1.0
    assert float_functions.exp_of(np.float32([-100]))[0] == float_functions.exp_of(np.float32([-87]))[0]
    y = np.concatenate([np.linspace(-126, 126.9, 1_000_001), rng.normal(size=500_000)]).astype(np.float32)
    assert ulps(float_functions.exp2_of(y), np.exp2(y.astype(np.float64))) < 1.0
    assert float_functions.exp2_of(np.float32([-126.5]))[0] == 0
    x = np.exp2(np.linspace(-126, -1e-9, 1_000_001)).astype(np.float32)
    x = np.concatenate([x[x < 1], 1 - np.exp2(np.linspace(-24, -1, 500_001)).astype(np.float32)])
    exact = np.log2(x.astype(np.float64))
    assert ulps(float_functions.log2_of(x), exact) < 1.5
    assert np.array_equal(float_functions.log2_of(np.float32([1, 0.5, 0.25, 0])), np.float32([0, -1, -2, -126]))
    for p in (1.0, 2.5, 19.0, 127.0):
        logs = p * exact
        seen = logs > -125
        found = float_functions.power_of(x[seen], np.float32(p)).astype(np.float64)
        wanted = np.exp2(logs[seen])
        assert np.all(np.abs(found - wanted) <= (np.abs(logs[seen]) + 4) * 2.0**-23 * wanted)


def test_soft_values_begin_at_the_weights_and_end_at_codes() -> None:
    layer = Layer(6, 200)
    base, v = soft_start(layer.weights, layer.grid)
    scale = np.asarray(layer.grid.scale)[:, None]
    inside = np.abs(layer.weights / scale) < 6
    np.testing.assert_allclose(soft_round(base, v, layer.grid)[inside], layer.weights[inside], rtol=1e-4, atol=1e-5)
    grid = layer.grid.arguments()
    nearest = quantize(layer.weights, *grid, dtype="int8", axis=0)
    close = np.abs(layer.weights / scale - np.floor(layer.weights / scale) - 0.5) > 1e-3
    assert np.array_equal(soft_codes(base, v, layer.grid)[close], nearest[close])
    settled = np.where(layer.v >= 0, np.float32(50), np.float32(-50))
    codes = soft_codes(base, layer.v, layer.grid)
    values = soft_round(base, settled, layer.grid)
    assert np.array_equal(quantize(values, *grid, dtype="int8", axis=0), codes)
    assert np.array_equal(fake_quantize(values, *grid, axis=0), values)


@pytest.mark.parametrize("weight", [0.0, 0.05])
def test_torch_agrees(weight: float) -> None:
    torch = pytest.importorskip("torch")
    layer = Layer(5, 400)
    v = torch.nn.Parameter(torch.from_numpy(layer.v.copy()).double())
    adam = torch.optim.Adam([v], lr=0.01)
    scale = torch.from_numpy(np.asarray(layer.grid.scale)[:, None])
    zeros = torch.from_numpy(np.asarray(layer.grid.zero_point)[:, None])
    for step in range(3):
        adam.zero_grad()
        h = torch.clamp(torch.sigmoid(v) * 1.2 - 0.1, 0, 1)
        place = torch.from_numpy(layer.base) + h
        values = torch.minimum(torch.maximum(place, -8 - zeros), 7 - zeros) * scale
        extra = weight * (1 - (2 * h - 1).abs().pow(7.3)).sum()
        ((values * torch.from_numpy(layer.gradients)).sum() + extra).backward()
        adam.step()
        if step == 0:
            np.testing.assert_allclose(
                soft_round(layer.base, layer.v, layer.grid), values.detach(), rtol=1e-5, atol=1e-6
            )
            found, lost = soft_gradients(layer.gradients, layer.base, layer.v, layer.grid, beta=7.3, weight=weight)
            np.testing.assert_allclose(found, v.grad, rtol=1e-4, atol=1e-6)
            assert lost == pytest.approx(extra.item(), rel=1e-5)
    np.testing.assert_allclose(layer.stepped(soft_rounding, weight)[0], v.detach(), rtol=1e-4, atol=1e-5)


def test_the_output_may_be_given() -> None:
    layer = Layer(3, 40)
    out = np.zeros_like(layer.v)
    assert soft_round(layer.base, layer.v, layer.grid, out=out) is out
    assert np.array_equal(out, soft_round(layer.base, layer.v, layer.grid))


FLOATS = np.zeros((2, 3), np.float32)


def given(**change: Any) -> dict[str, Any]:
    grid = {"scale": np.ones(2, np.float32), "zero_point": np.zeros(2, np.int32), "qmin": -8, "qmax": 7}
    grid |= {key: change.pop(key) for key in list(change) if key in grid}
    arrays: dict[str, Any] = {name: FLOATS.copy() for name in ("gradients", "base", "v", "first", "second")}
    options = {"beta": 2.0, "weight": 1.0, "rate": 0.1, "step": 1, "decays": (0.9, 0.999), "epsilon": 1e-8}
    return arrays | options | {"grid": SoftGrid(**grid)} | change


def step_with(**change: Any) -> float:
    call = given(**change)
    adam = Adam(step=call["step"], rate=call["rate"], decays=call["decays"], epsilon=call["epsilon"])
    return soft_step(
        call["gradients"],
        call["base"],
        call["v"],
        (call["first"], call["second"]),
        call["grid"],
        beta=call["beta"],
        weight=call["weight"],
        adam=adam,
    )


@pytest.mark.parametrize("name", ["gradients", "base", "v", "first", "second"])
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3)), "must have dtype float32, got float64"),
        (np.zeros(3, np.float32), "must have two axes"),
        (np.zeros((3, 2), np.float32).T, "must be in C order"),
        (np.zeros((2, 6), np.float32)[:, ::2], "must be in C order"),
    ],
)
def test_arrays_that_do_not_fit(name: str, array: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=f"{name} {message}"):
        step_with(**{name: array})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": np.zeros((3, 3), np.float32)}, r"v must have shape \[2, 3\], got \[3, 3\]"),
        ({"first": np.zeros((2, 4), np.float32)}, r"first must have shape \[2, 3\]"),
        ({"scale": np.ones(3, np.float32)}, "scale must have 1 or 2 elements, got 3"),
        ({"scale": np.ones((2, 1), np.float32)}, "scale must be a contiguous vector"),
        ({"scale": np.float32([1, 0])}, r"scale\[1\] must be finite and positive"),
        ({"scale": np.float32([math.nan, 1])}, r"scale\[0\] must be finite and positive"),
        ({"zero_point": np.int32([0, 9])}, r"zero_point\[1\] must be in"),
        ({"zero_point": np.zeros(2)}, "zero_point must have dtype int32"),
        ({"qmin": 8}, "qmin 8 and qmax 7"),
        ({"beta": 0.5}, r"beta must be in \[1, 128\], got 0.5"),
        ({"beta": math.nan}, "beta must be in"),
        ({"weight": -1.0}, "weight must be finite and not negative"),
        ({"weight": math.inf}, "weight must be finite"),
        ({"rate": math.nan}, "rate must be finite"),
        ({"step": 0}, "step must be at least 1, got 0"),
        ({"decays": (1.0, 0.9)}, r"decays must be in \[0, 1\)"),
        ({"epsilon": 0.0}, "epsilon must be finite and positive"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        step_with(**change)


def test_what_is_written_is_not_shared() -> None:
    v = FLOATS.copy()
    for other in ("gradients", "base", "first", "second"):
        with pytest.raises(ValueError, match="overlaps"):
            step_with(**{"v": v, other: v})
    with pytest.raises(ValueError, match="out overlaps v"):
        soft_round(FLOATS.copy(), v, given()["grid"], out=v)
    v.setflags(write=False)
    with pytest.raises(ValueError, match="v is read-only"):
        step_with(v=v)
    with pytest.raises(TypeError, match="base must be a NumPy array"):
        soft_round([[1.0]], v, given()["grid"])  # type: ignore[arg-type]
