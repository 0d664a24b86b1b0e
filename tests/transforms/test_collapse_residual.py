"""A shortcut becomes part of a kernel exactly where one of its entries meets the output's own position."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from detent.graph import capture
from detent.transforms import collapse_residual, fold_batch_norm
from detent.transforms.edits import FOLDED_NORM

IMAGE = (2, 4, 9, 9)


class Shortcut(nn.Module):
    """`layer(x) + x`, or `x + layer(x)`."""

    def __init__(self, layer: nn.Module, reverse: bool = False) -> None:
        super().__init__()
        self.layer, self.reverse = layer, reverse

    def forward(self, x: Tensor) -> Tensor:
        x = x.abs()
        return x + self.layer(x) if self.reverse else self.layer(x) + x


COLLAPSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (lambda: nn.Conv2d(4, 4, 3, padding=1), IMAGE),
    "no_bias": (lambda: nn.Conv2d(4, 4, 3, padding=1, bias=False), IMAGE),
    "pointwise": (lambda: nn.Conv2d(4, 4, 1), IMAGE),
    "dilated": (lambda: nn.Conv2d(4, 4, 3, padding=2, dilation=2), IMAGE),
    "uneven": (lambda: nn.Conv2d(4, 4, (5, 3), padding=(2, 3), dilation=(1, 3)), IMAGE),
    "same": (lambda: nn.Conv2d(4, 4, 5, padding="same", dilation=2), IMAGE),
    "same_even": (lambda: nn.Conv2d(4, 4, (2, 4), padding="same"), IMAGE),
    "grouped": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2), IMAGE),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), IMAGE),
    "conv1d": (lambda: nn.Conv1d(4, 4, 3, padding=1), (2, 4, 9)),
    "conv3d": (lambda: nn.Conv3d(4, 4, 3, padding=1, groups=2), (2, 4, 3, 3, 3)),
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", COLLAPSED)
def test_the_shortcut_becomes_part_of_the_kernel(name: str, reverse: bool) -> None:
    torch.manual_seed(0)
    build, shape = COLLAPSED[name]
    model = Shortcut(build(), reverse).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    graph = capture(model, torch.randn(shape))
    collapsed = collapse_residual(graph)
    assert [node.name for node in collapsed.nodes()] == ["x", "abs", "layer"]
    assert sorted(collapsed.module.state_dict()) == sorted(before)
    x = torch.randn(5, *shape[1:])
    with torch.no_grad():
        wanted, got = model(x), collapsed(x)
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert torch.equal(graph(x), wanted)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_exact_weights() -> None:
    layer = nn.Conv1d(4, 4, 3, padding=1, groups=2)
    layer.weight.data = torch.arange(24.0).reshape(4, 2, 3)
    collapsed = collapse_residual(capture(Shortcut(layer), torch.randn(2, 4, 5)))
    added = collapsed.module.state_dict()["layer.weight"] - layer.weight.data
    one, none = [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]
    assert added.tolist() == [[one, none], [none, one], [one, none], [none, one]]


def test_what_the_norm_made_of_the_output_no_longer_holds() -> None:
    layer = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
    folded = fold_batch_norm(capture(Shortcut(layer).eval(), torch.randn(IMAGE)))
    assert FOLDED_NORM in folded.find("layer.0").node.meta
    assert FOLDED_NORM not in collapse_residual(folded).find("layer.0").node.meta
    assert FOLDED_NORM in folded.find("layer.0").node.meta


class Weighted(Shortcut):
    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.layer(x), x, alpha=2)


class TwoReaders(Shortcut):
    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return (y + x) * y


class Reused(Shortcut):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.abs()) + (self.layer(x) + x)


class AnotherInput(Shortcut):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.relu()) + x


def _conv(*args: object, **options: object) -> Callable[[], nn.Module]:
    return lambda: Shortcut(nn.Conv2d(*args, **options))  # type: ignore[arg-type]


KEPT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str | None]] = {
    "broadcast": (_conv(4, 1, 1), IMAGE, "changes the shape"),
    "stride": (_conv(4, 4, 1, stride=2), (2, 4, 1, 1), "stride"),
    "smaller": (_conv(4, 4, 3), (2, 4, 3, 3), "changes the shape"),
    "no_centre": (_conv(4, 4, (2, 3), padding="same", dilation=(2, 1)), IMAGE, "no entry"),
    "weighted": (lambda: Weighted(nn.Conv2d(4, 4, 1)), IMAGE, "weighted"),
    "two_readers": (lambda: TwoReaders(nn.Conv2d(4, 4, 1)), IMAGE, "also used elsewhere"),
    "reused": (lambda: Reused(nn.Conv2d(4, 4, 1)), IMAGE, "kernel of layer:1 is also used"),
    "another_input": (lambda: AnotherInput(nn.Conv2d(4, 4, 1)), IMAGE, None),
    "transposed": (lambda: Shortcut(nn.ConvTranspose2d(4, 4, 1)), IMAGE, None),
    "norm_between": (lambda: Shortcut(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))), IMAGE, None),
}


@pytest.mark.parametrize("name", KEPT)
def test_other_sums_stay(name: str) -> None:
    build, shape, reason = KEPT[name]
    model = build().eval()
    graph = capture(model, torch.randn(shape))
    collapsed = collapse_residual(graph)
    assert collapsed.fingerprint() == graph.fingerprint()
    new = collapsed.notes[len(graph.notes) :]
    assert new == [] if reason is None else any(reason in note for note in new)


def test_what_is_not_finite_is_not_collapsed() -> None:
    model = Shortcut(nn.Conv2d(4, 4, 1))
    graph = capture(model, torch.randn(IMAGE))
    model.layer.weight.data.fill_(float("inf"))
    collapsed = collapse_residual(graph)
    assert collapsed.fingerprint() == graph.fingerprint()
    assert any("not be finite" in note for note in collapsed.notes)
