"""Norms written out as arithmetic are recognized in every form, and nothing else is taken for one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from detent.graph import Graph, capture
from detent.transforms import fold_batch_norm, fold_forward, restore_norms
from detent.transforms.edits import FOLDED_NORM

IMAGE = (2, 4, 7, 7)
Form = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class WrittenOut(nn.Module):
    """A layer and a norm by hand."""

    def __init__(self, layer: nn.Module, form: Form, *shape: int) -> None:
        super().__init__()
        self.layer, self.form, self.shape = layer, form, shape
        self.mean, self.beta = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))
        self.var, self.gamma = nn.Parameter(torch.rand(4) + 0.1), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        mean, var, gamma, beta = (t.reshape(self.shape) for t in (self.mean, self.var, self.gamma, self.beta))
        return self.form(self.layer(x), mean, var, gamma, beta).relu()


def _plain(x: Tensor, mean: Tensor, var: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return (x - mean) / torch.sqrt(var + 1e-3) * gamma + beta


def _keras(x: Tensor, mean: Tensor, var: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    gain = torch.rsqrt(var + 1e-3) * gamma
    return x * gain + (beta - mean * gain)


def _backwards(x: Tensor, mean: Tensor, var: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return beta - gamma * (mean - x) * torch.rsqrt(var + 1e-3) * 2


def _weighted(x: Tensor, mean: Tensor, var: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return torch.add(torch.rsub(x, mean, alpha=3), beta, alpha=0.5).sub(beta, alpha=2)


FORMS: dict[str, Form] = {
    "plain": _plain,
    "keras": _keras,
    "backwards": _backwards,
    "weighted": _weighted,
    "gain": lambda x, mean, var, gamma, beta: gamma * x,
    "shift": lambda x, mean, var, gamma, beta: x - mean,
    "number": lambda x, mean, var, gamma, beta: 1 - x / 3,
}
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    "conv": (lambda: nn.Conv2d(4, 4, 3, padding=1), (1, 4, 1, 1), IMAGE),
    "conv_short_shape": (lambda: nn.Conv2d(4, 4, 3, bias=False), (4, 1, 1), IMAGE),
    "transposed": (lambda: nn.ConvTranspose2d(4, 4, 3, stride=2), (4, 1, 1), IMAGE),
    "linear": (lambda: nn.Linear(6, 4), (4,), (2, 6)),
    "sequence": (lambda: nn.Linear(6, 4, bias=False), (4,), (2, 5, 6)),
}


def _differs(model: nn.Module, graph: Graph, shape: tuple[int, ...]) -> bool:
    x = torch.randn(5, *shape[1:])
    with torch.no_grad():
        wanted, got = model(x), graph(x)
    return bool((got - wanted).abs().max() > 1e-5 * wanted.abs().max())


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_folds_into_the_layer_before(layer: str, form: str) -> None:
    torch.manual_seed(0)
    build, constant, shape = LAYERS[layer]
    model = WrittenOut(build(), FORMS[form], *constant).eval()
    graph = capture(model, torch.randn(shape))
    fingerprint = graph.fingerprint()
    restored = restore_norms(graph)
    assert not _differs(model, restored, shape)
    folded = fold_batch_norm(restored)
    assert not _differs(model, folded, shape)
    assert [node.name for node in folded.nodes()] == ["x", "layer", "relu"]
    assert sorted(folded.module.state_dict()) in (["layer.bias", "layer.weight"], ["layer.weight"])
    assert FOLDED_NORM not in folded.find("layer").node.meta
    assert graph.fingerprint() == fingerprint
    assert torch.equal(model.mean, graph.module.state_dict().get("mean", model.mean))


def test_a_norm_without_a_layer_before_is_one_norm_and_folds_forward() -> None:
    torch.manual_seed(0)

    class First(WrittenOut):
        def forward(self, x: Tensor) -> Tensor:
            return self.layer(super().forward(x) if self.shape == () else _plain(x, *self._parts()))

        def _parts(self) -> list[Tensor]:
            return [t.reshape(4, 1, 1) for t in (self.mean, self.var, self.gamma, self.beta)]

    model = First(nn.Conv2d(4, 4, 1), _plain, 4, 1, 1).eval()
    restored = restore_norms(capture(model, torch.randn(IMAGE)))
    assert [node.op.name for node in restored.nodes() if node.op] == ["input", "batch_norm", "conv2d"]
    assert not _differs(model, restored, IMAGE)
    folded = fold_forward(restored)
    assert [node.op.name for node in folded.nodes() if node.op] == ["input", "conv2d"]
    assert not _differs(model, folded, IMAGE)


def test_a_norm_after_a_folded_norm_updates_what_is_known_of_the_output() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).eval()
    nn.init.normal_(model[1].weight)
    nn.init.normal_(model[1].bias)
    whole = WrittenOut(model, lambda x, mean, var, gamma, beta: x * gamma - mean, 4, 1, 1)
    folded = fold_batch_norm(restore_norms(capture(whole, torch.randn(IMAGE))))
    mean, std = folded.find("layer.0").node.meta[FOLDED_NORM]
    gamma = whole.gamma.double()
    assert torch.allclose(mean, model[1].bias.double() * gamma - whole.mean.double())
    assert torch.allclose(std, (model[1].weight.double() * gamma).abs())


class ReusedPair(WrittenOut):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(super().forward(x))


def test_a_reused_pair_stays_shared() -> None:
    model = ReusedPair(nn.Conv2d(4, 4, 3), _plain, 4, 1, 1).eval()
    folded = fold_batch_norm(restore_norms(capture(model, torch.randn(IMAGE))))
    assert folded.find("layer").weight_name == folded.find("layer:1").weight_name == "layer.weight"
    assert not _differs(model, folded, IMAGE)


class TwoReaders(WrittenOut):
    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y * (y + 3)


class Tied(WrittenOut):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x) * self.gamma)


class Reciprocal(WrittenOut):
    def forward(self, x: Tensor) -> Tensor:
        return self.gamma.reshape(4, 1, 1) / self.layer(x)


class Rounded(WrittenOut):
    def forward(self, x: Tensor) -> Tensor:
        return torch.div(self.layer(x), 2, rounding_mode="floor")


class Wider(WrittenOut):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[:, :1] * self.gamma.reshape(4, 1, 1)


class Zero(WrittenOut):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) / 0.0


KEPT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str | None]] = {
    "single_without_layer": (lambda: WrittenOut(nn.ReLU(), FORMS["gain"], 4, 1, 1), IMAGE, None),
    "all_alike_without_layer": (lambda: WrittenOut(nn.ReLU(), FORMS["number"], 4, 1, 1), IMAGE, None),
    "two_readers": (lambda: TwoReaders(nn.Conv2d(4, 4, 1), _plain, 4), IMAGE, None),
    "tied": (lambda: Tied(nn.Linear(4, 4), _plain, 4), (2, 5, 4), "also used elsewhere"),
    "reciprocal": (lambda: Reciprocal(nn.Conv2d(4, 4, 1), _plain, 4), IMAGE, None),
    "rounded": (lambda: Rounded(nn.Conv2d(4, 4, 1), _plain, 4), IMAGE, None),
    "wider": (lambda: Wider(nn.Conv2d(4, 4, 1), _plain, 4), IMAGE, None),
    "infinite": (lambda: Zero(nn.Conv2d(4, 4, 1), _plain, 4), IMAGE, "not be finite"),
}


@pytest.mark.parametrize("name", KEPT)
def test_other_arithmetic_stays(name: str) -> None:
    build, shape, reason = KEPT[name]
    graph = capture(build().eval(), torch.randn(shape))
    restored = restore_norms(graph)
    assert restored.fingerprint() == graph.fingerprint()
    new = restored.notes[len(graph.notes) :]
    assert new == [] if reason is None else any(reason in note for note in new)
