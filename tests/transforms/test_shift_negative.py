"""Shift-negative correction: where it applies, what it changes, and that it keeps the float function."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import detent
from detent.config import QuantizationConfig
from detent.errors import ConfigError
from detent.graph import Graph, capture
from detent.graph.placement import place
from detent.pipeline import values_to_observe
from detent.records.grid import Grid
from detent.records.statistics import Statistics
from detent.targets import load_target
from detent.transforms import shift_negative

IMAGE = (4, 3, 8, 8)
IMX500 = load_target("imx500")
ANY_TAIL: dict[str, Any] = {"shift_negative_ratio": 1e6, "activation_bits": 8}


class Function(nn.Module):
    """A network written as a function of its layers."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self._forward = forward

    def forward(self, x: Tensor) -> Any:
        return self._forward(x, **self.layers)


def conv(inputs: int = 3, outputs: int = 6, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **options)


def calibrated(model: nn.Module, scale: float = 3.0) -> tuple[Graph, Statistics, Tensor]:
    torch.manual_seed(3)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = scale * torch.randn(IMAGE)
    graph = capture(model.eval(), x)
    return graph, detent.calibrate(graph, [x], progress=False), x


def shifted(model: nn.Module, **options: Any) -> tuple[Graph, Graph]:
    """A graph and its rewriting, which computes the same and leaves the first as it was."""
    graph, stats, x = calibrated(model)
    fingerprint = graph.fingerprint()
    after = shift_negative(graph, stats, IMX500, QuantizationConfig(**{**ANY_TAIL, **options}))
    assert graph.fingerprint() == fingerprint
    with torch.no_grad():
        wanted, got = model(x), after(x)
    for one, other in zip(*(v if isinstance(v, tuple) else (v,) for v in (wanted, got)), strict=True):
        assert (other - one).abs().max() <= 1e-5 * one.abs().max()
    assert detent.calibrate(after, [x[:1]], progress=False).samples == 1
    return graph, after


def two(activation: nn.Module, **second: Any) -> nn.Module:
    return nn.Sequential(conv(), activation, conv(6, 4, **second))


SHIFTED: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    # name: network, values that are shifted
    "silu": (lambda: two(nn.SiLU()), ("1",)),
    "gelu": (lambda: two(nn.GELU()), ("1",)),
    "gelu_tanh": (lambda: two(nn.GELU("tanh")), ("1",)),
    "hardswish": (lambda: two(nn.Hardswish()), ("1",)),
    "elu": (lambda: two(nn.ELU(0.5)), ("1",)),
    "celu": (lambda: two(nn.CELU(0.5)), ("1",)),
    "mish": (lambda: two(nn.Mish()), ("1",)),
    "leaky_relu": (lambda: two(nn.LeakyReLU(0.05)), ("1",)),
    "padded": (lambda: two(nn.SiLU(), padding=1), ("1",)),
    "padded_unevenly": (lambda: two(nn.SiLU(), kernel=(3, 1), padding=(1, 0), stride=2), ("1",)),
    "same_even_kernel": (lambda: two(nn.SiLU(), kernel=4, padding="same", dilation=2), ("1",)),
    "grouped": (lambda: nn.Sequential(conv(), nn.SiLU(), conv(6, 6, padding=1, groups=3, bias=False)), ("1",)),
    "depthwise": (lambda: nn.Sequential(conv(), nn.SiLU(), conv(6, 12, padding=1, groups=6)), ("1",)),
    "circular": (lambda: two(nn.SiLU(), padding=1, padding_mode="circular"), ("1",)),
    "zero_pad": (lambda: nn.Sequential(conv(), nn.SiLU(), nn.ZeroPad2d((1, 2, 0, 1)), conv(6, 4)), ("1",)),
    "flattened": (lambda: nn.Sequential(conv(), nn.SiLU(), nn.Flatten(), nn.Linear(216, 5)), ("1",)),
    "dropout": (lambda: nn.Sequential(conv(), nn.SiLU(), nn.Dropout(), nn.MaxPool2d(3, 2, 1), conv(6, 4, 1)), ("1",)),
    "averaged": (lambda: nn.Sequential(conv(), nn.SiLU(), nn.AvgPool2d(3, 2, 1), conv(6, 4, 1)), ("1",)),
    "averaged_uncounted": (
        lambda: nn.Sequential(conv(), nn.SiLU(), nn.AvgPool2d(3, 2, 1, count_include_pad=False), conv(6, 4, 1)),
        ("1",),
    ),
    "global_average": (
        lambda: nn.Sequential(conv(), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)),
        ("1",),
    ),
    "resized": (lambda: nn.Sequential(conv(), nn.SiLU(), nn.UpsamplingBilinear2d(scale_factor=2), conv(6, 4)), ("1",)),
    "transposed_pointwise": (
        lambda: nn.Sequential(conv(), nn.SiLU(), nn.ConvTranspose2d(6, 4, 1, groups=2)),
        ("1",),
    ),
    "written_silu": (
        lambda: Function(lambda x, a, b: b((y := a(x)) * torch.sigmoid(y)), a=conv(), b=conv(6, 4, padding=1)),
        ("mul",),
    ),
    "written_mish": (
        lambda: Function(lambda x, a, b: b(torch.tanh(F.softplus(y := a(x))) * y), a=conv(), b=conv(6, 4)),
        ("mul",),
    ),
    "two_readers": (
        lambda: Function(
            lambda x, a, b, c: (b(y := F.silu(a(x))), c(F.max_pool2d(y, 2))),
            a=conv(),
            b=conv(6, 4, padding=1),
            c=conv(6, 4, padding=1),
        ),
        ("silu",),
    ),
    "residual": (
        lambda: Function(lambda x, a, b: F.relu((y := F.silu(a(x))) + b(y)), a=conv(), b=conv(6, 6, padding=1)),
        ("silu",),
    ),
    "difference": (
        lambda: Function(
            lambda x, a, b: torch.sub(b(y := F.silu(a(x))), y, alpha=2), a=conv(), b=conv(6, 6, padding=1)
        ),
        ("silu",),
    ),
    "sum_of_two_shifted": (
        lambda: Function(
            lambda x, a, b, c: (y := F.silu(a(x))) + (z := F.gelu(b(x))) + c(y + z),
            a=conv(),
            b=conv(),
            c=conv(6, 6, padding=1),
        ),
        (),  # no layer reads either alone
    ),
    "sum_and_layers_of_two": (
        lambda: Function(
            lambda x, a, b, c, d: ((y := F.silu(a(x))) + (z := F.gelu(b(x))), c(y), d(z)),
            a=conv(),
            b=conv(),
            c=conv(6, 2, padding=1),
            d=conv(6, 2, 1),
        ),
        ("silu", "gelu"),
    ),
    "reused_layer": (
        lambda: Function(lambda x, a, b: b(F.silu(b(F.silu(a(x))))), a=conv(), b=conv(6, 6, padding=1)),
        ("silu", "silu:1"),
    ),
}


@pytest.mark.parametrize("name", SHIFTED)
def test_the_float_function_stays(name: str) -> None:
    build, values = SHIFTED[name]
    graph, after = shifted(build())
    done = [note for note in after.notes if note.startswith("shifted to unsigned codes")]
    assert len(done) == bool(values)
    points = place(after, IMX500).activations
    for value in values:
        assert f"{value} (by " in done[0]
        # The shifted value is quantized, without a sign; what it was before is inside the operator.
        assert points[f"{value}.shifted"].rule.signed is False
        assert value not in points
    assert set(points) == {f"{v}.shifted" if v in values else v for v in place(graph, IMX500).activations}


def test_bias_and_padding_in_numbers() -> None:
    _, after = shifted(two(nn.SiLU(), padding=1))
    (note,) = (n for n in after.notes if n.startswith("shifted"))
    shift = after.find("1.shifted").node.args[1]
    assert f"by {shift:.4g}" in note
    # At 8 bits the tail of SiLU is held to within a step.
    layer = after.find("2")
    step = float(note.split("threshold ")[1].rstrip(")")) / 256
    assert abs(shift - 0.2785) < step
    assert shift % step == 0
    assert layer.node.args[4] == [0, 0]
    assert after.find("2.pad").node.args[1:] == ([1, 1, 1, 1], shift)
    weight, bias = after.tensor(layer.weight).detach(), after.tensor(layer.bias).detach()
    graph, _, _ = calibrated(two(nn.SiLU(), padding=1))
    old = graph.tensor(graph.find("2").bias).detach()
    torch.testing.assert_close(bias, old - shift * weight.sum((1, 2, 3)), rtol=1e-6, atol=1e-7)


def test_a_shared_bias_is_left_to_its_other_readers() -> None:
    model = Function(lambda x, a, b: b(F.silu(b(a(x)))), a=conv(), b=conv(6, 6, padding=1))
    _, after = shifted(model)
    first, second = after.find("layers.b"), after.find("layers.b:1")
    assert first.bias.target != second.bias.target
    assert torch.equal(after.tensor(first.bias), model.layers["b"].bias)


def test_an_average_of_shifted_values_has_no_sign_either() -> None:
    _, after = shifted(SHIFTED["averaged"][0]())
    points = place(after, IMX500).activations
    assert points["2"].rule.signed is False
    assert "2.pad" not in points
    assert points["3"].rule.signed is None


KEPT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "returned": (
        lambda: Function(lambda x, a, b: (b(y := F.silu(a(x))), y), a=conv(), b=conv(6, 4)),
        "returns its out",
    ),
    "gated": (lambda: Function(lambda x, a, b: (y := F.silu(a(x))) * b(y), a=conv(), b=conv(6, 6, 1)), "mul follows"),
    "concatenated": (
        lambda: Function(lambda x, a, b: b(torch.cat([F.silu(a(x)), x[:, :, 1:7, 1:7]], 1)), a=conv(), b=conv(9, 4)),
        "cat ",
    ),
    "normed": (lambda: nn.Sequential(conv(), nn.SiLU(), nn.GroupNorm(2, 6), conv(6, 4)), "group_norm follows"),
    "activated": (lambda: nn.Sequential(conv(), nn.SiLU(), nn.ReLU(), conv(6, 4)), "relu follows"),
    "transposed": (
        lambda: nn.Sequential(conv(), nn.SiLU(), nn.ConvTranspose2d(6, 4, 3)),
        "transposed convolution",
    ),
    "ceil": (
        lambda: nn.Sequential(conv(), nn.SiLU(), nn.AvgPool2d(3, 2, 1, ceil_mode=True), conv(6, 4, 1)),
        "avg_pool follows",
    ),
    "computed_kernel": (
        lambda: Function(lambda x, a, b: F.conv2d(F.silu(a(x)), b.weight * x.mean()), a=conv(), b=conv(6, 4)),
        "computed by the network",
    ),
    "windows": (
        lambda: Function(lambda x, a, b: b(F.unfold(F.silu(a(x)), 3, padding=1).mT), a=conv(), b=nn.Linear(54, 4)),
        "follows",
    ),
    "only_summed": (lambda: Function(lambda x, a: F.silu(a(x)) + x.mean(), a=conv()), "no convolution or linear"),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_cannot_be_taken_back_is_left_alone(name: str) -> None:
    build, reason = KEPT[name]
    graph, after = shifted(build())
    assert after.fingerprint() == graph.fingerprint()
    assert any(reason in note for note in after.notes if note.startswith("not shifted to unsigned codes")), after.notes
    assert place(after, IMX500) == place(graph, IMX500)


def test_positive_values_need_no_shift_and_no_note() -> None:
    model = nn.Sequential(conv(), nn.ReLU(), conv(6, 6), nn.PReLU(init=-0.1), conv(6, 4, 1))
    torch.manual_seed(0)
    x = torch.randn(IMAGE)
    graph = capture(model.eval(), x)
    after = shift_negative(graph, detent.calibrate(graph, [x], progress=False), IMX500, QuantizationConfig())
    assert after.fingerprint() == graph.fingerprint()
    assert after.notes == graph.notes


@pytest.mark.parametrize(("ratio", "applies"), [(0.2785 / 8 - 1e-3, False), (0.2785 / 8 + 1e-3, True)])
def test_the_tail_may_be_this_part_of_the_threshold(ratio: float, applies: bool) -> None:
    """|min| / T <= ratio, with the least value SiLU can take, whatever was observed, and T found without a shift."""
    model = Function(lambda x, b: b(F.silu(x)), b=conv(3, 4))
    x = 7.4 * torch.rand(IMAGE) - 0.4  # SiLU(-0.4) = -0.16
    graph = capture(model.eval(), x)
    stats = detent.calibrate(graph, [x], progress=False)
    assert -0.17 < stats["silu"].minimum < -0.15
    plan = detent.plan(graph, stats, target="imx500")
    assert float(plan.activations["silu"].grid.threshold[0]) == 8.0
    after = shift_negative(graph, stats, IMX500, QuantizationConfig(shift_negative_ratio=ratio))
    assert (after.fingerprint() != graph.fingerprint()) == applies
    assert applies or "its negative tail is more than" in after.notes[-1]


def test_default_ratio_is_that_of_mct() -> None:
    assert QuantizationConfig().shift_negative_ratio == 0.05
    assert not QuantizationConfig().shift_negative


def test_where_the_tail_is_lost_anyway_the_sign_alone_goes() -> None:
    """GELU is never below -0.17: at a step of 1/2 that is zero, and the sign bit is worth a bit of resolution."""
    model = Function(lambda x, b: b(F.gelu(x)), b=conv(3, 4, padding=1))
    x = 200 * torch.rand(IMAGE) - 72
    graph = capture(model.eval(), x)
    stats = detent.calibrate(graph, [x], progress=False)
    after = shift_negative(graph, stats, IMX500, QuantizationConfig())
    assert "gelu (by 0, threshold 128)" in after.notes[-1]
    assert after.fingerprint() == graph.fingerprint()
    grids = [detent.plan(g, stats, target="imx500").activations["gelu"] for g in (graph, after)]
    assert [entry.grid.signed for entry in grids] == [True, False]
    assert grids[1].error < 0.5 * grids[0].error


def narrow_target(folder: Path, **activations: Any) -> str:
    path = folder / "narrow.json"
    rule = {"kind": "power_of_two", "bits": [4, 8], "signed": None, **activations}
    entry = {
        "schema_version": 1,
        "extends": "imx500",
        "name": "narrow",
        "version": "1",
        "description": "imx500 with other activations.",
        "sources": [],
        "defaults": {"weights": None, "bias_bits": None, "activations": rule, "input_bits": None},
        # What the target says about the widths of single operations is taken back.
        "ops": {name: {"activations": rule, "input_bits": None} for name in detent.load_target("imx500").ops},
    }
    path.write_text(json.dumps(entry), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("kind", ["power_of_two", "symmetric"])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_quantized_network_comes_closer(tmp_path: Path, kind: str, bits: int) -> None:
    target = narrow_target(tmp_path, kind=kind, bits=[bits])
    model = two(nn.SiLU(), padding=1)
    graph, stats, x = calibrated(model, scale=0.5)
    after = detent.transform(graph, stats, target=target, shift_negative=True, shift_negative_ratio=0.2)
    errors, activations = [], []
    for one in (graph, after):
        seen = detent.calibrate(one, [x], progress=False)
        plan = detent.plan(one, seen, target=target, bias_correction="analytic")
        activations.append(plan.activations["1.shifted" if one is after else "1"])
        with torch.no_grad():
            errors.append(float((detent.apply(one, plan)(x) - model(x)).square().mean()))
    assert activations[0].grid.signed
    assert not activations[1].grid.signed
    assert activations[1].error < 0.5 * activations[0].error
    assert errors[1] < errors[0]


@pytest.mark.parametrize(("threshold", "filling"), [(8.0, 0.25), (512.0, 0.0), (None, 0.25)])
def test_padding_follows_the_grid_of_an_edited_plan(threshold: float | None, filling: float) -> None:
    """The number around the image is the code that a zero of the activation gets, whatever the grid."""
    _, after = shifted(two(nn.SiLU(), padding=1))
    x = 3 * torch.randn(IMAGE)
    plan = detent.plan(after, detent.calibrate(after, [x], progress=False), target="imx500")
    assert after.find("2.pad").node.args[2] == 0.25
    grid = plan.activations["1.shifted"].grid
    edited = None if threshold is None else Grid.from_dict({**grid.to_dict(), "threshold": threshold})
    qmodel = detent.apply(after, plan.with_activation("1.shifted", edited))
    (pad,) = (n for n in qmodel.graph_module.graph.nodes if "constant_pad_nd" in str(n.target))
    assert pad.args[2] == filling


def test_targets_that_cannot_gain_are_refused(tmp_path: Path) -> None:
    model = two(nn.SiLU())
    graph, stats, x = calibrated(model, scale=0.5)
    for target, reason in (("default", "uniform activations"), ("tensorrt", "signed activations only")):
        with pytest.raises(ConfigError, match=reason) as caught:
            detent.transform(graph, stats, target=target, shift_negative=True)
        assert "where: 1" in str(caught.value)
        assert "power_of_two or symmetric" in str(caught.value)
        with pytest.raises(ConfigError, match=reason):  # before any calibration
            detent.transform(graph, target=target, shift_negative=True)
        with pytest.raises(ConfigError, match=reason):
            detent.quantize(model, [x], target=target, shift_negative=True, progress=False)
    with pytest.raises(ConfigError, match="depends on the target"):
        detent.transform(graph, stats, shift_negative=True)
    plain = nn.Sequential(conv(), nn.ReLU(), conv(6, 4))
    assert detent.quantize(plain, [x], target="default", shift_negative=True, progress=False)
    unsigned = narrow_target(tmp_path, signed=False)
    after = detent.transform(graph, stats, target=unsigned, shift_negative=True, shift_negative_ratio=1.0)
    assert "1.shifted" in after


def test_width_the_target_lacks_is_refused() -> None:
    graph, stats, _ = calibrated(two(nn.SiLU()))
    with pytest.raises(ConfigError, match="no 5-bit activations"):
        detent.transform(graph, stats, target="imx500", shift_negative=True, activation_bits=5)


def test_statistics_of_another_graph_are_refused() -> None:
    graph, _, _ = calibrated(two(nn.SiLU()))
    _, stats, _ = calibrated(two(nn.GELU()))
    with pytest.raises(ConfigError, match="another model"):
        shift_negative(graph, stats, IMX500, QuantizationConfig())


def test_from_one_call() -> None:
    torch.manual_seed(0)
    model = two(nn.SiLU(), padding=1)
    x = 3 * torch.randn(IMAGE)
    qmodel = detent.quantize(
        model, iter([x]), target="imx500", shift_negative=True, shift_negative_ratio=0.2, progress=False
    )
    assert any(note.startswith("shifted to unsigned codes: 1") for note in qmodel.notes)
    assert not qmodel.plan.activations["1.shifted"].grid.signed
    with torch.no_grad():
        assert float((qmodel(x) - model(x)).abs().max()) < 0.1
    np.testing.assert_array_equal(qmodel.plan.config["shift_negative_ratio"], 0.2)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("correction", ["none", "analytic"])
def test_rounding_kernels_does_not_meet_the_shift(bits: int, correction: str) -> None:
    """With activations in float, a network with coarse kernels computes the same whether its values are shifted."""
    build = SHIFTED["depthwise"][0] if bits == 4 else SHIFTED["transposed_pointwise"][0]
    model = build()
    graph, stats, x = calibrated(model)
    after = shift_negative(graph, stats, IMX500, QuantizationConfig(**ANY_TAIL))
    outputs = []
    for one in (graph, after):
        seen = detent.calibrate(one, [x], progress=False)
        options = {"weights_bits": bits, "bias_correction": correction, "tie_free": False}
        plan = detent.plan(one, seen, target="imx500", **options)
        assert set(plan.bias_corrections) == (set() if correction == "none" else {"0", "2"})
        for name in plan.activations:
            plan = plan.with_activation(name, None)
        with torch.no_grad():
            outputs.append(detent.apply(one, plan)(x))
    assert (outputs[0] - model(x)).abs().max() > 1e-2
    assert (outputs[1] - outputs[0]).abs().max() <= 1e-5 * outputs[0].abs().max()


def test_means_are_those_of_the_data_without_padding() -> None:
    graph, stats, x = calibrated(two(nn.SiLU(), padding=1))
    after = shift_negative(graph, stats, IMX500, QuantizationConfig(**ANY_TAIL))
    assert "2.pad" in after
    observed = values_to_observe(after, "imx500", QuantizationConfig(bias_correction="analytic"))
    assert "1.shifted" in observed
    assert "2.pad" not in observed
    found = []
    for one in (graph, after):
        seen = detent.calibrate(one, [x], progress=False)
        found.append(detent.plan(one, seen, target="imx500", bias_correction="analytic", tie_free=False))
    for layer in ("0", "2"):
        before, now = (plan.bias_corrections[layer].shift for plan in found)
        np.testing.assert_allclose(now, before, rtol=1e-3, atol=1e-5)
