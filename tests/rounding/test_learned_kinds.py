"""Learned rounding of every kind of network, layer and grid, and what it leaves as it is."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import detent
from detent.errors import CalibrationError, ConfigError
from detent.rounding.learned import _Part
from tests.models import MODELS, build
from tests.rounding.networks import captured, images, learned, lost, plan_of, planned


class Layers(nn.Module):
    """Every kind of layer whose rounding is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2, groups=2)
        self.linear = nn.Linear(6, 6, bias=False)
        self.narrow = nn.Conv1d(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.relu(self.depthwise(x)) + x
        x = F.relu(self.up(F.relu(self.grouped(x))))
        return self.narrow(F.gelu(self.linear(x.flatten(2).transpose(1, 2))).transpose(1, 2))


class Ends(nn.Module):
    """Two inputs, the second one read late and returned; outputs on the way, of whole numbers and constant ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(12, 3)
        self.register_buffer("centres", torch.arange(3.0))

    def forward(self, x: Tensor, late: Tensor) -> dict[str, Tensor]:
        early = F.relu(self.first(x))
        y = self.third(torch.cat([F.relu(self.second(early)), late], dim=1))
        return {"early": early, "last": y, "class": y.argmax(1), "late": late, "centres": 2 * self.centres}


class Tokens(nn.Module):
    """Whole numbers that are read again behind a cut; only whole numbers come out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.first, self.second = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.relu(self.first(self.embedding(tokens)))
        return (self.second(x) * (tokens > 2).unsqueeze(-1)).argmax(-1)


class Classifier(nn.Module):
    """A view of channels-last values, and dropout that is switched off."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(F.relu(self.conv(x)).view(x.shape[0], -1), 0.5, self.training))


GRIDS: dict[str, dict[str, Any]] = {
    "symmetric": {},
    "groups": {"weights_group_size": 2},
    "codebook": {"weights_grid": "lut"},
    "codebook_per_channel": {"weights_grid": "lut", "codebook_scope": "channel"},
    "codebook_of_powers": {"weights_grid": "lut_power_of_two"},
    "uniform": {"weights_grid": "uniform"},
    "powers_of_two": {"weights_grid": "power_of_two"},
}
WAYS: dict[str, dict[str, Any]] = {
    "soft": {"kernel_step_rate": 0.01},
    "straight_through": {"method": "straight_through", "granularity": "layers", "kernel_step_rate": 0.01},
}


@pytest.fixture(scope="module")
def layers() -> detent.Graph:
    torch.manual_seed(5)
    return detent.capture(Layers().eval(), images()[:2])


@pytest.mark.parametrize(
    ("kind", "way"),
    [*((kind, "soft") for kind in GRIDS), ("groups", "straight_through"), ("codebook_per_channel", "straight_through")],
)
def test_every_kind_of_grid_and_layer(kind: str, way: str, layers: detent.Graph) -> None:
    data = images()[:48]
    plan = planned(layers, data, weights_bits=3, **GRIDS[kind])
    found = detent.learn_rounding(layers, plan, data, options={"steps": 8, **WAYS[way]}, progress=False)
    if kind != "powers_of_two":
        assert {entry.codes.method for entry in found.weights.values() if entry.codes} == {"learned"}
        assert lost(layers, found, data[32:]) < lost(layers, plan, data[32:])
    assert lost(layers, found, data[32:]) <= lost(layers, plan, data[32:])
    again = detent.QuantPlan.from_json(found.to_json())
    assert torch.equal(detent.apply(layers, again)(data[:3]), detent.apply(layers, found)(data[:3]))
    for name, entry in found.weights.items():
        assert entry.grid is not None
        assert (entry.grid.kind, entry.grid.bits) == (plan.weights[name].grid.kind, 3)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_network(name: str) -> None:
    case = MODELS[name]
    torch.manual_seed(1)
    inputs = case.inputs(24 if case.dynamic else 4)
    data = [inputs if len(inputs) > 1 else inputs[0]] * (1 if case.dynamic else 6)
    graph = detent.capture(build(name), inputs[0] if len(inputs) == 1 else inputs)
    plan = planned(graph, data, weights_bits=4)
    options = {"steps": 3, "granularity": "layers", "attention": "samples", "activations": "gradual"}
    found = detent.learn_rounding(graph, plan, data, options=options, progress=False)
    detent.apply(graph, found)
    for layer, entry in found.weights.items():
        if entry == plan.weights[layer] and entry.grid is not None:
            kept = [note for note in found.notes if "former rounding" in note or "was left out" in note]
            assert kept or any(layer in note for note in found.notes), layer


OTHERS: dict[str, tuple[type[nn.Module], tuple[Any, ...]]] = {
    "ends": (Ends, (torch.Size((6,)), torch.Size((4,)))),
    "tokens": (Tokens, (5,)),
    "classifier": (Classifier, (torch.Size((3, 8, 8)),)),
}


@pytest.mark.parametrize(
    "options",
    [
        {"granularity": "network", "activations": "gradual"},
        {"granularity": "layers", "activations": "gradual"},
        {"granularity": "blocks", "attention": "samples", "network_steps": 4},
        {"granularity": "layers", "attention": "samples"},
    ],
)
@pytest.mark.parametrize("name", OTHERS)
def test_inputs_and_outputs_of_all_kinds(name: str, options: dict[str, Any]) -> None:
    make, shapes = OTHERS[name]
    torch.manual_seed(2)
    inputs = tuple(
        torch.randint(0, 9, (32, shape)) if isinstance(shape, int) else torch.randn(32, *shape) for shape in shapes
    )
    graph = detent.capture(make().eval(), inputs if len(inputs) > 1 else inputs[0])
    data = [inputs if len(inputs) > 1 else inputs[0]]
    plan = planned(graph, data, weights_bits=2)
    given = {"steps": 6, **options}
    found = detent.learn_rounding(graph, plan, data, options=given, progress=False)
    assert not any("nan" in note for note in found.notes)
    detent.apply(graph, found)


def test_frozen_kernels_and_those_of_several_layers_stay() -> None:
    plan = plan_of()
    held = replace(plan, weights={**plan.weights, "left": replace(plan.weights["left"], frozen=True)})
    found = learned(held, steps=6)
    assert found.weights["left"] == held.weights["left"]
    assert found.weights["right"].codes is not None
    graph = detent.capture(build("reused"), torch.zeros(2, 4, 8, 8))
    data = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    shared = planned(graph, data)
    found = detent.learn_rounding(graph, shared, data, progress=False)
    assert found.weights == shared.weights
    assert any("conv is not learned: several layers share it" in note for note in found.notes)


def test_kernels_in_float_stay() -> None:
    rule = detent.edit.rule(detent.edit.name("left"), detent.edit.weights(keep_float=True))
    plan = plan_of(rules=(rule,))
    found = learned(plan, steps=6)
    assert found.weights["left"] == plan.weights["left"]
    assert found.weights["stem"].codes is not None


def test_what_gains_nothing_keeps_its_rounding_and_is_named() -> None:
    plan = plan_of(weights_bits=8)
    found = learned(plan, steps=1, bias_rate=0, step_rate=0)
    assert found.weights == plan.weights
    assert found.activations == plan.activations
    assert found.bias_corrections == plan.bias_corrections
    named = [note for note in found.notes if "no better on held-out samples" in note or "no closer to float" in note]
    assert named


def test_blocks_that_gain_nothing_are_named_when_others_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = _Part.gradients

    def of(part: _Part, given: Any, *rest: Any) -> Any:
        if "left" in given.kernels:
            return 1.0, [torch.zeros_like(tensor) for tensor in given.tensors()]
        return gradients(part, given, *rest)

    monkeypatch.setattr(_Part, "gradients", of)
    found = learned(steps=10, regularization=0)
    wanted = "learning made left .. right no better on held-out samples, which keep their former rounding"
    assert wanted in found.notes
    assert_kept(found, ("left", "right"))


def assert_kept(found: detent.QuantPlan, layers: tuple[str, ...]) -> None:
    """Some layers have the codes of before, and the first one has not."""
    for name in ("stem", *layers):
        kernel = captured().module.get_parameter(f"{name}.weight").detach().numpy()
        former, now = (plan.weights[name].codes_of(kernel) for plan in (plan_of(), found))
        assert np.array_equal(now, former) == (name in layers)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_keeps_the_former_rounding(loss: float, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = _Part.gradients

    def of(part: _Part, given: Any, *rest: Any) -> Any:
        found = gradients(part, given, *rest)
        return (loss, found[1]) if "left" in given.kernels else found

    monkeypatch.setattr(_Part, "gradients", of)
    found = learned(steps=10)
    assert "the loss was not finite while left .. right learned, which keep their former rounding" in found.notes
    assert_kept(found, ("left", "right"))


def test_too_few_numbers_are_told() -> None:
    found = learned(data=images()[:16], steps=2)
    assert "head: 30 weights learned from 40 numbers" not in " ".join(found.notes)
    found = learned(data=images()[:8], steps=2)
    assert "head: 30 weights learned from 20 numbers, fewer than there are weights" in found.notes


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"options": {"stepz": 3}}, "steps"),
    ({"options": {"steps": -1}}, "greater than or equal to 0"),
    ({"options": {"samples": 7}}, "greater than or equal to 8"),
    ({"options": {"rate": 0.0}}, "greater than 0"),
    ({"options": {"warm_up": 1.0}}, "less than 1"),
    ({"options": {"method": "hard"}}, "hard"),
    ({"options": {"granularity": "block"}}, "block"),
    ({"options": 5}, "LearnedConfig"),
    ({"options": {1: 2}}, "LearnedConfig"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_wrong_options_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        detent.learn_rounding(captured(), plan_of(), images(), progress=False, **arguments)


@pytest.mark.parametrize("place", [0, 31])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_data_that_are_not_finite_are_refused(wrong: float, place: int) -> None:
    data = images()[:32].clone()
    data[place, 0, 2, 2] = wrong
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        learned(data=data, steps=1)


def test_wrong_data_and_plans_are_refused() -> None:
    with pytest.raises(CalibrationError, match="7 samples cannot be split") as error:
        learned(data=images()[:7])
    assert "8 samples" in str(error.value)
    with pytest.raises(CalibrationError):
        learned(data=torch.zeros(16, 2, 8, 8))
    with pytest.raises(ConfigError, match="another model"):
        learned(replace(plan_of(), graph="0" * 64))
    with pytest.raises(ConfigError, match="rounding"):
        detent.quantize(captured(), images(), rounding="learnt", progress=False)
    with pytest.raises(ConfigError, match="steps"):
        detent.quantize(captured(), images(), rounding="learned", learned={"stepz": 1}, progress=False)


def test_one_batch_of_a_fixed_size_is_not_enough() -> None:
    graph = detent.capture(nn.Sequential(nn.Linear(6, 4)).eval(), torch.randn(16, 6), dynamic_batch=False)
    data = [torch.randn(16, 6, generator=torch.Generator().manual_seed(0))]
    plan = planned(graph, data)
    with pytest.raises(CalibrationError, match="16 samples cannot be split") as error:
        detent.learn_rounding(graph, plan, data, progress=False)
    assert "give 32 samples" in str(error.value)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.dropout(self.first(x), 0.5, training=True))


def test_networks_that_draw_random_numbers_are_refused() -> None:
    torch.manual_seed(0)
    data = torch.randn(16, 6)
    graph = detent.capture(Noisy().eval(), data[:2])
    with pytest.raises(ConfigError, match="random numbers") as error:
        detent.learn_rounding(graph, planned(graph, data), data, progress=False)
    assert "evaluation mode" in str(error.value)
