"""The executor computes what the module computes, frees what it can, and names the layer that fails."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import fx, nn

from detent.errors import CalibrationError, UnsupportedOpError
from detent.graph import capture
from detent.graph.executor import Executor, prefers_channels_last
from tests.statistics.networks import Constant, Residual, build, residual_graph, samples


def watch(graph, names):
    """An executor that shows the values of the given names."""
    return Executor(graph.module, [graph.find(name).node for name in names], graph.name_of)


def run(graph, names, x, show):
    """Run a batch and show the values of the given names by name."""
    watch(graph, names).run([x], lambda index, value: show(names[index], value))


def test_values_are_those_of_the_module():
    graph, x = residual_graph(), samples(10)
    seen = {}
    run(graph, ["linear", "x"], x, lambda name, value: seen.update({name: value.clone()}))
    assert torch.equal(seen["x"], x)
    torch.testing.assert_close(seen["linear"], build(Residual)(x).detach(), rtol=1e-5, atol=1e-5)


def test_convolutions_run_in_channels_last():
    graph = residual_graph()
    layouts = {}

    def show(name, value):
        layouts[name] = value.is_contiguous(memory_format=torch.channels_last)

    run(graph, ["conv", "relu", "depthwise"], samples(4), show)
    assert all(layouts.values())
    for parameter in graph.module.parameters():
        assert parameter.is_contiguous()


def test_layout_of_capture_stays_where_memory_is_addressed():
    class Strided(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return torch.as_strided(self.conv(x), (2, 4), (4 * 64, 64))

    graph = capture(build(Strided), torch.zeros(2, 3, 8, 8), dynamic_batch=False)
    assert not prefers_channels_last(graph.module)


def test_values_are_freed_after_their_last_use():
    graph = residual_graph()
    alive = {}

    def show(name, value):
        alive[name] = weakref.ref(value)
        if name == "add":
            assert alive["conv"]() is None
            assert alive["relu"]() is not None  # its second use is this addition
        if name == "linear":
            assert alive["relu"]() is None
            assert alive["add"]() is None

    run(graph, ["conv", "relu", "add", "linear"], samples(4), show)
    assert len(alive) == 4


def test_what_nobody_asks_for_is_not_computed():
    graph = residual_graph()
    executor = watch(graph, ["relu"])
    assert not any("linear" in str(step.node.target) for part in executor._parts for step in part)


def test_constants_are_computed_once():
    graph = capture(build(Constant), torch.zeros(2, 4, 6))
    executor = watch(graph, ["linear"])
    assert not any("embedding" in str(step.node.target) for part in executor._parts for step in part)


def hand_made(target, *, writes=False):
    """A graph of one operator on the input, or on a buffer, made without capture."""
    root = nn.Module()
    root.register_buffer("state", torch.zeros(3))
    graph = fx.Graph()
    x = graph.placeholder("x")
    state = graph.get_attr("state")
    node = graph.call_function(target, (state, x) if writes else (x, state))
    graph.output(node)
    return fx.GraphModule(root, graph), node


def given(graph, names, watched, **options):
    """An executor that shows some values and is given others."""
    nodes = [[graph.find(name).node for name in some] for some in (watched, names)]
    return Executor(graph.module, nodes[0], graph.name_of, given=nodes[1], **options)


def walked(executor, inputs, values=(), names=()):
    """The values that a run shows, by name."""
    return {names[place]: value.clone() for place, value in executor.walk(inputs, values)}


def test_what_follows_given_values_is_computed_from_them():
    graph, x = residual_graph(), samples(4)
    names = ["relu", "linear"]
    plain = walked(watch(graph, names), [x], names=names)
    executor = given(graph, ["relu"], ["linear"])
    assert torch.equal(walked(executor, [x], [plain["relu"]], ["linear"])["linear"], plain["linear"])
    other = walked(executor, [x], [plain["relu"] * 2], ["linear"])["linear"]
    assert not torch.equal(other, plain["linear"])
    # The next run knows nothing of the former one.
    assert torch.equal(walked(executor, [x], [plain["relu"]], ["linear"])["linear"], plain["linear"])


def test_what_only_given_values_need_is_not_computed():
    graph = residual_graph()
    executor = given(graph, ["relu"], ["linear"])
    computed = [step.node.name for part in executor._parts for step in part]
    assert graph.find("conv").node.name not in computed
    assert graph.find("relu").node.name not in computed
    # The inputs are not looked at then.
    (found,) = (
        value for _, value in executor.walk([torch.full((4, 3, 8, 8), float("nan"))], [torch.zeros(4, 8, 8, 8)])
    )
    assert torch.isfinite(found).all()


def test_inputs_of_the_network_can_be_given():
    graph, x = residual_graph(), samples(4)
    wanted = walked(watch(graph, ["linear"]), [x], names=["linear"])["linear"]
    executor = given(graph, ["x"], ["linear"])
    assert torch.equal(walked(executor, [torch.zeros_like(x)], [x], ["linear"])["linear"], wanted)


def test_given_constants_take_part_in_each_run():
    graph, x = residual_graph(), samples(4)
    linear = graph.find("linear")
    executor = Executor(graph.module, [linear.node], graph.name_of, given=[linear.weight])
    kernel = graph.tensor(linear.weight).detach()
    plain = walked(watch(graph, ["linear"]), [x], names=["linear"])["linear"]
    bias = graph.tensor(linear.bias).detach()
    once, twice = (walked(executor, [x], [kernel * factor], ["linear"])["linear"] for factor in (1, 2))
    assert torch.equal(once, plain)
    torch.testing.assert_close(twice - bias, 2 * (plain - bias), rtol=1e-4, atol=1e-5)


def test_gradients_reach_given_values():
    graph, x = residual_graph(), samples(4)
    executor = given(graph, ["relu"], ["linear"], gradients=True)
    relu = walked(watch(graph, ["relu"]), [x], names=["relu"])["relu"].clone().requires_grad_()
    (found,) = (value for _, value in executor.walk([x], [relu]))
    found.sum().backward()
    assert relu.grad is not None
    assert relu.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in graph.module.parameters())


def test_values_may_be_missing_or_too_many():
    graph, x = residual_graph(), samples(4)
    executor = given(graph, ["relu"], ["linear"])
    for values in ([], [torch.zeros(4, 8, 8, 8)] * 2):
        with pytest.raises(ValueError, match="zip"):
            list(executor.walk([x], values))


def test_functions_take_the_place_of_operators():
    graph, x = residual_graph(), samples(4)
    seen = []

    def halved(*arguments):
        seen.append(len(arguments))
        return torch.relu(*arguments) / 2

    relu = graph.find("relu").node
    executor = Executor(graph.module, [relu], graph.name_of, functions={relu: halved})
    wanted = walked(watch(graph, ["relu"]), [x], names=["relu"])["relu"]
    assert torch.equal(walked(executor, [x], names=["relu"])["relu"], wanted / 2)
    assert seen == [1]


def test_functions_that_fail_name_the_layer():
    graph = residual_graph()

    def wrong(value):
        raise RuntimeError("of its own")

    relu = graph.find("relu").node
    executor = Executor(graph.module, [relu], graph.name_of, functions={relu: wrong})
    with pytest.raises(CalibrationError, match="of its own") as caught:
        executor.run([samples(4)], lambda index, value: None)
    assert caught.value.where == "relu"


@pytest.mark.parametrize(("training", "draws"), [(False, False), (True, True)])
def test_dropout_that_is_switched_off_draws_no_random_numbers(training, draws):
    class Dropping(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x * 2, 0.5, training=training)

    graph = capture(Dropping().eval(), torch.zeros(2, 4))
    executor = Executor(graph.module, graph.outputs(), graph.name_of)
    assert executor.draws_random_numbers == draws


def test_recurrent_layers_draw_no_random_numbers():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(4, 6, batch_first=True)

        def forward(self, x):
            return self.lstm(x)[0]

    graph = capture(build(Recurrent), torch.zeros(2, 3, 4))
    assert not Executor(graph.module, graph.outputs(), graph.name_of).draws_random_numbers


def test_failures_name_the_layer():
    module, node = hand_made(torch.ops.aten.mm.default)
    executor = Executor(module, [node], lambda failed: f"layer of {failed.name}")
    with pytest.raises(CalibrationError, match="failed on a calibration batch") as caught:
        executor.run([torch.zeros(3, 3)], lambda index, value: None)
    assert "layer of mm" in str(caught.value)


def test_models_that_change_their_state_are_refused():
    module, node = hand_made(torch.ops.aten.add_.Tensor, writes=True)
    with pytest.raises(UnsupportedOpError, match="changes its own state 'state'"):
        Executor(module, [node], lambda failed: failed.name)
