"""Sequential bias correction: means are those of float, what does not help is left out, data come in any form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import detent
from detent.corrections import correct_sequentially, output_error
from detent.corrections.output import Stepped
from detent.corrections.sequential import _helps, _mean_difference, _Seen
from detent.errors import CalibrationError, ConfigError
from detent.graph.clamps import limits_behind
from detent.kernels.comparison import differences, distances

OPTIONS = {"target": "imx500", "weights_bits": 2, "progress": False}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.middle = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.last = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = torch.relu(self.middle(x)) + x
        return self.last(x.mean((2, 3)))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(5)
    return Net().eval()


@pytest.fixture(scope="module")
def data():
    return torch.randn(256, 3, 8, 8, generator=torch.Generator().manual_seed(6)) + 0.5


def error(model, qmodel, data):
    with torch.no_grad():
        return float((model(data) - qmodel(data)).square().mean())


def test_it_brings_outputs_closer_to_float(model, data):
    plain = detent.quantize(model, data, bias_correction="none", **OPTIONS)
    sequential = detent.quantize(model, data, bias_correction="sequential", **OPTIONS)
    assert error(model, sequential, data) < 0.7 * error(model, plain, data)
    assert set(sequential.plan.bias_corrections) <= set(sequential.plan.weights)


def test_means_behind_corrected_predecessors(model, data):
    graph = detent.capture(model, data[:2])
    stats = detent.calibrate(graph, data, progress=False)
    plan = detent.plan(graph, stats, target="onnxruntime")
    corrected = detent.correct_biases(graph, plan, data, samples=256)
    qmodel = detent.apply(graph, corrected)
    with torch.no_grad():
        difference = (model(data[:192]) - qmodel(data[:192])).mean(dim=0)
    # The output is rounded to its own grid after the bias.
    assert difference.abs().max() < 0.6 * float(plan.activation_grid("last").scale[0])


def test_the_same_bits_again(model, data):
    first = detent.quantize(model, data, bias_correction="sequential", **OPTIONS).plan.to_json()
    assert detent.quantize(model, data, bias_correction="sequential", **OPTIONS).plan.to_json() == first


@pytest.mark.parametrize("form", ["array", "list", "generator", "callable"])
def test_data_of_any_form(model, data, form):
    want = detent.quantize(model, data, bias_correction="sequential", **OPTIONS).plan
    given = {
        "array": data.numpy(),
        "list": list(data.split(50)),
        "generator": (batch for batch in data.split(37)),
        "callable": lambda: iter(data.split(64)),
    }[form]
    got = detent.quantize(model, given, bias_correction="sequential", bias_correction_samples=256, **OPTIONS).plan
    assert got.bias_corrections == want.bias_corrections


def test_what_does_not_help_the_network_is_left_out_and_noted(model, data, monkeypatch):
    graph = detent.capture(model, data[:2])
    stats = detent.calibrate(graph, data, progress=False)
    plan = detent.plan(graph, stats, target="imx500", weights_bits=2, bias_correction="analytic")
    errors = []

    def worse_after(*args):
        errors.append(output_error(*args))
        return errors[-1] if len(errors) == 1 else errors[0]  # no better than without

    monkeypatch.setattr("detent.correcting.output_error", worse_after)
    corrected = detent.correct_biases(graph, plan, data)
    assert errors[1] < errors[0]
    assert any("no closer to float" in note for note in corrected.notes)
    assert corrected.bias_corrections == plan.bias_corrections


def test_the_error_of_the_outputs_is_relative_to_their_energy(model, data):
    graph = detent.capture(model, data[:2])
    plan = detent.plan(graph, detent.calibrate(graph, data, progress=False), target="imx500", weights_bits=2)
    with torch.no_grad():
        wanted, found = model(data).double(), detent.apply(graph, plan)(data).double()
    expected = float((wanted - found).square().sum() / wanted.square().sum())
    module, batches = detent.apply(graph, plan).graph_module, [[part] for part in data.split(64)]
    ours, theirs = (list(map(Stepped(one).outputs, batches)) for one in (graph.module, module))
    assert output_error(zip(ours, theirs, strict=True)) == pytest.approx(expected, rel=1e-3)
    assert output_error(zip(ours, ours, strict=True)) == 0


def test_the_outputs_of_all_three_networks_come_with_the_walk(model, data):
    graph = detent.capture(model, data[:2])
    plan = detent.plan(graph, detent.calibrate(graph, data, progress=False), target="imx500", weights_bits=4)
    batches, module = [[part] for part in data.split(64)], detent.apply(graph, plan).graph_module
    found = correct_sequentially(graph, module, list(plan.weights), batches, 1)
    ((wanted, before, after),) = found.outputs
    assert list(wanted) == list(before) == list(after) == [0]
    torch.testing.assert_close(wanted[0], Stepped(graph.module).outputs(batches[-1])[0])
    torch.testing.assert_close(before[0], Stepped(module).outputs(batches[-1])[0])
    # The biases of the plan are whole steps of the accumulator, which is all that differs: a few outputs are rounded
    # to the code beside.
    added = {name: one.added_to(plan.bias_corrections.get(name)) for name, one in found.corrections.items()}
    corrected = detent.apply(graph, replace(plan, bias_corrections={**plan.bias_corrections, **added})).graph_module
    close = Stepped(corrected).outputs(batches[-1])[0]
    step = float(plan.activation_grid("last").scale[0])
    assert float(((after[0] - close).abs() > 0.5 * step).float().mean()) < 0.1
    assert float((after[0] - close).abs().max()) < 1.5 * step


def test_a_layer_that_does_not_gain_is_left_out_and_named(model, data, monkeypatch):
    graph = detent.capture(model, data[:2])
    stats = detent.calibrate(graph, data, progress=False)
    plan = detent.plan(graph, stats, target="imx500", weights_bits=2, bias_correction="none")
    judged = []

    def refuse_second(distances):
        judged.append(_helps(distances))
        return judged[-1] and len(judged) != 2

    monkeypatch.setattr("detent.corrections.sequential._helps", refuse_second)
    corrected = detent.correct_biases(graph, plan, data)
    assert [layer for layer in plan.weights if layer not in corrected.bias_corrections] == ["middle"]
    assert any(note.startswith("bias correction made middle no better") for note in corrected.notes)


def test_it_adds_to_the_corrections_that_are_there(model, data):
    # No ReLU hides elements of the first layer, which has no predecessors either: what is measured in all is the same,
    # in one step or in two.
    torch.manual_seed(5)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1), nn.Flatten()).eval()
    graph = detent.capture(layers, data[:2])
    stats = detent.calibrate(graph, data, progress=False)
    plan = detent.plan(graph, stats, target="imx500", weights_bits=2, bias_correction="analytic")
    batches, shifts = [[part] for part in data.split(64)], []
    half = replace(plan.bias_corrections["0"], shift=plan.bias_corrections["0"].shift / 2)
    for start in (replace(plan, bias_corrections={"0": half}), replace(plan, bias_corrections={})):
        found = correct_sequentially(graph, detent.apply(graph, start).graph_module, list(plan.weights), batches, 1)
        shifts.append(found.corrections["0"].added_to(start.bias_corrections.get("0")).shift)
    # Biases lie on the accumulator's steps, so the two differ by up to one.
    step = float((plan.activation_grid("input").scale * plan.weights["0"].grid.scale).max())
    assert np.abs(shifts[1]).max() > 4 * step
    np.testing.assert_allclose(shifts[0], shifts[1], atol=step)
    corrected = detent.correct_biases(graph := detent.capture(model, data[:2]), plan_of(graph, data), data)
    assert {one.method for one in corrected.bias_corrections.values()} == {"sequential"}


def plan_of(graph, data):
    stats = detent.calibrate(graph, data, progress=False)
    return detent.plan(graph, stats, target="imx500", weights_bits=2, bias_correction="analytic")


def judged(wanted, found, axis, **limits):
    """The shift measured on the first of two batches, and whether it helps the second."""
    shift = _mean_difference([differences(wanted[0], found[0], axis=axis, **limits)])
    return shift, _helps([distances(wanted[1], found[1], shift, axis=axis, **limits)])


def test_only_what_a_relu_lets_through_counts():
    random = torch.Generator().manual_seed(1)
    wanted = [torch.randn(512, 3, generator=random) - 1 for _ in range(2)]
    # What both networks cut off is off by 5, what is let through by a quarter.
    found = [torch.where(part < 0, part.clamp(max=-6), part + 0.25) for part in wanted]
    shift, better = judged(wanted, found, 1, lower=0.0)
    np.testing.assert_allclose(shift, [-0.25] * 3, rtol=1e-5)
    assert better
    assert judged(wanted, found, 1)[0].min() > 1
    # A channel that nothing lets through is left alone.
    cut_off = [part.clamp(max=0) for part in wanted], [part.clamp(max=-1) for part in wanted]
    shift, better = judged(*cut_off, 1, lower=0.0)
    assert shift.tolist() == [0, 0, 0]
    assert not better


@pytest.mark.parametrize("limits", ["channels", "width"])
def test_stored_limits_count_by_channel_only(limits, data):
    class Clamped(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 1)
            self.register_buffer("low", torch.zeros(8, 1, 1) if limits == "channels" else torch.zeros(8))

        def forward(self, x):
            return torch.clamp(self.conv(x), min=self.low)

    graph = detent.capture(Clamped().eval(), data[:2])
    seen = _Seen.of(graph, graph.find("conv"))
    if limits == "channels":
        assert isinstance(seen.lower, np.ndarray)
        assert seen.lower.tolist() == [0] * 8
    else:
        assert (seen.lower, seen.upper) == (-np.inf, np.inf)


@pytest.mark.parametrize(
    ("behind", "limits"),
    [
        (nn.ReLU(), (0, float("inf"))),
        (nn.ReLU6(), (0, 6)),
        (nn.Hardtanh(-2, 3), (-2, 3)),
        (nn.Hardswish(), (-3, float("inf"))),
        (nn.Hardsigmoid(), (-3, 3)),
        (nn.SiLU(), None),
        (nn.Identity(), None),
    ],
    ids=str,
)
def test_limits_behind_a_layer(behind, limits, data):
    graph = detent.capture(nn.Sequential(nn.Conv2d(3, 4, 1), behind).eval(), data[:2])
    found = limits_behind(graph, graph.find("0"))
    assert (None if found is None else tuple(map(float, found))) == limits


def test_limits_count_only_where_nothing_else_reads_the_layer(data):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            x = self.conv(x)
            return x.relu() + x

    graph = detent.capture(Both().eval(), data[:2])
    assert limits_behind(graph, graph.find("conv")) is None


@pytest.mark.parametrize(("held_out", "better"), [(1.0, True), (0.6, True), (-1.0, False), (0.4, False)])
def test_held_out_batches_judge(held_out, better):
    """A shift of 1 in the batches corrected for helps if the others are shifted by more than half of it."""
    found = [torch.zeros(4, 3, 2), torch.zeros(4, 3, 2)]
    wanted = [torch.ones(4, 3, 2), torch.full((4, 3, 2), held_out)]
    shift, helps = judged(wanted, found, axis=1)
    assert shift.tolist() == [1, 1, 1]
    assert helps is better


def test_few_samples(model, data):
    graph = detent.capture(model, data[:2])
    plan = detent.plan(graph, detent.calibrate(graph, data, progress=False), target="imx500")
    assert set(detent.correct_biases(graph, plan, data[:2]).bias_corrections) <= set(plan.weights)
    with pytest.raises(CalibrationError, match="at least 2 samples"):
        detent.correct_biases(graph, plan, data[:1])
    with pytest.raises(CalibrationError, match="empty"):
        detent.correct_biases(graph, plan, [])


def test_fixed_batches(model, data):
    graph = detent.capture(model, data[:32], dynamic_batch=False)
    plan = detent.plan(graph, detent.calibrate(graph, data, progress=False), target="imx500", weights_bits=2)
    corrected = detent.correct_biases(graph, plan, data)
    assert corrected.bias_corrections
    assert all(np.isfinite(one.shift).all() for one in corrected.bias_corrections.values())


def test_few_bits_are_corrected_sequentially_unless_something_else_is_asked(model, data):
    def methods(**options):
        plan = detent.quantize(model, data, target="default", progress=False, **options).plan
        # What was tried and did no good left a note.
        tried = any(note.startswith("sequential bias correction") for note in plan.notes)
        return {one.method for one in plan.bias_corrections.values()} | ({"sequential"} if tried else set())

    assert methods() == {"analytic"}
    assert methods(weights_bits=4, bias_correction="analytic") == {"analytic"}
    assert methods(weights_bits=4, bias_correction="none") == set()
    assert "sequential" in methods(weights_bits=2)
    assert "sequential" in methods(activation_bits=3)
    rule = detent.edit.rule(detent.edit.name("middle"), detent.edit.weights(bits=2))
    assert "sequential" in methods(rules=[rule])


def test_what_nobody_asked_for_does_not_fail_on_few_samples(model, data):
    plan = detent.quantize(model, data[:1], weights_bits=2, progress=False).plan
    assert any("2 samples or more" in note for note in plan.notes)
    with pytest.raises(CalibrationError, match="at least 2 samples"):
        detent.quantize(model, data[:1], weights_bits=2, bias_correction="sequential", progress=False)


def test_no_more_samples_than_fit_in_memory(model, data, monkeypatch):
    graph = detent.capture(model, data[:2])
    plan = detent.plan(graph, detent.calibrate(graph, data, progress=False), target="imx500", weights_bits=2)
    monkeypatch.setattr("detent.correcting._MOST_BYTES", 8 * 64 * 4 * 100)
    few = detent.correct_biases(graph, plan, data)
    assert few == detent.correct_biases(graph, plan, data, samples=100)
    monkeypatch.undo()
    assert few != detent.correct_biases(graph, plan, data)


def test_data_that_are_not_finite_are_refused(model, data):
    graph = detent.capture(model, data[:2])
    plan = detent.plan(graph, detent.calibrate(graph, data, progress=False), weights_bits=2)
    for sample in (0, 255):  # among those corrected for, and among those that judge
        bad = data.clone()
        bad[sample, 0, 0, 0] = float("nan")
        with pytest.raises(CalibrationError, match="NaN"):
            detent.correct_biases(graph, plan, bad, progress=False)


def test_arguments_that_do_not_fit_are_refused(model, data):
    graph = detent.capture(model, data[:2])
    stats = detent.calibrate(graph, data, progress=False)
    other = detent.capture(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), data[:2])
    plan = detent.plan(graph, stats)
    with pytest.raises(ConfigError, match="another model"):
        detent.correct_biases(other, plan, data)
    for samples in (0, -3, 2.5, float("nan"), "5", None, True):
        with pytest.raises(ConfigError, match="whole number"):
            detent.correct_biases(graph, plan, data, samples=samples)
    fixed = detent.capture(model, data[:32], dynamic_batch=False)
    plan = detent.plan(fixed, detent.calibrate(fixed, data, progress=False))
    with pytest.raises(CalibrationError, match="exactly 32"):
        detent.correct_biases(fixed, plan, data[:20])
    with pytest.raises(CalibrationError, match="at least 64 samples"):
        detent.correct_biases(fixed, plan, data[:48])


def test_nothing_to_correct_is_no_failure(data):
    plan = detent.quantize(nn.ReLU(), data, bias_correction="sequential", progress=False).plan
    assert not any("sequential" in note for note in plan.notes)
