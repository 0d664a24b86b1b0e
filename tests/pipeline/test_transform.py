"""`detent.transform` in the pipeline: what options switch, in which order, and with which statistics."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import detent
from detent.errors import ConfigError


class Net(nn.Module):
    """Something for every rewrite: layers to collapse, ReLU6 between layers, a norm before linear layers, a softmax."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(3, 16, 3, padding=1)
        self.narrow = nn.Conv2d(16, 4, 1)
        self.first = nn.Conv2d(4, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU6()
        self.second = nn.Conv2d(8, 8, 1)
        self.third = nn.Conv2d(8, 8, 3, padding=1)
        self.layer_norm = nn.LayerNorm(8)
        self.left = nn.Linear(8, 8)
        self.right = nn.Linear(8, 5)

    def forward(self, x):
        x = self.act(self.norm(self.first(self.narrow(self.wide(x)))))
        x = torch.relu(self.second(x))
        x = self.third(x) + x
        x = self.layer_norm(x.mean((2, 3)))
        return torch.softmax(self.right(torch.relu(self.left(x))), dim=1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(11)
    net = Net()
    with torch.no_grad():
        net.norm.running_mean.uniform_(-0.2, 0.2)
        net.norm.weight.uniform_(0.2, 3.0)
        net.norm.bias.uniform_(0.0, 2.0)
    return net.eval()


@pytest.fixture(scope="module")
def data():
    return torch.randn(96, 3, 10, 10, generator=torch.Generator().manual_seed(12))


@pytest.fixture(scope="module")
def captured(model, data):
    return detent.capture(model, data[:2])


def test_defaults_collapse_and_keep_the_function(captured, model, data):
    graph = detent.transform(captured)
    names = [node.name for node in graph.nodes()]
    assert "wide" not in names
    assert "narrow" in names
    assert "add" not in names
    assert any("collapsed" in note for note in graph.notes)
    torch.testing.assert_close(graph(data), model(data), rtol=1e-4, atol=1e-5)
    assert len(captured.nodes()) > len(graph.nodes())


def test_everything_off_is_the_very_graph(captured):
    assert detent.transform(captured, linear_collapsing=False, residual_collapsing=False) is captured


@pytest.mark.parametrize(
    "options",
    [{"equalization": "cross_layer"}, {"equalization": "activations"}, {"relu_bound_to_power_of_2": True}],
)
def test_rewrites_without_data(captured, model, data, options):
    graph = detent.transform(captured, **options)
    assert graph.fingerprint() != detent.transform(captured).fingerprint()
    torch.testing.assert_close(graph(data), model(data), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("option", ["softmax_shift", "smooth_quant", "bias_absorption"])
def test_rewrites_by_statistics(captured, model, data, option):
    graph = detent.transform(captured)
    stats = detent.calibrate(graph, data, progress=False)
    after = detent.transform(graph, stats, **{option: True})
    torch.testing.assert_close(after(data), model(data), rtol=1e-4, atol=1e-5)
    if option != "bias_absorption":
        assert after.fingerprint() != graph.fingerprint()
    assert detent.transform(graph, stats) is graph


def test_all_at_once_from_one_call(model, data):
    options = {"equalization": "cross_layer", "softmax_shift": True, "smooth_quant": True, "bias_absorption": True}
    for form in (data, iter(data.split(32))):
        qmodel = detent.quantize(
            model, form, target="onnxruntime", bias_correction="sequential", progress=False, **options
        )
        with torch.no_grad():
            error = (qmodel(data) - model(data)).abs().max()
        assert float(error) < 0.1
        assert qmodel.plan.bias_corrections


def test_statistics_of_another_graph(captured, data):
    stats = detent.calibrate(captured, data, progress=False)
    with pytest.raises(ConfigError, match="another model"):
        detent.transform(detent.transform(captured), stats, smooth_quant=True)
    with pytest.raises(ConfigError, match="`stats` must be"):
        detent.transform(captured, data)


def test_unknown_options(captured):
    with pytest.raises(ConfigError, match="equalization"):
        detent.transform(captured, equalization="layers")
    with pytest.raises(ConfigError, match="did you mean 'equalization'"):
        detent.transform(captured, equalisation="none")
