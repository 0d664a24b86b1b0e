"""Twin of csrc/search/scale_sums.h, dense_scale.h and uniform_range.h: the dense searches, to the bit.

Costs are taken in float32 in 16 lanes over blocks of 128 rows; lanes and blocks are added in float64 in a fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "Channel",
    "Codes",
    "Cost",
    "Node",
    "add_lanes",
    "clipping_cost",
    "search_scale",
    "search_uniform",
    "to_rows",
]

Cost = Literal["square", "absolute", "power"]
Codes = tuple[float, float]
FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]

LANES: Final = 16
BLOCK_ROWS: Final = 128
BATCH: Final = 8
COARSE: Final = 128
LEAST_FINE: Final = 40
MOST_FINE: Final = 640
FINE_WORK: Final = 184320
KEPT: Final = 4
COARSE_RATIO: Final = 0.7071067811865476
SIDE: Final = 16
REACH: Final = 3
EIGHTH_OCTAVE: Final = 1.0905077326652577
THIRTY_SECOND: Final = 1.0218971486541166


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One channel, normalized to [1, 2) and padded with zeros.

    Args:
        x: values, float32 `[rows, 16]`.
        h: importance, likewise, or None.
        top: largest positive value, or 0.
        bottom: largest magnitude of a negative value, or 0.
        importance: sum h.
        energy: sum h x^2.
        cost: what is added up.
        power: exponent of the cost.
    """

    x: FloatArray
    h: FloatArray | None
    top: float
    bottom: float
    importance: float
    energy: float
    cost: Cost
    power: float


@dataclass(frozen=True)
class Node:
    """The cost at one scale, and for squares what the best scale for the same codes would cost."""

    scale: float
    cost: float
    refined_scale: float
    refined_cost: float


def to_rows(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Rows of 16 lanes, the last one padded with zeros."""
    return np.pad(values, (0, -len(values) % LANES)).reshape(-1, LANES)


def add_lanes(rows: DoubleArray) -> float:
    """Sum of float64 `[rows, 16]`: each lane from top to bottom, then the lanes in halves."""
    lanes = np.zeros(LANES)
    for row in rows:
        lanes = lanes + row
    return halve(lanes)


def halve(lanes: DoubleArray) -> float:
    """Sum of 16 lanes: the upper half onto the lower half until one is left."""
    while len(lanes) > 1:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    return float(lanes[0])


def raise_to(t: FloatArray, p: float) -> FloatArray:
    """t^p in float32, good for ranking: a product for whole p, else log2 (atanh series) and exp2 (Taylor series)."""
    if p == math.floor(p):
        product = t
        for _ in range(1, int(p)):
            product = product * t
        return product
    bits = t.view(np.int32)
    exponent = (bits - 0x3F3504F3) >> 23
    m = (bits - (exponent << 23)).view(np.float32)
    z = (m - 1.0) / (m + 1.0)
    z2 = z * z
    series = z * (2.88539008 + z2 * (0.961796694 + z2 * (0.577078016 + z2 * 0.412198583)))
    w = np.clip((exponent.astype(np.float32) + series) * np.float32(p), np.float32(-125), np.float32(125))
    whole = np.rint(w)
    f = (w - whole) * 0.693147181
    e = 0.0416666667 + f * (0.00833333333 + f * 0.00138888889)
    e = 1.0 + f * (1.0 + f * (0.5 + f * (0.166666667 + f * e)))
    result: FloatArray = (e.view(np.int32) + (whole.astype(np.int32) << 23)).view(np.float32)
    result[t < np.float32(2.0**-100)] = 0
    return result


def add_float_rows(terms: FloatArray) -> float:
    """Sum of float32 `[rows, 16]`: float32 inside a block, float64 across blocks and lanes."""
    lanes = np.zeros(LANES)
    for begin in range(0, len(terms), BLOCK_ROWS):
        block = np.zeros(LANES, np.float32)
        for row in terms[begin : begin + BLOCK_ROWS]:
            block = block + row
        lanes = lanes + block.astype(np.float64)
    return halve(lanes)


def raise_scale(channel: Channel, scale: float) -> float:
    """scale^p."""
    if channel.cost == "square":
        return scale * scale
    return scale if channel.cost == "absolute" else math.pow(scale, channel.power)


def measure(channel: Channel, scale: float, codes: Codes) -> Node:
    """Cost of the codes at (nearly) `scale`: the scale whose reciprocal is the float32 nearest to 1 / scale."""
    inverse = np.float32(1.0 / scale)
    y = channel.x * inverse
    q = y - np.rint(np.clip(y, np.float32(codes[0]), np.float32(codes[1])))
    exact = 1.0 / float(inverse)
    unit = raise_scale(channel, exact)
    if channel.cost != "square":
        terms = np.abs(q) if channel.cost == "absolute" else raise_to(np.abs(q), channel.power)
        cost = unit * add_float_rows(terms)
        return Node(exact, cost, exact, cost)
    weighted = q if channel.h is None else channel.h * q
    cost, slope = add_float_rows(weighted * q), add_float_rows(weighted * y)
    # With k = y - q: sum h k^2 and sum h q k.
    energy = channel.energy / unit
    squares = energy - 2.0 * slope + cost
    cross = slope - cost
    if squares <= 2.0**-14 * energy:
        return Node(exact, unit * cost, exact, unit * cost)
    refined = unit * max(0.0, cost - cross * cross / squares)
    return Node(exact, unit * cost, exact * (1.0 + cross / squares), refined)


def best_refined(nodes: Sequence[Node]) -> int:
    """Index of the first node with the least refined cost."""
    return min(range(len(nodes)), key=lambda i: nodes[i].refined_cost)


def scan_octaves(channel: Channel, codes: Codes, least: float, unclipped: float) -> list[Node]:
    """Half octaves downwards, eight at a time, until clipping alone costs more than the best."""
    nodes: list[Node] = []
    scale = unclipped
    while len(nodes) + BATCH <= COARSE and scale >= least:
        for _ in range(BATCH):
            if scale >= least:
                nodes.append(measure(channel, scale, codes))
                scale *= COARSE_RATIO
        if clipping_cost(channel, nodes[-1].cost, nodes[-1].scale) > min(node.cost for node in nodes):
            break
    return nodes


def clipping_cost(channel: Channel, cost: float, scale: float) -> float:
    """What clipping costs at least at this scale, hence at every smaller one: the rest is at most half a step each."""
    return cost - channel.importance * raise_scale(channel, 0.5 * scale)


def search_scale(channel: Channel, codes: Codes, least: float, unclipped: float) -> Node:
    """The least cost found over scales of at least `least`, below and around the least one that clips nothing."""
    nodes = scan_octaves(channel, codes, least, unclipped)
    fine = min(MOST_FINE, max(LEAST_FINE, FINE_WORK // channel.x.size))
    scale = nodes[best_refined(nodes)].scale / COARSE_RATIO
    ratio = math.pow(2.0, -1.0 / fine)
    for _ in range(fine):
        scale *= ratio
        if scale >= least:
            nodes.append(measure(channel, scale, codes))
    return improve(channel, codes, least, math.log(2.0) / fine, nodes)


def improve(channel: Channel, codes: Codes, least: float, step: float, nodes: list[Node]) -> Node:
    """Improve the best four: squares by Lloyd's iteration, others by subdivision."""
    for i in range(min(KEPT, len(nodes))):
        best_at = i + best_refined(nodes[i:])
        nodes[i], nodes[best_at] = nodes[best_at], nodes[i]
    kept = nodes[:KEPT]
    if channel.cost == "square":
        once = [measure(channel, max(least, node.refined_scale), codes) for node in kept]
        twice = [measure(channel, max(least, node.refined_scale), codes) for node in once]
        return first_least([kept[0], *once, *kept, *twice])
    best = kept[0]
    around = [node.scale * (1.0 + sign * (step / 3.0)) for node in kept for sign in (1, -1)]
    best = first_least([best, *(measure(channel, max(least, scale), codes) for scale in around)])
    offsets = [(i + 1) * step / 9.0 for i in range(len(kept))]
    around = [best.scale * (1.0 + sign * offset) for offset in offsets for sign in (1, -1)]
    return first_least([best, *(measure(channel, max(least, scale), codes) for scale in around)])


def first_least(nodes: Sequence[Node]) -> Node:
    """The first node of least cost."""
    return min(nodes, key=lambda node: node.cost)


@dataclass(frozen=True)
class Pair:
    """Magnitudes of the limits of a uniform grid, its zero point, and its cost."""

    lower: float
    upper: float
    zero: float
    node: Node


def search_uniform(channel: Channel, bits: int, least_range: float) -> tuple[float, float]:
    """Magnitudes of the best lower and upper limit."""
    steps = float((1 << bits) - 1)
    least = least_range / steps
    if bits > 3 and channel.bottom > 0 and channel.top > 0:
        return search_limits(channel, steps, least)
    first = steps if channel.top == 0 else 0.0
    last = 0.0 if channel.bottom == 0 else steps
    found: list[tuple[Node, float]] = []
    for zero in np.arange(first, last + 1):
        up = channel.top / (steps - zero) if zero < steps else 0.0
        down = channel.bottom / zero if zero > 0 else 0.0
        found.append((search_scale(channel, (-zero, steps - zero), least, max(least, up, down)), float(zero)))
    node, zero = min(found, key=lambda pair: pair[0].cost)
    return zero * node.scale, (steps - zero) * node.scale


def search_limits(channel: Channel, steps: float, least: float) -> tuple[float, float]:
    """Coarse pairs of limits, two refinements, then scale and zero point."""
    coarse = []
    lower = channel.bottom
    for _ in range(SIDE):
        upper = channel.top
        for _ in range(SIDE):
            coarse.append(measure_pair(channel, lower, upper, steps, least))
            upper *= COARSE_RATIO
        lower *= COARSE_RATIO
    # The first is both the best and the runner-up until something better comes.
    top = sorted([coarse[0], *coarse], key=lambda pair: pair.node.refined_cost)[:2]
    first, second = (refine_pair(channel, pair, EIGHTH_OCTAVE, steps, least) for pair in top)
    start = second if second.node.refined_cost < first.node.refined_cost else first
    best = polish(channel, refine_pair(channel, start, THIRTY_SECOND, steps, least), steps, least)
    return best.lower, best.upper


def measure_zero(channel: Channel, zero: float, scale: float, steps: float, least: float) -> Pair:
    """Cost of a zero point and scale."""
    node = measure(channel, max(least, scale), (-zero, steps - zero))
    return Pair(zero * node.scale, (steps - zero) * node.scale, zero, node)


def measure_pair(channel: Channel, lower: float, upper: float, steps: float, least: float) -> Pair:
    """Cost of a pair of limits, with zero on the nearest grid point."""
    scale = max(least, (lower + upper) / steps)
    found = measure_zero(channel, min(steps, float(np.rint(lower / scale))), scale, steps, least)
    return replace(found, lower=lower, upper=upper)


def refine_pair(channel: Channel, start: Pair, ratio: float, steps: float, least: float) -> Pair:
    """The best of 7 x 7 pairs around `start`."""
    up, down = [1.0], [1.0]
    for _ in range(REACH):
        up.append(up[-1] * ratio)
        down.append(down[-1] / ratio)
    factors = [*reversed(down[1:]), *up]
    around = [
        measure_pair(channel, start.lower * lower, start.upper * upper, steps, least)
        for lower in factors
        for upper in factors
    ]
    return min([start, *around], key=lambda pair: pair.node.refined_cost)


def polish(channel: Channel, best: Pair, steps: float, least: float) -> Pair:
    """Zero points up to three away, each with its scale improved."""
    square = channel.cost == "square"
    for offset in (0.006, 0.002):
        center = best
        zeros = [center.zero + i for i in range(-REACH, REACH + 1) if 0 <= center.zero + i <= steps]
        if square:
            pairs = [(zero, center.node.refined_scale) for zero in zeros]
        else:
            pairs = [(zero, center.node.scale * (1.0 + side * offset)) for zero in zeros for side in (-1, 0, 1)]
        for _ in range(2 if square else 1):
            found = [measure_zero(channel, zero, scale, steps, least) for zero, scale in pairs]
            best = min([best, *found], key=lambda pair: pair.node.cost)
            pairs = [(pair.zero, pair.node.refined_scale) for pair in found]
    return best
