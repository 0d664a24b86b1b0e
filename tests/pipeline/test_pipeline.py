"""The four steps in a row: same bits however the data come, editable plans, errors that name the layer."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import detent
from detent import _core
from detent.errors import CalibrationError, ConfigError
from detent.quantized import QuantizedModel


class Net(nn.Module):
    """Conv, depthwise, residual add, pooling and a linear layer, with batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.depthwise(x))
        return self.head(x.mean((2, 3)))


def make_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = Net()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
    return net.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(150, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def graph(images: Tensor) -> detent.Graph:
    return detent.capture(make_net(), images[:2])


@pytest.fixture(scope="module")
def stats(graph: detent.Graph, images: Tensor) -> detent.Statistics:
    return detent.calibrate(graph, images)


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    torch_threads, threads = torch.get_num_threads(), _core.num_threads()
    yield
    torch.set_num_threads(torch_threads)
    _core.set_num_threads(threads)


@pytest.mark.parametrize("target", detent.target_names())
@pytest.mark.parametrize("metric", ["noclipping", "mse", "mae", "lp", "kl"])
def test_every_target_and_metric_stays_close_to_float(
    graph: detent.Graph, stats: detent.Statistics, images: Tensor, target: str, metric: str
) -> None:
    plan = detent.plan(graph, stats, target=target, activation_metric=metric, p=3.0)
    qmodel = detent.apply(graph, plan)
    with torch.no_grad():
        exact, quantized = graph(images), qmodel(images)
    signal = exact.square().mean().sqrt()
    # Eight bits, with akida1 four behind inputs: a grid wrong anywhere would be off by the size of the signal.
    assert (exact - quantized).square().mean().sqrt() < 0.12 * signal


def test_the_plan_is_the_same_bytes_however_the_data_come(graph: detent.Graph, images: Tensor) -> None:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(5))
    plans = set()
    for batch, threads, shuffled in ((1, 1, False), (7, 2, True), (37, 1, True), (64, 2, False), (512, 1, True)):
        torch.set_num_threads(threads)
        _core.set_num_threads(threads)
        data = images[order] if shuffled else images
        stats = detent.calibrate(graph, list(data.split(batch)))
        plans.add(detent.plan(graph, stats, target="onnxruntime").to_json())
    halves = [detent.calibrate(graph, half) for half in (images[:70], images[70:])]
    plans.add(detent.plan(graph, halves[0].merge(halves[1]), target="onnxruntime").to_json())
    assert len(plans) == 1


def test_one_call_is_the_four_steps(graph: detent.Graph, stats: detent.Statistics, images: Tensor) -> None:
    model = make_net()
    before = copy.deepcopy(model.state_dict())
    qmodel = detent.quantize(model, images.split(50), target="imx500", z_threshold=6.0, progress=False)
    steps = detent.apply(graph, detent.plan(graph, stats, target="imx500", z_threshold=6.0))
    assert qmodel.plan.to_json() == steps.plan.to_json()
    assert torch.equal(qmodel(images), steps(images))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def forms(images: Tensor) -> dict[str, object]:
    labels = torch.zeros(50, dtype=torch.int64)
    return {
        "tensor": images[:50],
        "array": images[:50].numpy(),
        "generator": (batch for batch in images[:50].split(20)),
        "callable": lambda: iter(images[:50].split(20)),
        "pairs": [(images[:50], labels)],
        "dicts": [{"x": images[:50]}],
        "loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images[:50], labels), 16),
    }


@pytest.mark.parametrize("form", ["tensor", "array", "generator", "callable", "pairs", "dicts", "loader"])
def test_data_in_any_form_gives_the_same_plan(images: Tensor, form: str) -> None:
    model = make_net()
    plan = detent.quantize(model, forms(images)[form], progress=False).plan
    assert plan.activations == detent.quantize(model, images[:50], progress=False).plan.activations
    assert plan.samples == 50
    assert any("labels" in note for note in plan.notes) == (form in ("pairs", "loader"))


def test_an_npz_file_with_labels(images: Tensor, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=images[:50].numpy(), y=np.zeros(50, np.int64))
    plan = detent.quantize(make_net(), tmp_path / "data.npz", progress=False).plan
    assert plan.activations == detent.quantize(make_net(), images[:50], progress=False).plan.activations


def edit(plan: detent.QuantPlan, table: str, name: str, **changes: object) -> detent.QuantPlan:
    data = json.loads(plan.to_json())
    data[table][name]["grid"].update(changes)
    return detent.QuantPlan.from_json(json.dumps(data))


def test_an_edited_plan_is_what_is_applied(graph: detent.Graph, stats: detent.Statistics, images: Tensor) -> None:
    plan = detent.plan(graph, stats, target="default")
    edited = edit(plan, "weights", "head", bits=4)
    edited = edit(edited, "activations", "head", lower=-1.0, upper=1.0)
    qmodel = detent.apply(graph, edited)
    codes = next(
        value for name, value in qmodel.state_dict().items() if name.startswith("graph_module.head.weight_codes")
    )
    assert codes.dtype == torch.int8
    assert codes.abs().max() == 7
    out = qmodel(images)
    assert out.min() >= -1.01
    assert out.max() <= 1.01
    assert len(out.unique()) > 10


def test_float_entries_stay_in_float(graph: detent.Graph, stats: detent.Statistics, images: Tensor) -> None:
    plan = detent.plan(graph, stats, target="onnxruntime")
    for value in plan.activations:
        plan = plan.with_activation(value, None)
    for layer in plan.weights:
        plan = plan.with_weight(layer, None)
    assert torch.equal(detent.apply(graph, plan)(images), graph(images))


@pytest.mark.parametrize(
    ("table", "name", "changes", "message"),
    [
        ("weights", "head", {"bits": 5}, "offers 4, 7, 8 bits"),
        ("weights", "head", {"threshold": [1.0, 2.0]}, "10 channels"),
        ("weights", "head", {"axis": 1}, "channel axis"),
        ("weights", "head", {"narrow_range": False}, "narrow_range"),
        ("weights", "head", {"group_size": 4}, "offers groups of 16, 32, 64, 128 for this kernel"),
        ("activations", "head", {"signed": True}, "unsigned"),
        ("activations", "head", {"bits": 3}, "offers"),
        ("activations", "head", {"axis": 1, "lower": [-1.0], "upper": [1.0]}, "axis"),
    ],
)
def test_what_a_plan_cannot_have_names_the_layer(
    graph: detent.Graph, stats: detent.Statistics, table: str, name: str, changes: dict[str, object], message: str
) -> None:
    plan = edit(detent.plan(graph, stats, target="onnxruntime"), table, name, **changes)
    with pytest.raises(ConfigError, match=message) as caught:
        detent.apply(graph, plan)
    assert caught.value.where == name


class Gate(nn.Module):
    """A sigmoid, whose grid TFLite prescribes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.linear(x))


@pytest.mark.parametrize(
    ("table", "name", "entry", "message"),
    [
        ("activations", "sigmoid", {"grid": {"upper": 1.0}}, "prescribes step 0.00390625 and zero point -128"),
        ("activations", "sigmoid", {"same_as": "linear"}, "prescribes step"),
        ("activations", "linear", {"bias_bits": 32}, "`bias_bits` is for weights"),
        ("weights", "linear", {"bias_bits": None}, "computes this layer with `bias_bits` 32"),
    ],
)
def test_what_a_target_prescribes_cannot_be_edited(
    table: str, name: str, entry: dict[str, object], message: str
) -> None:
    graph = detent.capture(Gate().eval(), torch.randn(4, 4))
    plan = detent.plan(graph, detent.calibrate(graph, torch.randn(64, 4)), target="tflite")
    assert detent.apply(graph, plan.with_activation("sigmoid", None)).plan.activations["sigmoid"].grid is None
    data = json.loads(plan.to_json())
    if "same_as" in entry:
        data[table][name] = entry
    elif "grid" in entry:
        data[table][name]["grid"].update(entry["grid"])
    else:
        data[table][name].update(entry)
    with pytest.raises(ConfigError, match=message) as caught:
        detent.apply(graph, detent.QuantPlan.from_json(json.dumps(data)))
    assert caught.value.where == name


@pytest.mark.parametrize("magnitude", [1e-25, 1e25])
def test_a_bias_step_that_is_no_float_names_the_layer(
    graph: detent.Graph, stats: detent.Statistics, magnitude: float
) -> None:
    plan = detent.plan(graph, stats, target="onnxruntime")
    edited = edit(plan, "weights", "head", threshold=[magnitude] * 10)
    edited = edit(edited, "activations", graph.name_of(graph.find("head").data[0]), lower=0.0, upper=magnitude)
    with pytest.raises(ConfigError, match="bias step") as caught:
        detent.apply(graph, edited)
    assert caught.value.where == "head"


def test_kernels_in_groups_work_in_an_edited_plan(
    graph: detent.Graph, stats: detent.Statistics, images: Tensor, tmp_path: Path
) -> None:
    plan = detent.plan(graph, stats, target="default")
    for size, message in ((3, "does not divide the 8 input channels"), (4, "2 groups each, the plan 10 thresholds")):
        with pytest.raises(ConfigError, match=message):
            detent.apply(graph, edit(plan, "weights", "head", group_size=size))
    kernel = graph.module.get_parameter("head.weight").detach()
    thresholds = kernel.reshape(10, 2, 4).abs().amax(2).flatten().tolist()
    edited = edit(plan, "weights", "head", group_size=4, threshold=thresholds)
    with pytest.raises(ConfigError, match="its bias, which stays in float"):
        detent.apply(graph, edited)
    qmodel = detent.apply(graph, plan.with_weight("head", edited.weights["head"].grid))
    codes = qmodel.get_buffer("graph_module.head.weight_codes").reshape(10, 2, 4)
    assert (codes.abs().amax(2) == 127).all()  # each group uses all of its codes
    assert (qmodel(images) - graph(images)).norm() < 0.05 * graph(images).norm()


def test_a_target_that_was_loaded_before(graph: detent.Graph, stats: detent.Statistics, tmp_path: Path) -> None:
    plan = detent.plan(graph, stats, target=detent.load_target("tflite"))
    assert plan.to_json() == detent.plan(graph, stats, target="tflite").to_json()
    (tmp_path / "own.json").write_text(json.dumps({"extends": "tflite", "quantize_model_inputs": False}))
    assert detent.apply(graph, detent.plan(graph, stats, target=tmp_path / "own.json"))
    with pytest.raises(ConfigError, match="by name or path"):
        detent.plan(graph, stats, target=detent.load_target(tmp_path / "own.json"))


def test_arguments_in_the_wrong_place(
    graph: detent.Graph, stats: detent.Statistics, images: Tensor, tmp_path: Path
) -> None:
    model = make_net()
    plan = detent.plan(graph, stats)
    for call, message in (
        (lambda: detent.calibrate(model, images), "`graph` must be a Graph, got a Net"),
        (lambda: detent.plan(model, stats), "`graph` must be a Graph, got a Net"),
        (lambda: detent.plan(graph, plan), "`stats` must be a Statistics, got a QuantPlan"),
        (lambda: detent.apply(graph, plan.to_json()), "`plan` must be a QuantPlan, got a str"),
        (lambda: detent.export(model, tmp_path / "model.onnx"), "`qmodel` must be a quantized model, got a Net"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()


def test_plans_for_other_models_targets_and_names_are_refused(
    graph: detent.Graph, stats: detent.Statistics, images: Tensor
) -> None:
    plan = detent.plan(graph, stats, target="onnxruntime")
    other = detent.capture(make_net(seed=3), images[:2])
    with pytest.raises(ConfigError, match="another model"):
        detent.apply(other, plan)
    with pytest.raises(ConfigError, match="another model"):
        detent.plan(other, stats)
    data = json.loads(plan.to_json())
    data["weights"]["haed"] = data["weights"].pop("head")
    with pytest.raises(ConfigError, match="did you mean 'head'"):
        detent.apply(graph, detent.QuantPlan.from_json(json.dumps(data)))
    del data["weights"]["haed"]
    with pytest.raises(ConfigError, match="no entry"):
        detent.apply(graph, detent.QuantPlan.from_json(json.dumps(data)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights_bits": 3}, "no 3-bit weights"),
        ({"activation_bits": 4}, "no 4-bit activations"),
        ({"weights_grid": "lut", "weights_bits": 4}, "not with lut ones"),
        ({"weights_grid": "uniform"}, "not with uniform ones"),
        ({"weights_group_size": 2}, "no groups"),
    ],
    ids=str,
)
def test_what_a_target_does_not_offer_is_refused_before_calibration(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object], message: str
) -> None:
    def calibrate(*args: object, **options: object) -> None:
        raise AssertionError("calibrated")

    monkeypatch.setattr("detent.pipeline.calibrate", calibrate)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    with pytest.raises(ConfigError, match=message):
        detent.quantize(model, torch.randn(4, 3, 8, 8), target="imx500", progress=False, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "suggestion"),
    [
        ({"target": "imx50"}, "imx500"),
        ({"activation_metric": "msse"}, "mse"),
        ({"z_treshold": 3.0}, "z_threshold"),
        ({"weights_bits": 5, "target": "imx500"}, "2, 4, 8"),
        ({"activation_bits": 40}, "activation_bits"),
    ],
)
def test_wrong_options_are_refused_before_any_work(options: dict[str, object], suggestion: str) -> None:
    with pytest.raises(ConfigError, match=suggestion):
        detent.quantize(make_net(), torch.randn(4, 3, 8, 8), progress=False, **options)


def test_bad_weights_and_activations_name_the_layer(images: Tensor) -> None:
    model = make_net()
    with torch.no_grad():
        model.head.weight[3, 2] = float("nan")
    with pytest.raises(CalibrationError, match="head"):
        detent.quantize(model, images, progress=False)
    data = images.clone()
    data[17, 0, 0, 0] = float("inf")
    with pytest.raises(CalibrationError, match="x"):
        detent.quantize(make_net(), data, progress=False)


@pytest.mark.parametrize("data", [[], torch.zeros(0, 3, 8, 8), 7, [7]])
def test_unusable_data(data: object) -> None:
    with pytest.raises(CalibrationError):
        detent.quantize(make_net(), data, progress=False)


def test_constant_data_gets_valid_grids() -> None:
    qmodel = detent.quantize(make_net(), torch.zeros(8, 3, 8, 8), progress=False)
    assert torch.isfinite(qmodel(torch.zeros(2, 3, 8, 8))).all()


def test_a_bias_that_32_bits_do_not_hold_raises_the_threshold(images: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    with torch.no_grad():
        model[0].weight[2] = 0  # a dead channel: no weights, a large bias
        model[0].bias[2] = 50.0
    qmodel = detent.quantize(model.eval(), images, target="onnxruntime", progress=False)
    assert any("biases fit" in note for note in qmodel.notes)
    out = qmodel(images)[:, 2]
    assert torch.allclose(out, torch.full_like(out, 50.0), atol=0.5)


def test_summary_lists_every_tensor(
    graph: detent.Graph, stats: detent.Statistics, capsys: pytest.CaptureFixture[str]
) -> None:
    qmodel = detent.apply(graph, detent.plan(graph, stats, target="imx500"))
    qmodel.summary()
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*qmodel.plan.activations, *qmodel.plan.weights))
    assert isinstance(qmodel, QuantizedModel)


def test_one_call_takes_a_captured_graph(images: Tensor) -> None:
    model = make_net()
    options = {"target": "imx500", "equalization": "cross_layer", "bias_correction": "sequential", "progress": False}
    graph = detent.capture(model, images[:2])
    before = graph.fingerprint()
    assert detent.quantize(graph, images, **options).plan == detent.quantize(model, images, **options).plan  # type: ignore[arg-type]
    assert graph.fingerprint() == before
    with pytest.raises(ConfigError, match="captured before"):
        detent.quantize(graph, images, preprocessing=detent.Preprocessing(scale=0.5), progress=False)
