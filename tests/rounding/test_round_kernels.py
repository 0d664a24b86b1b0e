"""Rounding through the front door: better than nearest, by what the finished network sees, on every kind of layer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import detent
from detent import Preprocessing, edit
from detent.config import GptqConfig
from detent.corrections.output import Stepped, output_error
from detent.errors import CalibrationError, ConfigError
from detent.graph.placement import place
from detent.quantized import assemble
from detent.rounding import Settled, Swept, sweep
from detent.statistics import first_samples
from detent.targets import load_target
from tests.mixed_targets import write_target
from tests.models import MODELS, build


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.last = nn.Linear(6, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.depthwise(x)) + x
        x = torch.relu(self.grouped(x))
        x = torch.relu(self.up(x))
        return self.last(x.permute(0, 2, 3, 1))


@pytest.fixture(scope="module")
def data() -> Tensor:
    generator = torch.Generator().manual_seed(6)
    mixed = torch.randn(3, 3, generator=generator)  # channels that go together, as those of images do
    smooth = torch.nn.functional.avg_pool2d(torch.randn(320, 3, 10, 10, generator=generator), 3, 1)
    return torch.einsum("nchw,dc->ndhw", smooth, mixed)


@pytest.fixture(scope="module")
def graph(data: Tensor) -> detent.Graph:
    torch.manual_seed(5)
    return detent.capture(Net().eval(), data[:2])


def planned(graph: detent.Graph, data: Tensor, **options: Any) -> detent.QuantPlan:
    stats = detent.calibrate(graph, data, progress=False, channels=True)
    moments = detent.collect_moments(graph, data, progress=False)
    return detent.plan(graph, stats, moments=moments, **options)


def lost(graph: detent.Graph, plan: detent.QuantPlan, data: Tensor) -> float:
    """The error of the outputs on data that nothing was chosen by, with biases corrected by measurement."""
    corrected = detent.correct_biases(graph, plan, data[:256], progress=False)
    batch = [data[256:]]
    ours, theirs = Stepped(graph.module).outputs(batch), Stepped(assemble(graph, corrected).graph_module).outputs(batch)
    return output_error([(ours, theirs)])


KINDS: dict[str, dict[str, Any]] = {
    "symmetric": {"weights_bits": 3},
    "two_bits": {"weights_bits": 2},
    "codebook": {"weights_bits": 3, "weights_grid": "lut"},
    "codebook_per_channel": {"weights_bits": 2, "weights_grid": "lut", "codebook_scope": "channel"},
    "codebook_of_powers": {"weights_bits": 3, "weights_grid": "lut_power_of_two"},
    "uniform": {"weights_bits": 3, "weights_grid": "uniform"},
    "groups": {"weights_bits": 3, "weights_group_size": 2},
}


# Parts of what nearest rounding loses. The layers are random and their rows short, which leaves little to win where
# gains have fitted the steps of symmetric grids before.
BOUNDS = {"symmetric": 1.05, "uniform": 0.95}


@pytest.mark.parametrize("name", KINDS)
def test_less_is_lost_than_by_rounding_to_nearest(name: str, graph: detent.Graph, data: Tensor) -> None:
    nearest = planned(graph, data[:256], **KINDS[name])
    rounded = detent.round_kernels(graph, nearest, data[:256], progress=False)
    methods = [entry.codes.method for entry in rounded.weights.values() if entry.codes is not None]
    assert set(methods) == {"gptq"}
    assert len(methods) >= 4
    assert lost(graph, rounded, data) < BOUNDS.get(name, 0.9) * lost(graph, nearest, data)


def test_each_layer_was_rounded_for_the_inputs_that_the_finished_network_gives_it(
    graph: detent.Graph, data: Tensor
) -> None:
    plan = planned(graph, data[:256], weights_bits=3)
    rounded = detent.round_kernels(graph, plan, data[:256], options={"samples": 256}, progress=False)
    layers = [Swept(node=graph.find(name), central=True) for name in place(graph, load_target(rounded.target)).weights]
    seen: dict[str, float] = {}

    def watch(layer: Swept, learned: Any, judged: Any) -> Settled:
        seen[layer.node.name] = float(np.trace(learned.hessian[0]))
        return Settled()

    batches = first_samples(graph, data[:256], 256, parts=4)
    sweep(graph, assemble(graph, rounded).graph_module, layers, batches, 1, watch, seed=0)
    again: dict[str, float] = {}
    entries = {name: entry.rounded(kernel_of(graph, name)) for name, entry in rounded.weights.items()}
    quantized = assemble(graph, plan).graph_module
    former = plan.bias_corrections

    def follow(layer: Swept, learned: Any, judged: Any) -> Settled:
        name = layer.node.name
        again[name] = float(np.trace(learned.hessian[0]))
        shift = rounded.bias_corrections[name].shift - (former[name].shift if name in former else 0.0)
        return Settled(kernel=entries[name], shift=shift.astype(np.float64))

    sweep(graph, quantized, layers, batches, 1, follow, seed=0)
    # Biases of the finished network are rounded to codes, whose steps are those of kernels of three bits.
    assert again == pytest.approx(seen, rel=5e-3)


def kernel_of(graph: detent.Graph, name: str) -> np.ndarray:
    return np.ascontiguousarray(graph.tensor(graph.find(name).weight).detach().numpy())


def test_the_same_bits_on_any_number_of_threads(graph: detent.Graph, data: Tensor) -> None:
    plan = planned(graph, data[:256], weights_bits=3)
    plans = []
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        plans.append(detent.round_kernels(graph, plan, data[:256], progress=False).to_json())
    torch.set_num_threads(threads)
    assert plans[0] == plans[1]


def test_inputs_of_the_float_network(graph: detent.Graph, data: Tensor) -> None:
    plan = planned(graph, data[:256], weights_bits=3)
    rounded = detent.round_kernels(graph, plan, data[:256], options=GptqConfig(inputs="float"), progress=False)
    assert lost(graph, rounded, data) < lost(graph, plan, data)


def test_one_call_rounds_and_says_so(graph: detent.Graph, data: Tensor) -> None:
    qmodel = detent.quantize(graph, data[:256], weights_bits=3, rounding="gptq", gptq={"samples": 128}, progress=False)
    assert all(entry.codes is not None for entry in qmodel.plan.weights.values())
    assert qmodel.plan.config["gptq"] == {"samples": 128}
    again = detent.QuantPlan.from_json(qmodel.plan.to_json())
    assert torch.equal(detent.apply(graph, again)(data), qmodel(data))


def test_one_shot_iterators_serve(graph: detent.Graph, data: Tensor) -> None:
    listed = detent.quantize(graph, data[:256], weights_bits=3, rounding="gptq", progress=False)
    once = detent.quantize(graph, iter(data[:256].split(64)), weights_bits=3, rounding="gptq", progress=False)
    assert once.plan.to_json() == listed.plan.to_json()


def test_frozen_kernels_stay(graph: detent.Graph, data: Tensor) -> None:
    plan = planned(graph, data[:256], weights_bits=3)
    frozen = replace(plan, weights={**plan.weights, "first": replace(plan.weights["first"], frozen=True)})
    rounded = detent.round_kernels(graph, frozen, data[:256], progress=False)
    assert rounded.weights["first"] == frozen.weights["first"]
    assert rounded.weights["grouped"].codes is not None


def test_it_follows_mixed_precision(graph: detent.Graph, data: Tensor, tmp_path: Path) -> None:
    mixed = write_target(tmp_path)
    qmodel = detent.quantize(
        graph, data[:256], target=mixed, budget={"weights": "60%"}, rounding="gptq", progress=False
    )
    bits = {entry.grid.bits for entry in qmodel.plan.weights.values() if entry.grid is not None}
    assert len(bits) > 1
    assert any(entry.codes is not None for entry in qmodel.plan.weights.values())


def test_a_kernel_that_gains_nothing_keeps_its_rounding(data: Tensor) -> None:
    # On the grid already: nothing can be better.
    layer = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.randint(-7, 8, layer.weight.shape, generator=torch.Generator().manual_seed(1)) / 8)
        layer.weight[:, 0, 0, 0] = 7 / 8
    graph = detent.capture(nn.Sequential(layer).eval(), data[:2])
    rules = [edit.rule(edit.everything(), edit.activations(keep_float=True))]
    plan = planned(graph, data[:256], weights_bits=4, weights_metric="noclipping", rules=rules)
    rounded = detent.round_kernels(graph, plan, data[:256], progress=False)
    kernel = kernel_of(graph, "0")
    assert np.array_equal(rounded.weights["0"].rounded(kernel), plan.weights["0"].rounded(kernel))


def test_a_constant_in_the_input_is_taken_back() -> None:
    record = Preprocessing(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), dtype="uint8")
    raw = torch.randint(0, 256, (256, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3)).eval()
    graph = detent.capture(model, raw[:2], preprocessing=record)
    plan = planned(graph, raw, weights_bits=3)
    rounded = detent.round_kernels(graph, plan, raw, progress=False)
    wanted = torch.from_numpy(record.normalize(raw.numpy()))
    with torch.no_grad():
        ours, theirs = model[0](wanted), _first_output(graph, rounded, raw)
    # The bias takes up the mean of every channel.
    assert torch.allclose(ours.mean((0, 2, 3)), theirs.mean((0, 2, 3)), atol=2e-2 * float(ours.std()))


def _first_output(graph: detent.Graph, plan: detent.QuantPlan, raw: Tensor) -> Tensor:
    module = assemble(graph, plan).graph_module
    node = next(node for node in module.graph.nodes if node.target is torch.ops.aten.conv2d.default)
    (value,) = Stepped(module, [node]).walk([raw.float()], {})
    return value


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_network(name: str) -> None:
    case = MODELS[name]
    torch.manual_seed(1)
    inputs = case.inputs(64 if case.dynamic else 4)
    data = [inputs if len(inputs) > 1 else inputs[0]] * (1 if case.dynamic else 4)
    graph = detent.capture(build(name), inputs[0] if len(inputs) == 1 else inputs)
    stats = detent.calibrate(graph, data, progress=False, channels=True)
    plan = detent.plan(graph, stats, weights_bits=4)
    rounded = detent.round_kernels(graph, plan, data, progress=False)
    detent.apply(graph, rounded)
    for layer, entry in rounded.weights.items():
        if entry.grid is not None and entry.codes is None:
            assert any(layer in note for note in rounded.notes), layer


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"options": {"dampening": 0.1}}, "damping"),
    ({"options": {"damping": 0.0}}, "greater than 0"),
    ({"options": {"samples": 1}}, "greater than or equal to 2"),
    ({"options": {"exact_columns": 33}}, "less than or equal to 32"),
    ({"options": {"order": "random"}}, "random"),
    ({"options": 5}, "GptqConfig"),
    ({"options": {1: 2}}, "GptqConfig"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_wrong_options_are_refused(arguments: dict[str, Any], message: str, graph: detent.Graph, data: Tensor) -> None:
    plan = planned(graph, data[:64])
    with pytest.raises(ConfigError, match=message):
        detent.round_kernels(graph, plan, data[:64], progress=False, **arguments)


def test_wrong_data_and_plans_are_refused(graph: detent.Graph, data: Tensor) -> None:
    plan = planned(graph, data[:64])
    with pytest.raises(CalibrationError, match="cannot be split"):
        detent.round_kernels(graph, plan, data[:1], progress=False)
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        detent.round_kernels(graph, plan, torch.full_like(data[:64], float("nan")), progress=False)
    with pytest.raises(ConfigError, match="another model"):
        detent.round_kernels(graph, replace(plan, graph="0" * 64), data[:64], progress=False)
    with pytest.raises(ConfigError, match="rounding"):
        detent.quantize(graph, data[:64], rounding="gptqq", progress=False)
