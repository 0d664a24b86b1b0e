"""Fused attention becomes matrix products that are the same function, and can be calibrated and quantized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import detent
from detent.graph import capture
from detent.statistics import calibrate
from detent.transforms import split_attention

SHAPE = (2, 2, 5, 4)
"""`[N, heads, positions, width]`."""


class Attention(nn.Module):
    def __init__(self, mask: Tensor | None = None, **options: Any) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x * 2, x.flip(-1), self.mask, **self.options)


class ComputedBoolean(Attention):
    def forward(self, x: Tensor) -> Tensor:
        # The first sample's rows are often empty: every entry of theirs is blocked.
        mask = (x.sum(-1) > 0).unsqueeze(-2)
        return F.scaled_dot_product_attention(x, x, x, mask)


class ComputedFloat(Attention):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, x.mean(-1).unsqueeze(-2))


class OneKeyForAll(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.key = nn.Parameter(torch.randn(1, 2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, self.key, self.key)


class MultiHead(nn.Module):
    def __init__(self, causal: bool, weights: bool = False) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.weights = weights
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(5) if causal else None)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=self.weights, attn_mask=self.mask)[0]


def _triangle() -> Tensor:
    return torch.ones(5, 5, dtype=torch.bool).tril()


def _with_empty_row(mask: Tensor) -> Tensor:
    mask[2] = False if mask.dtype == torch.bool else -torch.inf
    return mask


SPLIT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (Attention, SHAPE),
    "three_axes": (Attention, (3, 5, 4)),
    "five_axes": (Attention, (2, 3, 2, 5, 4)),
    "scale": (lambda: Attention(scale=0.3), SHAPE),
    "scale_one": (lambda: Attention(scale=1.0), SHAPE),
    "causal": (lambda: Attention(is_causal=True), SHAPE),
    "boolean": (lambda: Attention(_triangle()), SHAPE),
    "boolean_all": (lambda: Attention(torch.ones(5, 5, dtype=torch.bool)), SHAPE),
    "boolean_empty_row": (lambda: Attention(_with_empty_row(_triangle())), SHAPE),
    "float": (lambda: Attention(torch.randn(5, 5)), SHAPE),
    "float_infinite": (lambda: Attention(torch.zeros(5, 5).masked_fill(~_triangle(), -torch.inf)), SHAPE),
    "float_mixed": (lambda: Attention(torch.randn(2, 5, 5).masked_fill(~_triangle(), -1e9)), SHAPE),
    "float_empty_row": (lambda: Attention(_with_empty_row(torch.randn(5, 5))), SHAPE),
    "float_low_row": (lambda: Attention(torch.full((5, 5), -2e4)), SHAPE),
    "computed_boolean": (ComputedBoolean, SHAPE),
    "computed_float": (ComputedFloat, SHAPE),
    "one_key_for_all": (OneKeyForAll, SHAPE),
    "multi_head": (lambda: MultiHead(causal=False), (2, 5, 8)),
    "multi_head_causal": (lambda: MultiHead(causal=True), (2, 5, 8)),
}


@pytest.mark.parametrize("name", SPLIT)
def test_attention_becomes_products(name: str) -> None:
    torch.manual_seed(0)
    build, shape = SPLIT[name]
    model = build().eval()
    graph = capture(model, torch.randn(shape))
    fingerprint = graph.fingerprint()
    split = split_attention(graph)
    ops = [node.op.name for node in split.nodes() if node.op is not None]
    assert "scaled_dot_product_attention" not in ops
    assert ops.count("matmul") == 2
    assert ops.count("softmax") == 1
    assert split.macs == graph.macs
    x = torch.randn(7, *shape[1:])
    with torch.no_grad():
        wanted, got = model(x), split(x)
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert graph.fingerprint() == fingerprint
    statistics = calibrate(split, x, progress=False)
    assert sum(name.split(":")[0].endswith(("matmul", "softmax")) for name in statistics) == 3


def test_values_have_names_layouts_and_grids_of_their_own() -> None:
    split = split_attention(capture(Attention(is_causal=True), torch.randn(SHAPE)))
    names = [node.name for node in split.nodes()]
    assert names[-6:] == ["transpose", "matmul", "mul:1", "where", "softmax", "matmul:1"]
    assert split.find("softmax").shape == (2, 2, 5, 5)
    for name in names[-6:]:
        layout = split.find(name).batch
        assert layout is not None
        assert layout.axis == 0
    # Blocked positions are on no grid: the scores' own does not see them.
    assert split.find("where").preserving
    statistics = calibrate(split, torch.randn(8, *SHAPE[1:]), progress=False)
    assert "where" not in statistics
    assert statistics["mul:1"].minimum > -1e3


@pytest.mark.parametrize("name", ["boolean_empty_row", "float_mixed", "computed_boolean", "multi_head_causal"])
def test_blocked_positions_do_not_spoil_the_quantized_network(name: str) -> None:
    torch.manual_seed(0)
    build, shape = SPLIT[name]
    model, x = build().eval(), torch.randn(32, *shape[1:])
    split = split_attention(capture(model, x[:2]))
    plan = detent.plan(split, calibrate(split, x, progress=False), target="default")
    quantized = detent.apply(split, plan)
    with torch.no_grad():
        wanted, got = model(x), quantized(x)
    assert (got - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_weights_of_attention_that_are_returned_leave_nothing_to_split() -> None:
    graph = capture(MultiHead(causal=False, weights=True).eval(), torch.randn(2, 5, 8))
    assert split_attention(graph).fingerprint() == graph.fingerprint()


KEPT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "dropout": (lambda: Attention(dropout_p=0.5), "at random"),
    "grouped_queries": (lambda: Attention(enable_gqa=True), "share one head"),
}


@pytest.mark.parametrize("name", KEPT)
def test_other_attention_stays_and_is_noted(name: str) -> None:
    build, reason = KEPT[name]
    graph = capture(build().eval(), torch.randn(SHAPE))
    # Capture may have switched dropout off.
    assert [node for node in graph.nodes() if node.kind == "attention"]
    split = split_attention(graph)
    assert split.fingerprint() == graph.fingerprint()
    assert any(reason in note for note in split.notes)
