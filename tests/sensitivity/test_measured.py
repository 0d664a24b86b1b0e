"""Measured scores: the change of a plain forward pass with one tensor quantized, for every tensor and width."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import fx, nn

import detent
from detent.errors import CalibrationError, ConfigError
from detent.graph.policy import place_as_asked
from detent.sensitivity import score_by_probes
from detent.sensitivity.candidates import Candidates
from detent.sensitivity.downstream import Downstream, Network
from detent.sensitivity.measured import score_by_measuring
from tests.mixed_targets import write_target
from tests.models import MODELS, build


class Setting:
    """A network with plans of three widths, and two batches of different size."""

    def __init__(self, model, inputs, folder, sizes=(5, 3), *, dynamic=True):
        target = write_target(folder)
        torch.manual_seed(3)
        data = [inputs(size) for size in (sizes if dynamic else (4, 4))]
        self.graph = detent.capture(model, inputs(4))
        stats = detent.calibrate(self.graph, data, progress=False)
        moments = detent.collect_moments(self.graph, data, progress=False)
        self.plans = [
            detent.plan(self.graph, stats, target=target, moments=moments, weights_bits=kernel, activation_bits=value)
            for kernel, value in ((8, 8), (4, 4), (2, 4))
        ]
        self.placement = place_as_asked(self.graph, detent.load_target(target))
        self.batches = [self.graph.flatten(batch) for batch in data]
        self.candidates = Candidates.of(self.graph, self.placement, self.plans)
        self.known = {}

    def measure(self, **options):
        return score_by_measuring(self.graph, self.placement, self.plans, self.batches, **options)

    def alone(self, slot, at, batch):
        """All values of a plain forward pass with one candidate in place; None for the float network."""
        key = (id(slot), at, id(batch))
        if key not in self.known:
            users = [name for name, number in self.candidates.users.items() if self.candidates.slots[number] is slot]
            self.known[key] = OneQuantized(self.graph, slot, users, at).values_of(batch)
        return self.known[key]


class OneQuantized(fx.Interpreter):
    def __init__(self, graph, slot, users, at):
        super().__init__(graph.module)
        self.names, self.slot, self.users, self.at, self.found = graph, slot, users, at, {}

    def run_node(self, n):
        name = self.names.name_of(n)
        value = self.changed(n, name) if name in self.users else super().run_node(n)
        if self.slot is not None and name in self.slot.grids and n.op != "get_attr":
            value = torch.from_numpy(self.slot.grids[name][self.at].round(value.contiguous().numpy()))
        if isinstance(value, torch.Tensor) and n.op not in ("get_attr", "output"):
            self.found[name] = value
        return value

    def changed(self, n, name):
        item, change = self.names.find(name), self.slot.changes[self.at]
        kept = self.env[item.weight]
        self.env[item.weight] = kept + change.kernel
        value = super().run_node(n)
        self.env[item.weight] = kept
        if name in change.shifts:
            shape = [1] * value.dim()
            shape[item.channel_axis] = -1
            value = value + torch.tensor(change.shifts[name]).reshape(shape)
        return value

    def values_of(self, batch):
        with torch.no_grad():
            self.run(*batch, enable_io_processing=False)
        return self.found


def relative(setting, slot, at, names):
    """Squared change of values relative to their energy over all batches; None for those that are zero."""
    lost, energy = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for batch in setting.batches:
        wanted, found = setting.alone(None, 0, batch), setting.alone(slot, at, batch)
        for name in names:
            lost[name] += float((wanted[name].double() - found[name].double()).square().sum())
            energy[name] += float(wanted[name].double().square().sum())
    return np.array([lost[name] / energy[name] for name in names])


def outputs_of(graph):
    ends = set(graph.outputs())
    return [item.name for item in graph.nodes() if item.node in ends]


NETWORKS = (
    *("conv_chain", "residual", "mobile", "perceptron", "transformer", "attention", "stored_matrix", "dict_input"),
    *("two_inputs", "reused", "in_place", "recurrent", "fixed_batch"),
)


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_are_those_of_plain_forward_passes(name, tmp_path):
    case = MODELS[name]
    setting = Setting(build(name), case.inputs, tmp_path, dynamic=case.dynamic)
    table = setting.measure(points="outputs")
    assert (table.samples, table.probes, table.method) == (8, 0, "measuring outputs")
    outputs = outputs_of(setting.graph)
    for slot, one in zip(setting.candidates.slots, table, strict=True):
        assert (one.name, one.role, one.bits, one.factors.shape) == (
            slot.name,
            slot.role,
            slot.bits,
            (len(slot.bits), 0),
        )
        want = [relative(setting, slot, at, outputs).mean() for at in range(len(slot.bits))]
        # A value at the edge between two codes may fall on either side where layouts round differently.
        np.testing.assert_allclose(one.scores, want, rtol=2e-3, atol=1e-10)


def test_corrections_of_biases_count(tmp_path):
    setting = Setting(build("conv_chain"), MODELS["conv_chain"].inputs, tmp_path)
    assert setting.plans[-1].bias_corrections
    bare = [replace(plan, bias_corrections={}) for plan in setting.plans]
    without = score_by_measuring(setting.graph, setting.placement, bare, setting.batches, points="outputs")
    with_them = setting.measure(points="outputs")
    layer = with_them.tensors[0].name
    assert with_them.find(layer, "weights").score(2) != without.find(layer, "weights").score(2)


class Points(nn.Module):
    """Operations of all the distances, two outputs."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.up = nn.ConvTranspose2d(6, 3, 2, stride=2)
        self.linear = nn.Linear(18, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        y = torch.relu(self.first(x))
        y = y + self.second(y)
        z = torch.cat([y, torch.sigmoid(y), y], dim=1).mean((2, 3))
        return self.head(torch.softmax(self.linear(z), dim=-1)), self.up(y)


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    torch.manual_seed(7)
    return Setting(Points().eval(), lambda n: (torch.randn(n, 3, 6, 6),), tmp_path_factory.mktemp("points"))


INTEREST = ("first", "second", "add", "sigmoid", "cat", "linear", "softmax")
OUTPUTS = ("head", "up")


def far(setting, slot, at, name):
    """The distance of a value by the rule of its operation, written with torch."""
    pairs = [
        (setting.alone(None, 0, b)[name].double(), setting.alone(slot, at, b)[name].double()) for b in setting.batches
    ]
    a, b = (torch.cat(side).flatten(1) for side in zip(*pairs, strict=True))
    if name in ("sigmoid", "linear", "head"):
        return float(((1 - torch.cosine_similarity(a, b, dim=1, eps=0)) / 2).mean())
    if name == "softmax":
        a, b = a.clamp(min=1e-6), b.clamp(min=1e-6)
        return float((a * (a / b).log() - a + b).sum(dim=1).mean())
    return float((a - b).square().sum() / a.square().sum())


def distances_of(setting, slot, at):
    return np.array([far(setting, slot, at, name) for name in (*INTEREST, *OUTPUTS)])


WEIGHTS = {name: float(place) for place, name in enumerate(INTEREST)}


@pytest.mark.parametrize("weighting", ["average", "last_layer", "exponential", "hessian"])
def test_points_of_interest(points, weighting):
    table = points.measure(weighting=weighting, weights=WEIGHTS if weighting == "hessian" else None)
    assert table.method == f"measuring 7 points ({weighting}) and outputs"
    for slot, one in zip(points.candidates.slots, table, strict=True):
        for at in range(len(slot.bits)):
            found = distances_of(points, slot, at)
            count = len(INTEREST)
            weights = {
                "average": np.ones(count),
                "last_layer": np.eye(count)[-1],
                "exponential": 1 - np.exp(-found[:count] / 0.1),
                "hessian": np.arange(count),
            }[weighting]
            total = weights.sum()
            want = (weights @ found[:count] / total if total else 0) + found[count:].mean()
            np.testing.assert_allclose(one.scores[at], want, rtol=2e-3, atol=1e-9)


def test_chosen_points_and_distances(points):
    slot = points.candidates.slots[0]
    table = points.measure(points=["second", "linear"], distances={"linear": "mse"})
    np.testing.assert_allclose(
        table.tensors[0].scores[-1],
        relative(points, slot, -1, ["second", "linear"]).mean() + relative(points, slot, -1, OUTPUTS).mean(),
        rtol=1e-3,
    )


def test_a_metric_takes_the_place_of_distances(points):
    def largest(a, b):
        return float((a - b).abs().max())

    table = points.measure(points=["add"], metric=largest)
    assert table.method == "measuring 1 points (average) and outputs by largest"
    slot, one = points.candidates.slots[0], table.tensors[0]
    want = 0.0
    for batch in points.batches:
        ours, theirs = points.alone(None, 0, batch), points.alone(slot, 0, batch)
        gaps = [largest(ours[name], theirs[name]) for name in ("add", *OUTPUTS)]
        want += len(batch[0]) / 8 * (gaps[0] + (gaps[1] + gaps[2]) / 2)
    assert one.scores[0] == pytest.approx(want, rel=1e-3)
    assert np.isnan(one.errors).all()


@pytest.mark.parametrize("answer", [float("nan"), -1.0, "far", None, True, torch.ones(2)])
def test_what_a_metric_returns_is_checked(points, answer):
    with pytest.raises(ConfigError, match="the metric must return a finite number from 0"):
        points.measure(metric=lambda a, b: answer)


def test_a_metric_may_return_a_scalar_tensor(points):
    assert points.measure(metric=lambda a, b: (a - b).abs().mean()).tensors[0].scores[0] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": "inputs"}, "must be names of values"),
        ({"points": ["frist"]}, "first"),
        ({"points": []}, "names no value"),
        ({"points": "outputs", "weighting": "last_layer"}, "only outputs are measured"),
        ({"points": "outputs", "distances": {}}, "are for points of interest"),
        ({"weighting": "exponental"}, "exponential"),
        ({"weighting": "hessian"}, "needs `weights`"),
        ({"weights": WEIGHTS}, 'for weighting "hessian" only'),
        ({"weighting": "hessian", "weights": {"first": 1.0}}, "has none for second"),
        ({"weighting": "hessian", "weights": {**WEIGHTS, "firts": 1.0}}, "first"),
        ({"weighting": "hessian", "weights": dict.fromkeys(WEIGHTS, 0.0)}, "not all zero"),
        ({"distances": {"linear": "cosin"}}, "cosine"),
        ({"metric": max, "distances": {}}, "takes the place"),
    ],
)
def test_options_that_do_not_fit(points, options, message):
    with pytest.raises(ConfigError, match=message):
        points.measure(**options)


def test_a_linear_network_ties_with_probes(tmp_path):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)).eval()
    setting = Setting(model, lambda n: (torch.randn(n, 6),), tmp_path)
    measured = setting.measure(points="outputs")
    probed = score_by_probes(setting.graph, setting.placement, setting.plans, setting.batches, probes=5)
    for ours, theirs in zip(measured, probed, strict=True):
        # Float rounding of outputs is all that is between them.
        np.testing.assert_allclose(ours.scores, theirs.scores, rtol=1e-4)
        np.testing.assert_allclose(ours.errors, theirs.errors, rtol=1e-3)


class Halves(nn.Module):
    """Two outputs, of the two halves of the input."""

    def __init__(self):
        super().__init__()
        self.left = nn.Linear(3, 4, bias=False)
        self.right = nn.Linear(3, 4, bias=False)

    def forward(self, x):
        return self.left(x[:, :3]), self.right(x[:, 3:])


def test_all_batches_weigh_the_outputs(tmp_path):
    torch.manual_seed(1)
    setting = Setting(Halves().eval(), lambda n: (torch.randn(n, 6),), tmp_path)
    setting.batches[0][0][:, 3:] *= 1e-3  # what the first batch alone would weigh by

    def scores(batches, **options):
        plans = (setting.graph, setting.placement, setting.plans, batches)
        table = score_by_probes(*plans, probes=8) if options else score_by_measuring(*plans, points="outputs")
        return np.concatenate([one.scores for one in table])

    forth, back = setting.batches, setting.batches[::-1]
    np.testing.assert_allclose(scores(forth), scores(back), rtol=1e-6)
    np.testing.assert_allclose(scores(forth, probes=True), scores(back, probes=True), rtol=1e-3)
    np.testing.assert_allclose(scores(forth, probes=True), scores(forth), rtol=1e-3)


class Constants(nn.Module):
    """Adds an embedding of positions, whose kernel no sample reaches."""

    def __init__(self):
        super().__init__()
        self.positions, self.linear, self.head = nn.Embedding(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(torch.relu(self.linear(x + self.positions(torch.arange(5)))))


def test_kernels_on_constants(tmp_path):
    torch.manual_seed(2)
    setting = Setting(Constants().eval(), lambda n: (torch.randn(n, 5, 6),), tmp_path)
    table = setting.measure(points="outputs")
    roles = {one.role for one in table if one.name == "positions"}
    assert roles == {"weights", "activations"}
    for slot, one in zip(setting.candidates.slots, table, strict=True):
        want = [relative(setting, slot, at, outputs_of(setting.graph))[0] for at in range(len(slot.bits))]
        np.testing.assert_allclose(one.scores, want, rtol=2e-3)


class Positions(nn.Module):
    """Takes an entry of every sample by the sample's place in the batch."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        y = self.linear(x)
        return self.head(y[torch.arange(x.shape[0]), x[..., 0].argmax(-1)])


class Accumulated(nn.Module):
    """Adds samples up."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x):
        return self.linear(x).cumsum(0)


@pytest.mark.parametrize(
    ("model", "shape"), [(Positions, (5, 6)), (Accumulated, (6,))], ids=["positions", "accumulated"]
)
def test_copies_of_a_batch_are_tried(model, shape, tmp_path):
    torch.manual_seed(2)
    setting = Setting(model().eval(), lambda n: (torch.randn(n, *shape),), tmp_path)
    table = setting.measure(points="outputs")
    for slot, one in zip(setting.candidates.slots, table, strict=True):
        want = [relative(setting, slot, at, outputs_of(setting.graph))[0] for at in range(len(slot.bits))]
        np.testing.assert_allclose(one.scores, want, rtol=1e-4)


def test_only_what_lies_behind_is_computed(points):
    outputs = [points.graph.find(name).node for name in OUTPUTS]
    network = Network(points.graph, outputs)
    slot = next(one for one in points.candidates.slots if one.name == "linear" and one.role == "weights")
    part = Downstream.of(network, slot, [points.graph.find("linear")], (0, 1, 2))
    assert [source.name for source in part.sources] == [points.graph.find("linear").data[0].name]
    assert part.places == (0,)


def test_the_same_bits_on_any_number_of_threads(points):
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(np.concatenate([one.scores for one in points.measure()]))
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(found[0], other) for other in found[1:])


def test_it_tells_how_many_batches_are_done(points):
    told = []
    points.measure(points="outputs", show=told.append)
    assert told == [1, 2]


def test_a_value_that_is_not_finite_is_named(points):
    broken = [[batch[0].clone()] for batch in points.batches]
    broken[0][0][1, 0, 0, 0] = torch.inf
    with pytest.raises(CalibrationError, match="where: first"):
        score_by_measuring(points.graph, points.placement, points.plans, broken)


class Logarithm(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return torch.log(torch.relu(self.linear(x)))


def test_a_candidate_that_makes_infinity_is_named(tmp_path):
    model = Logarithm().eval()
    with torch.no_grad():
        model.linear.weight.copy_(torch.eye(4))
        model.linear.bias.fill_(1e-3)
    setting = Setting(model, lambda n: (torch.rand(n, 4) + torch.tensor([0.0, 0.0, 0.0, 9.0]),), tmp_path)
    with pytest.raises(CalibrationError, match="make NaN or infinity of this value\n  where: log"):
        setting.measure(points="outputs")


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x) + torch.randn_like(x)


def test_a_network_that_draws_is_refused(tmp_path):
    setting = Setting(Noisy().eval(), lambda n: (torch.randn(n, 4),), tmp_path)
    with pytest.raises(ConfigError, match="draws random numbers"):
        setting.measure(points="outputs")
