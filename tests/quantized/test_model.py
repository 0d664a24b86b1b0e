"""`QuantizedModel` is an `nn.Module` like any other: it saves, copies, exports, compiles and trains."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

import detent
from detent.errors import ConfigError


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def graph(images: Tensor) -> detent.Graph:
    return detent.capture(make_net(), images)


@pytest.fixture(scope="module")
def plan(graph: detent.Graph, images: Tensor) -> detent.QuantPlan:
    return detent.plan(graph, detent.calibrate(graph, images), target="onnxruntime")


def test_weights_are_codes_and_nothing_float_is_left_of_them(graph: detent.Graph, plan: detent.QuantPlan) -> None:
    state = detent.apply(graph, plan).state_dict()
    codes = {name: value for name, value in state.items() if name.endswith("_codes")}
    assert {value.dtype for value in codes.values()} == {torch.int8, torch.int32}
    assert len(codes) == 4
    floats = [name for name, value in state.items() if value.is_floating_point()]
    assert all(name.endswith("_scale") for name in floats)


def test_kernels_are_the_nearest_points_of_their_grids(graph: detent.Graph, plan: detent.QuantPlan) -> None:
    state = detent.apply(graph, plan).state_dict()
    weight, grid = make_net()[0].weight.detach(), plan.weights["0"].grid
    assert grid is not None
    scale = torch.from_numpy(grid.scale.copy()).view(-1, 1, 1, 1)
    expected = torch.round(weight / scale).clamp(grid.qmin, grid.qmax)
    assert torch.equal(state["graph_module.0.weight_codes"].float(), expected)


def test_every_activation_lies_on_its_grid(graph: detent.Graph, plan: detent.QuantPlan, images: Tensor) -> None:
    out = detent.apply(graph, plan)(images)
    grid = plan.activation_grid(list(plan.activations)[-1])
    assert grid is not None
    codes = (out / float(grid.scale[0])).double()
    assert torch.allclose(codes, codes.round(), atol=1e-4)


def test_saving_and_copying_keep_every_bit(graph: detent.Graph, plan: detent.QuantPlan, images: Tensor) -> None:
    qmodel = detent.apply(graph, plan)
    buffer = io.BytesIO()
    torch.save(qmodel.state_dict(), buffer)
    buffer.seek(0)
    other = detent.apply(graph, plan)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(images), qmodel(images))
    assert torch.equal(copy.deepcopy(qmodel)(images), qmodel(images))


def test_it_shares_nothing_with_the_users_model(images: Tensor) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1)).eval()
    before = copy.deepcopy(model.state_dict())
    qmodel = detent.quantize(model, images, target="imx500", progress=False)
    expected = qmodel(images)
    for tensor in [*qmodel.parameters(), *qmodel.buffers()]:
        assert tensor.data_ptr() not in {kept.data_ptr() for kept in model.state_dict().values()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(qmodel(images), expected)
    model.load_state_dict(before)
    qmodel.to("meta")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_it_moves_to_devices_but_not_to_other_dtypes(
    graph: detent.Graph, plan: detent.QuantPlan, images: Tensor
) -> None:
    qmodel = detent.apply(graph, plan)
    expected = qmodel(images)
    for cast in (qmodel.half, qmodel.double, lambda: qmodel.to(torch.bfloat16)):
        with pytest.raises(ConfigError, match="computes in float32"):
            cast()
    assert torch.equal(qmodel(images), expected)
    assert qmodel.float().cpu() is qmodel
    assert copy.deepcopy(qmodel).to("meta")(images.to("meta")).shape == expected.shape


@pytest.mark.parametrize("target", ["default", "tflite", "onnxruntime"])
def test_biases_of_grouped_transposed_convolutions(target: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2), nn.ReLU()).eval()
    with torch.no_grad():
        model[0].bias.copy_(torch.linspace(-1, 1, 6))
    images = torch.randn(16, 4, 5, 5)
    qmodel = detent.quantize(model, images, target=target, progress=False)
    assert qmodel.get_buffer("graph_module.0.bias_codes").dtype == torch.int32
    assert (qmodel(images) - model(images)).norm() < 0.02 * model(images).norm()


def test_any_batch_and_memory_format(graph: detent.Graph, plan: detent.QuantPlan, images: Tensor) -> None:
    qmodel = detent.apply(graph, plan)
    assert qmodel(images[:1]).shape == (1, 5)
    grid = plan.activation_grid(list(plan.activations)[-1])
    assert grid is not None
    difference = qmodel(images.to(memory_format=torch.channels_last)) - qmodel(images)
    assert difference.abs().max() <= 1.01 * float(grid.scale[0])  # float sums in another order may cross a tie


def test_it_exports_again(graph: detent.Graph, plan: detent.QuantPlan, images: Tensor) -> None:
    qmodel = detent.apply(graph, plan)
    program = torch.export.export(qmodel, (images,))
    assert torch.equal(program.module()(images), qmodel(images))
    targets = {str(node.target) for node in program.graph.nodes}
    assert "detent.fake_quantize.default" in targets
    assert "detent.dequantize.default" in targets


def test_training_moves_the_weights(graph: detent.Graph, plan: detent.QuantPlan, images: Tensor) -> None:
    qmodel = detent.apply(graph, plan, trainable=True)
    fixed = detent.apply(graph, plan)
    parameters = dict(qmodel.named_parameters())
    assert len(parameters) == 4
    before = {name: value.detach().clone() for name, value in parameters.items()}
    optimizer = torch.optim.SGD(qmodel.parameters(), 0.05)
    target = fixed(images).detach() * 0.5
    losses = []
    for _ in range(8):
        loss = (qmodel(images) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert all(not torch.equal(before[name], value) for name, value in qmodel.named_parameters())
    assert torch.equal(dict(graph.module.named_parameters())["0.weight"], make_net()[0].weight)


class Tied(nn.Module):
    """A table that is looked up and multiplied with, two inputs, two outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 6)
        self.out = nn.Linear(6, 7)
        self.out.weight = self.table.weight

    def forward(self, tokens: Tensor, features: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(self.table(tokens) + features)
        return {"logits": self.out(hidden), "hidden": hidden}


def test_tied_weights_several_inputs_and_outputs() -> None:
    torch.manual_seed(0)
    tokens, features = torch.randint(0, 7, (12, 4)), torch.randn(12, 4, 6)
    model = Tied().eval()
    qmodel = detent.quantize(model, [(tokens, features)], target="onnxruntime", progress=False)
    exact, quantized = model(tokens, features), qmodel(tokens, features)
    assert set(quantized) == {"logits", "hidden"}
    for name, value in exact.items():
        assert (value - quantized[name]).abs().max() < 0.1 * value.abs().max()


class Branches(nn.Module):
    """A branch chosen by the data, between two layers that are quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right, self.last = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(torch.cond(x.sum() > 0, self.left, self.right, (x,)))


def test_branches_run_in_float_between_quantized_layers() -> None:
    torch.manual_seed(0)
    model, data = Branches().eval().requires_grad_(False), torch.randn(64, 6)
    qmodel = detent.quantize(model, [data, -data], target="default", progress=False)
    assert set(qmodel.plan.weights) == {"first", "last"}
    for x in (data, -data):
        assert (qmodel(x) - model(x)).abs().max() < 0.05
        assert torch.equal(copy.deepcopy(qmodel)(x), qmodel(x))
