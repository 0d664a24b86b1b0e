"""Multiply-accumulates against torch's own counter of operations, and against sums of ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from detent.graph import Graph, capture
from detent.graph.placement import Placement
from detent.graph.policy import place_as_asked
from detent.mixed_precision.macs import Product, products
from detent.mixed_precision.slots import activation_slots
from detent.targets import load_target
from tests.models import MODELS, build


def products_of(graph: Graph, target: str = "default") -> tuple[Product, ...]:
    placement: Placement = place_as_asked(graph, load_target(target))
    return products(graph, placement, activation_slots(graph, placement))


LAYERS = {
    "conv1d": (lambda: nn.Conv1d(3, 5, 4, stride=3, dilation=2), (3, 20)),
    "conv2d": (lambda: nn.Conv2d(3, 5, (3, 2), stride=(2, 1)), (3, 9, 7)),
    "conv2d grouped": (lambda: nn.Conv2d(6, 9, 3, groups=3), (6, 7, 7)),
    "conv2d depthwise": (lambda: nn.Conv2d(6, 12, 3, stride=2, groups=6), (6, 9, 9)),
    "conv3d": (lambda: nn.Conv3d(2, 4, (1, 2, 3)), (2, 4, 5, 6)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(3, 4, 5, stride=2), (3, 7)),
    "transposed 2d": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 5, 5)),
    "transposed 2d strided and dilated": (lambda: nn.ConvTranspose2d(2, 3, 3, stride=3, dilation=2), (2, 4, 5)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), (2, 3, 4, 2)),
    "linear": (lambda: nn.Linear(7, 5), (7,)),
    "linear over time": (lambda: nn.Linear(7, 5), (4, 7)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_of_ones_the_outputs_sum_to_the_multiplications(name: str) -> None:
    make, shape = LAYERS[name]
    layer = make().eval()
    (found,) = products_of(capture(layer, torch.randn(3, *shape)))
    # Kernel and input of ones, no bias, no padding: each multiplication adds one to some output.
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.zero_()
        assert found.macs == int(layer(torch.ones(1, *shape)).double().sum())
    assert found.kernel == found.layer
    assert len(found.inputs) == 1


def test_padding_counts_as_what_the_kernel_meets() -> None:
    (found,) = products_of(capture(nn.Conv2d(3, 4, 3, padding=1).eval(), torch.randn(2, 3, 5, 5)))
    assert found.macs == 4 * 5 * 5 * 3 * 3 * 3


COUNTED = [name for name in MODELS if name not in ("recurrent",)]


@pytest.mark.parametrize("name", COUNTED)
def test_networks_have_the_operations_torch_counts(name: str) -> None:
    torch.manual_seed(0)
    samples = 4 if name == "fixed_batch" else 3
    model, inputs = build(name), MODELS[name].inputs(samples)
    graph = capture(model, inputs)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # Attention in one piece is something torch does not count on the CPU.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
            model(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    assert sum(product.macs for product in products_of(graph)) == counter.get_total_flops() / 2 / samples


class Products(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.baddbmm(torch.zeros(1), x, x.transpose(1, 2))
        mixed = torch.einsum("bij,bjk->bik", scores, x)
        attended = F.scaled_dot_product_attention(mixed, mixed, torch.tanh(x)[..., :2])
        return attended @ (mixed @ self.matrix)[:, :2]


def test_products_of_two_values_know_both() -> None:
    found = products_of(capture(Products().eval(), torch.randn(2, 5, 6)))
    rows = [(product.macs, product.kernel, product.inputs) for product in found]
    assert rows[0] == (5 * 5 * 6, None, ("x", "x"))
    assert rows[1] == (5 * 5 * 6, None, ("baddbmm", "x"))
    # The softmax inside attention is in float.
    assert rows[2] == (5 * 5 * 6, None, ("einsum", "einsum"))
    assert rows[3] == (5 * 5 * 2, None, (None, "tanh"))
    # A product with a stored matrix, whose kernel this target leaves in float.
    assert rows[4] == (5 * 6 * 4, None, ("einsum",))
    assert rows[5] == (5 * 2 * 4, None, ("scaled_dot_product_attention", "matmul"))


class Chained(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bij,bjk,bkl->bil", x, x.tanh(), x)


def test_an_einsum_of_three_multiplies_twice() -> None:
    found = products_of(capture(Chained().eval(), torch.randn(2, 4, 4)))
    assert [product.inputs for product in found if product.layer.startswith("einsum")][-1][-1] == "x"
    assert all(product.kernel is None for product in found)


class Positions(nn.Module):
    """A product that does not depend on the batch is computed once."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(5, 7))

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(15.0).reshape(3, 5)
        return x @ (torch.sin(places) @ self.matrix)


def test_what_does_not_depend_on_the_batch_is_not_divided_by_it() -> None:
    found = products_of(capture(Positions().eval(), torch.randn(4, 3)))
    assert [product.macs for product in found] == [3 * 5 * 7, 3 * 7]


def test_shared_kernels_go_by_one_name() -> None:
    graph = capture(build("reused"), MODELS["reused"].inputs(2))
    assert {product.kernel for product in products_of(graph)} == {"conv"}
    assert len({product.layer for product in products_of(graph)}) == 3
