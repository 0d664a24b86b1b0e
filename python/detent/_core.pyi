"""Types of the compiled module; one block per binding file."""

from typing import Any

import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[Any]

# bind_info.cpp
version: str
compiler: str

def compiled_isas() -> list[str]: ...
def available_isas() -> list[str]: ...
def active_isa() -> str: ...
def set_isa(name: str) -> None: ...
def num_threads() -> int: ...
def set_num_threads(count: int) -> None: ...
def limit_threads(count: int) -> None: ...

# bind_fake_quant.cpp
def fake_quantize(
    x: _Array, scale: _Array, zero_point: _Array, qmin: int, qmax: int, axis: int | None, out: _Array | None
) -> _Array: ...
def in_range_mask(
    x: _Array, scale: _Array, zero_point: _Array, qmin: int, qmax: int, axis: int | None, out: _Array | None
) -> _Array: ...
def quantize(
    x: _Array, scale: _Array, zero_point: _Array, qmin: int, qmax: int, dtype: str, axis: int | None, out: _Array | None
) -> _Array: ...
def dequantize(codes: _Array, scale: _Array, zero_point: _Array, axis: int | None, out: _Array | None) -> _Array: ...
def dequantize_packed(
    codes: _Array,
    scale: _Array,
    zero_point: _Array,
    is_signed: bool,
    shape: list[int],
    axis: int | None,
    out: _Array | None,
) -> _Array: ...
def pack_int4(codes: _Array, out: _Array | None) -> _Array: ...
def unpack_int4(packed: _Array, shape: list[int], is_signed: bool) -> _Array: ...

# bind_lut.cpp
def lut_fake_quantize(x: _Array, scale: _Array, table: _Array, axis: int | None, out: _Array | None) -> _Array: ...
def lut_quantize(x: _Array, scale: _Array, table: _Array, axis: int | None, out: _Array | None) -> _Array: ...
def lut_dequantize(codes: _Array, scale: _Array, table: _Array, axis: int | None, out: _Array | None) -> _Array: ...

# bind_comparison.cpp
def differences(a: _Array, b: _Array, lower: _Array, upper: _Array, axis: int | None) -> npt.NDArray[np.float64]: ...
def distances(
    a: _Array, b: _Array, shift: _Array, lower: _Array, upper: _Array, axis: int | None
) -> npt.NDArray[np.float64]: ...

# bind_dropping.cpp
def dropped_round(
    x: _Array,
    drawn: _Array | None,
    below: int,
    scale: float,
    zero_point: int,
    qmin: int,
    qmax: int,
    out: _Array | None,
) -> npt.NDArray[np.float32]: ...
def dropped_gradients(
    g: _Array,
    x: _Array,
    drawn: _Array | None,
    below: int,
    scale: float,
    zero_point: int,
    qmin: int,
    qmax: int,
    out: _Array | None,
) -> tuple[npt.NDArray[np.float32], float]: ...

# bind_integer.cpp
class RequantizeFactors:
    def __init__(
        self,
        rule: str,
        factor: _Array | None,
        multiplier: _Array | None,
        shift: _Array | None,
        zero_point: int,
        lowest: int,
        highest: int,
    ) -> None: ...

def requantize(acc: _Array, axis: int | None, factors: RequantizeFactors, out: _Array) -> None: ...
def integer_conv(
    x: _Array,
    zero_point: int,
    kernel: _Array,
    bias: _Array | None,
    stride: tuple[int, int],
    before: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    factors: RequantizeFactors,
    out: _Array,
) -> list[int]: ...
def integer_linear(
    x: _Array,
    zero_point: int,
    kernel: _Array,
    bias: _Array | None,
    factors: RequantizeFactors,
    out: _Array,
) -> list[int]: ...

# bind_integer_maps.cpp
def integer_sum(
    a: _Array,
    b: _Array,
    factor_a: float,
    factor_b: float,
    rest: float,
    lowest: int,
    highest: int,
    out: _Array,
) -> None: ...
def integer_table_sum(a: _Array, b: _Array, table_a: _Array, table_b: _Array, out: npt.NDArray[np.int32]) -> None: ...
def integer_value_sum(
    a: _Array,
    b: _Array,
    scales: tuple[float, float, float],
    zero_points: tuple[int, int, int],
    lowest: int,
    highest: int,
    out: _Array,
) -> None: ...
def integer_gather(x: _Array, places: _Array, fill: int, out: _Array) -> None: ...
def integer_look_up(x: _Array, table: _Array, out: _Array) -> None: ...

# bind_perturbation.cpp
def perturbations(
    x: _Array, g: _Array, scale: _Array, zero_point: _Array, qmin: _Array, qmax: _Array
) -> npt.NDArray[np.float64]: ...
def dots(x: _Array, g: _Array) -> npt.NDArray[np.float64]: ...

# bind_factor.cpp
def inverse_factor(h: _Array) -> npt.NDArray[np.float64]: ...
def multiply(a: _Array, b: _Array) -> npt.NDArray[np.float64]: ...

# bind_products.cpp
def moments(x: _Array, sums: npt.NDArray[np.float64], products: npt.NDArray[np.float64]) -> None: ...
def forms(a: _Array, g: _Array, b: _Array | None = None) -> npt.NDArray[np.float64]: ...

# bind_rounding.cpp
def round_columns(
    weights: _Array,
    factor: _Array,
    scale: _Array,
    zero_point: _Array | None,
    table: _Array | None,
    group_of_column: _Array | None,
    qmin: int,
    qmax: int,
) -> npt.NDArray[np.int32]: ...
def descend(
    weights: _Array,
    hessian: _Array,
    codes: _Array,
    linear: _Array | None,
    sweeps: int,
    scale: _Array,
    zero_point: _Array | None,
    table: _Array | None,
    group_of_column: _Array | None,
    qmin: int,
    qmax: int,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]: ...
def search_codes(
    weights: _Array,
    hessian: _Array,
    codes: _Array,
    linear: _Array | None,
    most_values: int,
    scale: _Array,
    zero_point: _Array | None,
    table: _Array | None,
    group_of_column: _Array | None,
    qmin: int,
    qmax: int,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]: ...

# bind_soft_rounding.cpp
def soft_round(
    base: _Array, v: _Array, out: _Array | None, scale: _Array, zero_point: _Array, qmin: int, qmax: int
) -> npt.NDArray[np.float32]: ...
def soft_gradients(
    gradients: _Array,
    base: _Array,
    v: _Array,
    beta: float,
    weight: float,
    scale: _Array,
    zero_point: _Array,
    qmin: int,
    qmax: int,
) -> tuple[npt.NDArray[np.float32], float]: ...
def soft_step(
    gradients: _Array,
    base: _Array,
    v: _Array,
    first: _Array,
    second: _Array,
    beta: float,
    weight: float,
    rate: float,
    first_decay: float,
    second_decay: float,
    epsilon: float,
    step: int,
    scale: _Array,
    zero_point: _Array,
    qmin: int,
    qmax: int,
) -> float: ...

# bind_statistics.cpp
class StatisticsAccumulator:
    def __init__(self, channel_axis: int | None) -> None: ...
    def update(self, x: npt.NDArray[Any], samples: int | None) -> None: ...
    def merge(self, other: StatisticsAccumulator) -> None: ...
    def copy(self) -> StatisticsAccumulator: ...
    def state(self) -> dict[str, Any]: ...
    @property
    def samples(self) -> int: ...
    @property
    def nonfinite(self) -> int: ...
    @staticmethod
    def from_state(channel_axis: int | None, state: dict[str, npt.NDArray[Any]]) -> StatisticsAccumulator: ...

def exact_values(digits: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]: ...
def channel_range(
    x: npt.NDArray[Any], axis: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float64]]: ...
def weighted_counts(
    x: npt.NDArray[Any], weights: npt.NDArray[Any], exponent: int, first_bin: int, n_bins: int
) -> npt.NDArray[np.float64]: ...

# bind_histogram_search.cpp
class HistogramErrors:
    def __init__(
        self,
        positive: npt.NDArray[np.float64],
        positive_end: float,
        negative: npt.NDArray[np.float64],
        negative_end: float,
        zeros: float,
        half_count: float,
        metric: str,
        power: float,
    ) -> None: ...
    def fixed_levels(
        self, steps: npt.NDArray[np.float64], positive_levels: int, negative_levels: int
    ) -> npt.NDArray[np.float64]: ...
    def best_split(
        self, steps: npt.NDArray[np.float64], levels: int, first: int, last: int, stride: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]: ...

# bind_weight_search.cpp
def search_weights(
    w: npt.NDArray[Any],
    bits: list[int],
    grid: str,
    metric: str,
    p: float,
    axis: int | None,
    group_size: int | None,
    weights: npt.NDArray[Any] | None,
    narrow_range: bool,
    min_threshold: float,
    exact: bool,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None, npt.NDArray[np.float64]]: ...

# bind_codebook_search.cpp
def search_codebook(
    w: npt.NDArray[Any],
    bits: int,
    power_of_two: bool,
    shared: bool,
    axis: int | None,
    weights: npt.NDArray[Any] | None,
    starts: npt.NDArray[np.float32],
    keep_thresholds: bool,
    min_threshold: float,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float64]]: ...

# bind_assignment_search.cpp
def search_band(
    first: npt.NDArray[np.int64],
    costs: npt.NDArray[np.float64],
    amounts: npt.NDArray[np.float64],
    limits: npt.NDArray[np.float64],
    reduced: npt.NDArray[np.float64],
    bound: float,
    upper: float,
    gap: float,
    most_nodes: int,
    wanted: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], int, bool]: ...
def search_nearby(
    first: npt.NDArray[np.int64],
    factors: npt.NDArray[np.float64],
    costs: npt.NDArray[np.float64],
    amounts: npt.NDArray[np.float64],
    limits: npt.NDArray[np.float64],
    product: npt.NDArray[np.int64],
    product_amounts: npt.NDArray[np.float64],
    start: npt.NDArray[np.int64],
    steps: int,
    wanted: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], int, bool]: ...
def search_tree(
    first: npt.NDArray[np.int64],
    factors: npt.NDArray[np.float64],
    costs: npt.NDArray[np.float64],
    amounts: npt.NDArray[np.float64],
    limits: npt.NDArray[np.float64],
    product: npt.NDArray[np.int64],
    product_amounts: npt.NDArray[np.float64],
    order: npt.NDArray[np.int64],
    multipliers: npt.NDArray[np.float64],
    upper: float,
    gap: float,
    most_nodes: int,
    wanted: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], int, bool]: ...

# bind_error.cpp
def tensor_error(
    x: _Array,
    scale: _Array,
    zero_point: _Array,
    qmin: int,
    qmax: int,
    p: float,
    weights: _Array | None,
    axis: int | None,
) -> npt.NDArray[np.float64]: ...
