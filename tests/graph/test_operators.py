"""`torch.ops.detent.*`: values, memory formats, gradients, export, compile, and the path for other devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import detent.graph.operators
from detent.graph import torch_grids
from detent.kernels.reference import quantize as twins
from tests import cases
from tests.fanout import assert_same_bits
from tests.parity.test_quantize import RANGES, TABLES, one, per_channel

OPS = torch.ops.detent
assert detent.graph.operators.LIBRARY is not None


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(np.array(a)) for a in arrays]


FORMATS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    "every_second": lambda x: torch.stack([x, x], dim=-1)[..., 0],
    "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
    "window": lambda x: torch.nn.functional.pad(x, (1, 1))[..., 1:-1],
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("where", [(None, None), (1, None), (-1, None), (0, 2), (1, 1)], ids=str)
def test_values_and_memory_format(where: tuple[int | None, int | None], form: str) -> None:
    axis, group_size = where
    x = FORMATS[form](torch.from_numpy(cases.awkward((3, 4, 5, 6), finite=False)))
    n = 1 if axis is None else x.shape[axis] * (x.shape[1 - axis] // group_size if group_size else 1)
    scale, zero_point = per_channel(n, -128, 127)
    numbers = (*tensors(scale, zero_point), -128, 127, axis, group_size)
    array = x.contiguous().numpy()
    options = {"axis": axis, "group_size": group_size}
    for operator, torch_path, twin in (
        (OPS.fake_quantize, torch_grids.fake_quantize, twins.fake_quantize),
        (OPS.in_range_mask, torch_grids.in_range_mask, twins.in_range_mask),
    ):
        result = operator(x, *numbers)
        expected = twin(array, scale, zero_point, -128, 127, **options)
        assert_same_bits(result.numpy(), expected)
        assert_same_bits(torch_path(x, *numbers).numpy(), expected)
        assert result.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("scale", cases.SCALES)
def test_torch_path_on_awkward_floats(scale: str, name: str) -> None:
    step = cases.SCALES[scale]
    qmin, qmax, zero_point = RANGES[name]
    with np.errstate(over="ignore"):
        x = np.concatenate([cases.all_floats(), cases.NONFINITE, cases.ties(step)])
    grid = one(step, zero_point)
    result = torch_grids.fake_quantize(*tensors(x, *grid), qmin, qmax)
    assert_same_bits(result.numpy(), twins.fake_quantize(x, *grid, qmin, qmax))
    mask = torch_grids.in_range_mask(*tensors(x, *grid), qmin, qmax)
    assert_same_bits(mask.numpy(), twins.in_range_mask(x, *grid, qmin, qmax))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32"])
@pytest.mark.parametrize("where", [(None, None), (1, None), (0, 2)], ids=str)
def test_dequantize(where: tuple[int | None, int | None], dtype: str) -> None:
    axis, group_size = where
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    codes = np.random.default_rng(0).integers(low, high, (3, 4, 5), dtype=dtype, endpoint=True)
    n = 1 if axis is None else codes.shape[axis] * (2 if group_size else 1)
    grid = per_channel(n, max(low, -128), 100)
    expected = twins.dequantize(codes, *grid, axis=axis, group_size=group_size)
    arguments = (*tensors(codes, *grid), axis, group_size)
    assert_same_bits(OPS.dequantize(*arguments).numpy(), expected)
    assert_same_bits(torch_grids.dequantize(*arguments).numpy(), expected)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("where", [(None, None), (1, None), (0, 2)], ids=str)
def test_codebooks(where: tuple[int | None, int | None], table: str) -> None:
    axis, group_size = where
    x = cases.awkward((3, 4, 5), finite=False, spread=20.0)
    levels = np.asarray(TABLES[table], np.float32)
    n = 1 if axis is None else x.shape[axis] * (2 if group_size else 1)
    scale, _ = per_channel(n, 0, 1)
    options = {"axis": axis, "group_size": group_size}
    expected = twins.lut_fake_quantize(x, scale, levels, **options)
    arguments = (*tensors(x, scale, levels), axis, group_size)
    assert_same_bits(OPS.lut_fake_quantize(*arguments).numpy(), expected)
    assert_same_bits(torch_grids.lut_fake_quantize(*arguments).numpy(), expected)
    codes = twins.lut_quantize(x, scale, levels, **options)
    expected = twins.lut_dequantize(codes, scale, levels, **options)
    arguments = (*tensors(codes, scale, levels), axis, group_size)
    assert_same_bits(OPS.lut_dequantize(*arguments).numpy(), expected)
    assert_same_bits(torch_grids.lut_dequantize(*arguments).numpy(), expected)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_codebook_for_each_channel(axis: int) -> None:
    x = cases.awkward((3, 4, 5), finite=False, spread=20.0)
    n = x.shape[axis]
    levels = np.sort(cases.samples((n, 6), seed=3) * 10, axis=1)
    scale, _ = per_channel(n, 0, 1)
    expected = twins.lut_fake_quantize(x, scale, levels, axis=axis)
    arguments = (*tensors(x, scale, levels), axis)
    assert_same_bits(OPS.lut_fake_quantize(*arguments).numpy(), expected)
    assert_same_bits(torch_grids.lut_fake_quantize(*arguments).contiguous().numpy(), expected)
    codes = twins.lut_quantize(x, scale, levels, axis=axis)
    expected = twins.lut_dequantize(codes, scale, levels, axis=axis)
    arguments = (*tensors(codes, scale, levels), axis)
    assert_same_bits(OPS.lut_dequantize(*arguments).numpy(), expected)
    assert_same_bits(torch_grids.lut_dequantize(*arguments).contiguous().numpy(), expected)
    with pytest.raises(ValueError, match="codebooks need as many channels"):
        torch_grids.lut_dequantize(*tensors(codes, scale, levels))


def test_gradients_of_a_codebook_for_each_channel() -> None:
    x = torch.tensor([[-9.0, 0.2, 5.0], [-9.0, 0.2, 5.0]], requires_grad=True)
    table = torch.tensor([[-8.0, 0, 4], [-10, 0, 6]])
    scale = torch.ones(2, requires_grad=True)
    OPS.lut_fake_quantize(x, scale, table, 0).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0, 1, 0], [1, 1, 1]]
    # Outside the table the level itself, inside what rounding added.
    torch.testing.assert_close(scale.grad, torch.tensor([-8 + (0 - 0.2) + 4, -1 - 0.2 + 1]))
    scale.grad = None
    OPS.lut_dequantize(torch.tensor([[0, 2], [1, 2]], dtype=torch.uint8), scale, table, 0).sum().backward()
    torch.testing.assert_close(scale.grad, torch.tensor([-4.0, 6.0]))


def grid_tensors(n: int = 1, scale: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((n,), scale), torch.zeros(n, dtype=torch.int32)


def test_gradient_is_straight_through() -> None:
    x = torch.tensor([-0.95, -0.84, -0.3, 0.0, 0.74, 0.76, 5.0, torch.inf, torch.nan], requires_grad=True)
    OPS.fake_quantize(x, *grid_tensors(), -8, 7).sum().backward()
    assert x.grad is not None
    mask = OPS.in_range_mask(x.detach(), *grid_tensors(), -8, 7)
    torch.testing.assert_close(x.grad, mask.float())
    assert x.grad.tolist()[1:5] == [1, 1, 1, 1]
    assert x.grad.tolist()[-3:] == [0, 0, 0]


@pytest.mark.parametrize(("axis", "group_size"), [(None, None), (0, None), (1, None), (0, 2), (1, 2)])
def test_gradient_of_scale_is_that_of_the_formula(axis: int | None, group_size: int | None) -> None:
    """LSQ: the derivative of `clamp(round(x / s)) * s` with rounding taken as the identity."""
    x = torch.from_numpy(cases.samples((4, 6, 3)))
    n = 1 if axis is None else x.shape[axis] * (x.shape[1 - axis] // group_size if group_size else 1)
    scale = torch.linspace(0.05, 0.3, n).requires_grad_()
    zero_point = torch.zeros(n, dtype=torch.int32)
    weights = torch.from_numpy(cases.samples((4, 6, 3), seed=5))
    (OPS.fake_quantize(x, scale, zero_point, -8, 7, axis, group_size) * weights).sum().backward()

    twin = scale.detach().clone().requires_grad_()
    quotients = x / torch_grids.spread(twin, x, axis, group_size)
    rounded = quotients + (torch.round(quotients) - quotients).detach()
    values = rounded.clamp(-8, 7) * torch_grids.spread(twin, x, axis, group_size)
    (values * weights).sum().backward()
    torch.testing.assert_close(scale.grad, twin.grad, rtol=1e-4, atol=1e-4)


def test_gradient_of_a_codebook() -> None:
    x = torch.tensor([-9.0, -8.0, 0.2, 7.0, 7.1], requires_grad=True)
    OPS.lut_fake_quantize(x, torch.ones(1), torch.arange(-8.0, 8.0)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_gradients_of_scales() -> None:
    """Finite differences, where the value is linear in the scale: codes do not move."""
    codes = torch.randint(0, 16, (3, 4), dtype=torch.uint8)
    table = torch.arange(-8.0, 8.0)
    weights = torch.randn(3, 4)
    scale = torch.full((4,), 0.5, requires_grad=True)
    (OPS.dequantize(codes, scale, torch.full((4,), 3, dtype=torch.int32), 1) * weights).sum().backward()
    torch.testing.assert_close(scale.grad, ((codes.float() - 3) * weights).sum(0))
    scale.grad = None
    (OPS.lut_dequantize(codes, scale, table, 1) * weights).sum().backward()
    torch.testing.assert_close(scale.grad, (table[codes.long()] * weights).sum(0))
    scale.grad = None
    x = torch.full((3, 4), 100.0)
    (OPS.lut_fake_quantize(x, scale, table, 1) * weights).sum().backward()
    torch.testing.assert_close(scale.grad, (7 * weights).sum(0))


def test_gradient_of_the_gradient_exists() -> None:
    x = torch.randn(8, requires_grad=True)
    assert not OPS.in_range_mask(x, *grid_tensors(), -8, 7).requires_grad
    y = OPS.fake_quantize(x, *grid_tensors(), -8, 7)
    (g,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
    g.sum().backward()
    assert x.grad is not None


OPCHECKS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "per_tensor": (OPS.fake_quantize, (torch.randn(2, 3, 4, 4), *grid_tensors(), -8, 7)),
    "trained": (OPS.fake_quantize, (torch.randn(2, 3, requires_grad=True), *grid_tensors(3), -8, 7, 1)),
    "trained_scale": (
        OPS.fake_quantize,
        (
            torch.randn(2, 4, requires_grad=True),
            torch.full((4,), 0.1, requires_grad=True),
            grid_tensors(4)[1],
            0,
            7,
            0,
            2,
        ),
    ),
    "channels_last": (
        OPS.fake_quantize,
        (torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), *grid_tensors(3), 0, 255, 1),
    ),
    "gaps": (OPS.fake_quantize, (torch.randn(4, 8)[:, ::2], *grid_tensors(), -8, 7)),
    "mask": (OPS.in_range_mask, (torch.randn(2, 3), *grid_tensors(), -8, 7)),
    "dequantize": (OPS.dequantize, (torch.zeros(2, 3, dtype=torch.int8), *grid_tensors(3), 1)),
    "codebook": (
        OPS.lut_fake_quantize,
        (torch.randn(2, 3, requires_grad=True), torch.ones(1), torch.arange(-3.0, 4.0)),
    ),
    "codebook_codes": (OPS.lut_dequantize, (torch.zeros(2, 3, dtype=torch.uint8), torch.ones(1), torch.arange(3.0))),
}


@pytest.mark.parametrize("name", OPCHECKS)
def test_operators_keep_torch_rules(name: str) -> None:
    operator, arguments = OPCHECKS[name]
    torch.library.opcheck(operator.default, arguments)


class Net(torch.nn.Module):
    """A layer between two quantized activations, its weight stored as codes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randint(-8, 8, (4, 3, 3, 3), dtype=torch.int8))
        self.register_buffer("scale", torch.rand(4) + 0.1)
        self.register_buffer("zeros", torch.zeros(4, dtype=torch.int32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = OPS.fake_quantize(x, *grid_tensors(), -128, 127)
        weight = OPS.dequantize(self.codes, self.scale, self.zeros, 0)
        return OPS.fake_quantize(torch.nn.functional.conv2d(x, weight), *grid_tensors(4, 0.5), -128, 127, 1)


def test_export_with_dynamic_batch() -> None:
    net, x = Net().eval(), torch.randn(2, 3, 8, 8)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: batch},))
    targets = [str(node.target) for node in program.graph.nodes]
    assert "detent.fake_quantize.default" in targets
    assert "detent.dequantize.default" in targets
    other = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(program.module()(other), net(other), rtol=0, atol=0)


def test_compile_forward_and_backward() -> None:
    net = Net().eval()
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    y = compiled(x)
    y.sum().backward()
    grad, x.grad = x.grad, None
    net(x).sum().backward()
    torch.testing.assert_close(y, net(x), rtol=0, atol=0)
    torch.testing.assert_close(grad, x.grad, rtol=0, atol=0)


def test_fake_tensors_on_any_device() -> None:
    x = torch.empty(2, 3, 4, 4, device="meta").to(memory_format=torch.channels_last)
    scale, zero_point = grid_tensors()
    result = OPS.fake_quantize(x, scale.to("meta"), zero_point.to("meta"), -8, 7)
    assert result.shape == x.shape
    assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.zeros(2, 3, dtype=torch.float64)}, "x must have dtype"),
        ({"x": torch.zeros(2, 3, dtype=torch.float16)}, "x must have dtype"),
        ({"x": torch.zeros(2, 3, dtype=torch.bfloat16)}, "x must have dtype"),
        ({"scale": torch.ones(1, dtype=torch.float64)}, "scale must have dtype"),
        ({"zero_point": torch.zeros(1, dtype=torch.int64)}, "zero_point must have dtype"),
        ({"axis": 1}, "must have 3 e"),
        ({"axis": 2}, "axis 2 is outside x"),
        ({"axis": 0, "group_size": 2}, "group_size 2 does not divide"),
    ],
)
def test_refusals_are_alike_on_every_device(changed: dict[str, Any], message: str) -> None:
    scale, zero_point = grid_tensors()
    arguments = {"x": torch.zeros(2, 3), "scale": scale, "zero_point": zero_point, "qmin": -8, "qmax": 7, **changed}
    for function in (OPS.fake_quantize, torch_grids.fake_quantize, OPS.in_range_mask, torch_grids.in_range_mask):
        with pytest.raises(ValueError, match=message):
            function(**arguments)
