"""Rules in plans: what is asked is what is planned and applied, in every stage behind the search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import detent
from detent import QuantizationConfig, edit
from detent.errors import ConfigError
from detent.exporters import verify_onnx
from detent.pipeline import further_passes
from detent.records.rules import Rule
from tests.edit.networks import gated, images

IN_16 = edit.rule(edit.op("silu"), edit.activations(bits=16))


@pytest.fixture(scope="module")
def graph() -> detent.Graph:
    return detent.capture(gated(), images(2))


@pytest.fixture(scope="module")
def stats(graph: detent.Graph) -> detent.Statistics:
    return detent.calibrate(graph, images(), progress=False)


def error(graph: detent.Graph, plan: detent.QuantPlan) -> float:
    with torch.no_grad():
        return float((detent.apply(graph, plan)(images()) - graph(images())).square().mean())


def bits(plan: detent.QuantPlan) -> dict[str, int | None]:
    found = {name: plan.activation_grid(name) for name in plan.activations}
    return {name: None if grid is None else grid.bits for name, grid in found.items()}


# ---- the use case MCT describes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [edit.op("silu"), edit.module("SiLU"), edit.name("*.act"), edit.regex("act$")])
def test_all_swish_outputs_to_16_bits(graph: detent.Graph, stats: detent.Statistics, where: edit.Filter) -> None:
    # Everything else has 16 bits or is in float, so that the error is that of the swish outputs.
    rest = [edit.rule(edit.everything(), edit.weights(keep_float=True), edit.activations(bits=16))]
    usual = detent.plan(graph, stats, rules=[*rest, edit.rule(edit.op("silu"), edit.activations(bits=4))])
    wide = detent.revise(graph, usual, stats, [edit.rule(where, edit.activations(bits=16))])
    swish = {"features.0.act", "features.1.act"}
    assert {name for name, width in bits(usual).items() if width != 16} == swish
    assert set(bits(wide).values()) == {16}
    assert {name for name in bits(usual) if wide.activations[name] != usual.activations[name]} == swish
    assert error(graph, wide) < 1e-3 * error(graph, usual)


def test_16_bits_run_in_onnxruntime(graph: detent.Graph, stats: detent.Statistics, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    for target, stored in (("onnxruntime", "UINT16"), ("default", "UINT16"), ("tflite", "INT16"), ("imx500", "INT16")):
        rules = [edit.rule(edit.everything(), edit.activations(bits=16))] if target == "tflite" else [IN_16]
        if target == "imx500":  # its kernels read 8 bits, its additions 16
            rules = [edit.rule(edit.name("twice:1"), edit.activations(bits=16))]
        qmodel = detent.apply(graph, detent.plan(graph, stats, target=target, rules=rules))
        path = detent.export(qmodel, tmp_path / f"{target}.onnx").path
        proto = onnx.load(path)
        assert proto.opset_import[0].version == 21
        types = {tensor.data_type for tensor in proto.graph.initializer}
        assert onnx.TensorProto.DataType.Value(stored) in types
        agreement = verify_onnx(path, qmodel, images())
        # A step of 16 bits is near the rounding error of a float32 sum: a code may be one off.
        assert agreement.largest_steps <= 1
        assert agreement.off_fraction < 0.02


# ---- what is asked is what is planned ------------------------------------------------------------------------------

SYMMETRIC = {"kind": "symmetric", "bits": 4, "signed": True, "narrow_range": True}


def grid_of(plan: detent.QuantPlan, name: str) -> dict[str, Any]:
    entry = plan.weights[name] if name in plan.weights else plan.activations[name]
    assert entry.grid is not None
    return entry.grid.to_dict()


def test_each_option_of_weights(graph: detent.Graph, stats: detent.Statistics) -> None:
    rules = [
        edit.rule(edit.first(), edit.weights(bits=4)),
        edit.rule(edit.position(1, 2), edit.weights(kind="power_of_two", metric="noclipping")),
        edit.rule(edit.name("mix.0"), edit.weights(threshold=0.25)),
        edit.rule(edit.name("head"), edit.weights(keep_float=True)),
        edit.rule(edit.name("twice"), edit.weights(threshold=[0.5, 1, 2, 3, 4, 5])),
    ]
    plan = detent.plan(graph, stats, rules=rules)
    usual = detent.plan(graph, stats)
    assert grid_of(plan, "features.0.conv")["bits"] == 4
    second = plan.weights["features.1.conv"]
    assert second.metric == "noclipping"
    assert second.grid is not None
    assert second.grid.kind == "power_of_two"
    largest = graph.tensor(graph.find("features.1.conv").weight).detach().abs().amax((1, 2, 3)).numpy()
    assert np.all(second.grid.threshold >= largest * (1 - 1 / 128))
    assert grid_of(plan, "mix.0")["threshold"] == [0.25] * 6
    assert plan.weights["head"].grid is None
    assert grid_of(plan, "twice")["threshold"] == [0.5, 1, 2, 3, 4, 5]
    assert plan.activations == usual.activations
    detent.apply(graph, plan)


def test_each_option_of_activations(graph: detent.Graph, stats: detent.Statistics) -> None:
    own = detent.Grid.from_dict({"kind": "uniform", "bits": 7, "signed": False, "lower": -1.0, "upper": 3.0})
    rules = [
        edit.rule(edit.op("input"), edit.activations(lower=-2.0, upper=2.0)),
        edit.rule(edit.name("features.0.act"), edit.activations(metric="lp", p=4.0)),
        edit.rule(edit.name("features.1.act"), edit.activations(z_threshold=1.5)),
        edit.rule(edit.op("cat"), edit.activations(keep_float=True)),
        edit.rule(edit.name("add"), edit.activations(grid=own)),
        edit.rule(edit.op("sigmoid"), edit.activations(metric="mse")),
    ]
    plan, usual = detent.plan(graph, stats, rules=rules), detent.plan(graph, stats)
    assert (grid_of(plan, "x")["lower"], grid_of(plan, "x")["upper"]) == (-2.0, 2.0)
    alone = detent.plan(graph, stats, activation_metric="lp", p=4.0)
    assert plan.activations["features.0.act"] == alone.activations["features.0.act"]
    alone = detent.plan(graph, stats, z_threshold=1.5)
    assert plan.activations["features.1.act"] == alone.activations["features.1.act"]
    assert plan.activations["features.1.act"] != usual.activations["features.1.act"]
    assert plan.activations["cat"].grid is None
    assert plan.activations["add"].grid == own
    assert usual.activations["sigmoid"].metric == "analytic range"
    assert plan.activations["sigmoid"].metric == "mse"
    detent.apply(graph, plan)


def test_codebooks_and_groups_for_single_kernels(graph: detent.Graph, stats: detent.Statistics) -> None:
    rules = [
        edit.rule(edit.name("mix.0"), edit.weights(bits=4, group_size=4)),
        edit.rule(edit.name("twice"), edit.weights(bits=4, kind="lut")),
    ]
    plan = detent.plan(graph, stats, rules=rules)
    grouped = detent.plan(graph, stats, weights_bits=4, weights_group_size=4)
    codebooks = detent.plan(graph, stats, weights_bits=4, weights_grid="lut", tie_free=False)
    assert plan.weights["mix.0"].grid == grouped.weights["mix.0"].grid
    assert plan.weights["mix.0"].grid.group_size == 4
    assert np.array_equal(plan.weights["twice"].grid.table, codebooks.weights["twice"].grid.table)
    assert plan.weights["head"].grid.kind == "symmetric"
    detent.apply(graph, plan)
    # A rule brings a single kernel back from what all others have.
    back = edit.rule(edit.op("linear"), edit.weights(kind="symmetric", bits=8))
    mixed = detent.plan(graph, stats, weights_bits=4, weights_grid="lut", rules=[back])
    assert {name: entry.grid.kind for name, entry in mixed.weights.items() if entry.grid.kind != "lut"} == {
        "head": "symmetric"
    }


def test_a_threshold_set_by_hand_is_applied_as_it_is(graph: detent.Graph, stats: detent.Statistics) -> None:
    rule = edit.rule(edit.name("features.1.conv"), edit.weights(threshold=0.3))
    plan = detent.plan(graph, stats, target="onnxruntime", rules=[rule])
    assert np.all(plan.weights["features.1.conv"].grid.threshold == np.float32(0.3))  # not moved away from ties
    unmoved = detent.plan(graph, stats, target="onnxruntime", rules=[rule], tie_free=False)
    assert plan.weights["features.1.conv"] == unmoved.weights["features.1.conv"]
    assert plan.weights["features.0.conv"] != unmoved.weights["features.0.conv"]


def test_frozen_kernels_are_left_alone_by_later_stages(graph: detent.Graph, stats: detent.Statistics) -> None:
    rule = edit.rule(edit.scope("features"), edit.weights(bits=4, freeze=True))
    plan = detent.plan(graph, stats, rules=[rule], bias_correction="analytic")
    searched = detent.plan(graph, stats, rules=[rule], tie_free=False)
    for layer in ("features.0.conv", "features.1.conv"):
        assert plan.weights[layer].frozen
        assert plan.weights[layer] == searched.weights[layer]
        assert layer not in plan.bias_corrections
    assert "head" in plan.bias_corrections
    measured = detent.correct_biases(graph, plan, images(), samples=64)
    assert not {"features.0.conv", "features.1.conv"} & set(measured.bias_corrections)


def test_later_rules_win(graph: detent.Graph, stats: detent.Statistics) -> None:
    rules = [
        edit.rule(edit.everything(), edit.weights(bits=4), edit.activations(bits=4)),
        edit.rule(edit.op("linear"), edit.weights(bits=8)),
        edit.rule(edit.op("silu") | edit.op("input"), edit.activations(bits=8)),
    ]
    plan = detent.plan(graph, stats, rules=rules)
    assert {name: entry.grid.bits for name, entry in plan.weights.items() if entry.grid.bits == 8} == {"head": 8}
    assert {name for name, width in bits(plan).items() if width == 8} == {"x", "features.0.act", "features.1.act"}
    back = detent.plan(graph, stats, rules=[*rules, edit.rule(edit.everything(), edit.activations(bits=4))])
    assert set(bits(back).values()) == {4}


def test_the_output_of_a_fused_layer_is_that_of_its_last_operation(
    graph: detent.Graph, stats: detent.Statistics
) -> None:
    plan = detent.plan(graph, stats, rules=[edit.rule(edit.name("mix.0"), edit.activations(bits=5))])
    assert {name for name, width in bits(plan).items() if width == 5} == {"mix.1"}


# ---- grids that several tensors share ------------------------------------------------------------------------------


def test_what_shares_a_grid_follows(graph: detent.Graph, stats: detent.Statistics) -> None:
    plan = detent.plan(graph, stats, target="onnxruntime")
    assert plan.activations["features.0.act"].same_as == "cat"
    for name in ("features.0.act", "cat"):
        wide = detent.plan(
            graph, stats, target="onnxruntime", rules=[edit.rule(edit.name(name), edit.activations(bits=16))]
        )
        assert {name for name, width in bits(wide).items() if width == 16} == {
            "features.0.act",
            "features.1.act",
            "cat",
        }
        detent.apply(graph, wide)
    floating = detent.plan(
        graph, stats, target="onnxruntime", rules=[edit.rule(edit.op("cat"), edit.activations(keep_float=True))]
    )
    assert bits(floating)["features.0.act"] is None
    detent.apply(graph, floating)


def test_different_things_for_one_grid_are_refused(graph: detent.Graph, stats: detent.Statistics) -> None:
    first = edit.rule(edit.name("features.0.act"), edit.activations(bits=16))
    second = edit.rule(edit.name("features.1.act"), edit.activations(bits=8))
    with pytest.raises(ConfigError, match="share one grid") as caught:
        detent.plan(graph, stats, target="onnxruntime", rules=[first, second])
    assert caught.value.where == "cat"
    assert repr(first) in str(caught.value)
    assert repr(second) in str(caught.value)
    same = edit.rule(edit.name("features.1.act"), edit.activations(bits=16, metric="mae"))
    both = detent.plan(graph, stats, target="onnxruntime", rules=[first, same])
    assert (bits(both)["cat"], both.activations["cat"].metric) == (16, "mae")
    # A later rule for a tensor that the earlier one means too wins for the whole grid.
    everything = edit.rule(edit.everything(), edit.activations(bits=8))
    assert bits(detent.plan(graph, stats, target="onnxruntime", rules=[everything, first]))["cat"] == 16
    settled = edit.rule(edit.op("silu"), edit.activations(bits=8))
    assert bits(detent.plan(graph, stats, target="onnxruntime", rules=[first, settled, second]))["cat"] == 8


def test_a_shared_kernel_is_one_tensor(graph: detent.Graph, stats: detent.Statistics) -> None:
    plan = detent.plan(graph, stats, rules=[edit.rule(edit.name("twice:1"), edit.weights(bits=4))])
    assert plan.weights["twice"].grid.bits == 4
    rules = [edit.rule(edit.name(name), edit.weights(bits=width)) for name, width in (("twice", 4), ("twice:1", 8))]
    with pytest.raises(ConfigError, match="share one grid"):
        detent.plan(graph, stats, rules=rules)


# ---- saving, planning again, revising ------------------------------------------------------------------------------


def test_rules_are_saved_with_the_plan(graph: detent.Graph, stats: detent.Statistics, tmp_path: Path) -> None:
    frozen = edit.rule(edit.op("linear"), edit.weights(keep_float=True, freeze=True))
    plan = detent.plan(graph, stats, rules=[IN_16, frozen])
    plan.save(tmp_path / "plan.json")
    restored = detent.QuantPlan.load(tmp_path / "plan.json")
    assert restored == plan
    assert restored.rules == (IN_16, frozen)
    data = json.loads((tmp_path / "plan.json").read_text())
    assert data["rules"][0] == {"where": {"op": "silu"}, "activations": {"bits": 16}}
    assert data["weights"]["head"] == {"grid": "float", "frozen": True}
    del data["rules"]  # a plan written before there were rules
    assert detent.QuantPlan.from_json(json.dumps(data)).rules == ()
    data["rules"] = [{"where": {"op": "silo"}, "activations": {"bits": 16}}]
    with pytest.raises(ConfigError, match="did you mean 'silu'") as caught:
        detent.QuantPlan.from_json(json.dumps(data))
    assert caught.value.where == "plan: rules: rule 1"


def test_planning_anew_takes_over_what_is_frozen(graph: detent.Graph, stats: detent.Statistics) -> None:
    rules = [
        edit.rule(edit.op("linear"), edit.weights(bits=4, freeze=True)),
        edit.rule(edit.name("features.0.act"), edit.activations(bits=16, metric="mae", freeze=True)),
    ]
    earlier = detent.plan(graph, stats, rules=rules, bias_correction="analytic")
    plan = detent.plan(graph, stats, weights_metric="mae", activation_metric="kl", earlier=earlier)
    fresh = detent.plan(graph, stats, weights_metric="mae", activation_metric="kl")
    assert plan.weights["head"] == earlier.weights["head"]
    assert plan.activations["features.0.act"] == earlier.activations["features.0.act"]
    assert plan.weights["mix.0"] == fresh.weights["mix.0"]
    assert plan.activations["add"] == fresh.activations["add"]
    # The rules that froze it may be given again; others that change it may not.
    assert detent.plan(graph, stats, earlier=earlier, rules=rules).weights["head"] == earlier.weights["head"]
    with pytest.raises(ConfigError, match="frozen") as caught:
        detent.plan(graph, stats, earlier=earlier, rules=[edit.rule(edit.op("linear"), edit.weights(bits=8))])
    assert caught.value.where == "head"


def test_revising_changes_what_rules_mean_and_keeps_hand_edits(graph: detent.Graph, stats: detent.Statistics) -> None:
    metric = edit.rule(edit.op("silu"), edit.activations(metric="mae"))
    made = detent.plan(graph, stats, rules=[metric], bias_correction="analytic")
    text = json.loads(made.to_json())
    text["activations"]["add"]["grid"]["upper"] = 1.5
    text["weights"]["mix.0"]["grid"]["threshold"][0] = 0.75
    edited = detent.QuantPlan.from_json(json.dumps(text))
    revised = detent.revise(graph, edited, stats, [IN_16, edit.rule(edit.first(), edit.weights(bits=4))])
    touched = {"features.0.act", "features.1.act"}
    assert {name for name in bits(revised) if revised.activations[name] != edited.activations[name]} == touched
    assert {name for name in revised.weights if revised.weights[name] != edited.weights[name]} == {"features.0.conv"}
    assert revised.weights["mix.0"].grid.threshold[0] == 0.75
    # The plan's own rule still holds for what the new one leaves open.
    assert all((revised.activations[name].metric, bits(revised)[name]) == ("mae", 16) for name in touched)
    assert revised.rules == (metric, IN_16, edit.rule(edit.first(), edit.weights(bits=4)))
    changed = {
        name
        for name, correction in revised.bias_corrections.items()
        if not np.array_equal(correction.shift, edited.bias_corrections[name].shift)
    }
    assert changed == {"features.0.conv"}
    assert error(graph, revised) < 0.1
    assert detent.revise(graph, edited, stats, []) == edited


def test_revising_drops_measured_corrections_of_what_changes(graph: detent.Graph, stats: detent.Statistics) -> None:
    plain = detent.plan(graph, stats, weights_bits=4, bias_correction="none")
    plan = detent.correct_biases(graph, plain, images(), samples=64)
    assert "head" in plan.bias_corrections
    revised = detent.revise(graph, plan, stats, [edit.rule(edit.op("linear"), edit.weights(bits=8))])
    assert set(revised.bias_corrections) == set(plan.bias_corrections) - {"head"}
    assert any("correction of head" in note for note in revised.notes)


def test_revising_respects_what_is_frozen(graph: detent.Graph, stats: detent.Statistics) -> None:
    plan = detent.plan(graph, stats, rules=[edit.rule(edit.op("silu"), edit.activations(freeze=True))])
    with pytest.raises(ConfigError, match="frozen") as caught:
        detent.revise(graph, plan, stats, [IN_16])
    assert caught.value.where in ("features.0.act", "features.1.act")
    assert (
        detent.revise(graph, plan, stats, [edit.rule(edit.everything(), edit.activations(bits=8))]).activations
        == plan.activations
    )


def test_one_call_takes_rules() -> None:
    qmodel = detent.quantize(gated(), images(), rules=[IN_16], progress=False)
    assert bits(qmodel.plan)["features.0.act"] == 16
    assert qmodel.plan.rules == (IN_16,)


# ---- what is refused, with the rule, the layer and what is allowed -----------------------------------------------

UNIFORM = detent.Grid.from_dict({"kind": "uniform", "bits": 8, "signed": False, "lower": 0.0, "upper": 1.0})
KERNEL = detent.Grid.from_dict({**SYMMETRIC, "bits": 8, "threshold": [1.0, 1.0], "axis": 0})
REFUSED: list[tuple[str, Rule, str | None, str]] = [
    ("default", edit.rule(edit.name("nowhere"), edit.weights(bits=4)), None, "matches nothing"),
    ("default", edit.rule(edit.op("silu"), edit.weights(bits=4)), "features.0.act, features.1.act", "has weights"),
    ("default", edit.rule(edit.name("mix.1") & edit.op("conv"), edit.weights(bits=4)), None, "matches nothing"),
    ("imx500", edit.rule(edit.op("linear"), edit.weights(bits=3)), "head", "choose among 2, 4, 8"),
    ("imx500", edit.rule(edit.op("mean"), edit.activations(bits=16)), "mean", "choose among 8"),
    ("imx500", edit.rule(edit.op("silu"), edit.activations(bits=16)), "features.0.act", "features.1.conv reads 8 bits"),
    ("tflite", edit.rule(edit.op("add"), edit.activations(bits=16)), "twice:1", "the width of its output"),
    (
        "imx500",
        edit.rule(edit.op("linear"), edit.weights(kind="uniform")),
        "head",
        "choose among symmetric, power_of_two",
    ),
    ("default", edit.rule(edit.op("add"), edit.activations(kind="symmetric")), "add", "choose among uniform"),
    ("imx500", edit.rule(edit.op("add"), edit.activations(threshold=3.0)), "add", "use 4"),
    ("default", edit.rule(edit.op("add"), edit.activations(threshold=4.0)), "add", "`lower` and `upper`"),
    ("imx500", edit.rule(edit.op("add"), edit.activations(lower=0.0, upper=1.0)), "add", "takes `threshold`"),
    ("default", edit.rule(edit.op("linear"), edit.weights(threshold=[1.0, 2.0])), "head", "5 channels"),
    ("imx500", edit.rule(edit.op("add"), edit.activations(threshold=[1.0, 2.0])), "add", "one number"),
    ("tflite", edit.rule(edit.op("sigmoid"), edit.activations(metric="mse")), "sigmoid", "prescribes step"),
    ("tflite", edit.rule(edit.op("add"), edit.activations(grid=UNIFORM)), "add", "signed=True"),
    ("imx500", edit.rule(edit.op("add"), edit.activations(grid=UNIFORM)), "add", "choose among power_of_two"),
    ("default", edit.rule(edit.op("linear"), edit.weights(grid=KERNEL)), "head", "5 channels, the grid 2"),
    ("imx500", edit.rule(edit.op("linear"), edit.weights(grid=KERNEL)), "head", "narrow_range=False"),
    ("default", edit.rule(edit.op("add"), edit.activations(metric="lp", p=0.5)), "add", "at least 1"),
    ("default", edit.rule(edit.op("add"), edit.activations(kind="lut")), "add", "choose among uniform"),
    ("imx500", edit.rule(edit.op("linear"), edit.weights(kind="lut")), "head", "choose among symmetric"),
    ("imx500", edit.rule(edit.op("linear"), edit.weights(group_size=3)), "head", "one step a channel"),
    ("default", edit.rule(edit.op("linear"), edit.weights(group_size=4)), "head", "does not divide the 6 input"),
    ("default", edit.rule(edit.op("linear"), edit.weights(kind="lut", bits=8)), "head", "choose among 2, 3, 4"),
]


@pytest.mark.parametrize(("target", "rule", "where", "message"), REFUSED, ids=[f"{t}-{m}" for t, _, _, m in REFUSED])
def test_what_cannot_be_carried_out_names_rule_layer_and_remedy(
    graph: detent.Graph, stats: detent.Statistics, target: str, rule: Rule, where: str | None, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        detent.plan(graph, stats, target=target, rules=[rule])
    assert message in str(caught.value)
    assert repr(rule) in str(caught.value)
    assert caught.value.where == where
    assert caught.value.remedy


class Pooled(nn.Module):
    """A convolution, then an operation that only moves values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.conv(x))


def test_an_operation_that_moves_values_has_no_grid_of_its_own() -> None:
    torch.manual_seed(0)
    graph = detent.capture(Pooled().eval(), images(2))
    stats = detent.calibrate(graph, images(), progress=False)
    with pytest.raises(ConfigError, match=r"only move values(.|\n)*conv"):
        detent.plan(graph, stats, rules=[edit.rule(edit.op("max_pool"), edit.activations(bits=4))])
    plan = detent.plan(graph, stats, rules=[edit.rule(edit.everything(), edit.activations(bits=4))])
    assert bits(plan) == {"x": 4, "conv": 4}
    with pytest.raises(ConfigError, match="pool reads 8 bits"):
        detent.plan(graph, stats, target="imx500", rules=[edit.rule(edit.op("conv"), edit.activations(bits=16))])


def test_a_plan_edited_to_widths_that_a_reader_does_not_take_is_refused(
    graph: detent.Graph, stats: detent.Statistics
) -> None:
    data = json.loads(detent.plan(graph, stats, target="imx500").to_json())
    data["activations"]["x"]["grid"].update(bits=16, signed=True)
    with pytest.raises(ConfigError, match="offers 8 bits"):
        detent.apply(graph, detent.QuantPlan.from_json(json.dumps(data)))
    data = json.loads(detent.plan(graph, stats, target="imx500").to_json())
    data["activations"]["features.0.act"]["grid"].update(bits=16, signed=True)
    with pytest.raises(ConfigError, match="reads 8 bits") as caught:
        detent.apply(graph, detent.QuantPlan.from_json(json.dumps(data)))
    assert caught.value.where == "features.0.act"


@pytest.mark.parametrize("rules", ["rules.json", 3, IN_16, [{"where": {"op": "silu"}}]])
def test_rules_are_a_list_of_rules(graph: detent.Graph, stats: detent.Statistics, rules: Any) -> None:
    with pytest.raises(ConfigError, match="`rules`"):
        detent.plan(graph, stats, rules=rules)


def test_plans_and_statistics_of_another_graph_are_refused(graph: detent.Graph, stats: detent.Statistics) -> None:
    other = detent.capture(Pooled().eval(), images(2))
    plan = detent.plan(other, detent.calibrate(other, images(), progress=False))
    with pytest.raises(ConfigError, match="another model"):
        detent.plan(graph, stats, earlier=plan)
    with pytest.raises(ConfigError, match="another model"):
        detent.revise(graph, plan, stats, [IN_16])
    with pytest.raises(ConfigError, match="collected from another model"):
        detent.revise(other, plan, stats, [IN_16])


def test_one_kernel_may_suit_the_output_of_its_layer(graph: detent.Graph, stats: detent.Statistics) -> None:
    moments = detent.collect_moments(graph, images(), progress=False)
    rule = edit.rule(edit.name("head"), edit.weights(metric="output"))
    options = {"weights_metric": "mse", "gain_correction": "none"}
    plan = detent.plan(graph, stats, rules=[rule], moments=moments, **options)
    usual = detent.plan(graph, stats, moments=moments, **options)
    assert {layer for layer, entry in plan.weights.items() if entry.metric == "output"} == {"head"}
    assert plan.weights["head"].grid != usual.weights["head"].grid
    assert further_passes(graph, "default", QuantizationConfig(**options), [rule]).moments
    assert not further_passes(graph, "default", QuantizationConfig(**options)).moments
    with pytest.raises(ConfigError, match="collect_moments"):
        detent.plan(graph, stats, rules=[rule], **options)
    with pytest.raises(ConfigError, match=r"edit\.weights"):
        detent.plan(graph, stats, rules=[edit.rule(edit.op("silu"), edit.activations(metric="output"))])
