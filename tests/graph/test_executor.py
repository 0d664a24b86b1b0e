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
