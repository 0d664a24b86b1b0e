"""Concatenations that share their grid on request: which inputs take it, which do not, and what that changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import detent
from detent import edit
from detent.config import QuantizationConfig
from detent.errors import ConfigError
from detent.graph.placement import Placement
from detent.graph.policy import place_as_asked
from detent.targets import load_target
from tests.edit.networks import gated, images


class Dense(nn.Module):
    """Nested concatenations: inputs of ever other range, one of them pooled, one a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 1)
        self.right = nn.Conv2d(3, 4, 1)
        self.third = nn.Conv2d(3, 4, 1)
        self.last = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.cat([F.relu(self.left(x)), F.max_pool2d(3 * self.right(x), 1)], 1)
        return self.last(torch.cat([inner, torch.sigmoid(self.third(x))], 1))


class Awkward(nn.Module):
    """Everything that keeps an input on its own grid: an input of the network, a stored one, an output, a reader."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Conv2d(3, 4, 1)
        self.shown = nn.Conv2d(3, 4, 1)
        self.stored = nn.Parameter(torch.ones(1, 4, 6, 6))
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        read, shown = self.read(x), self.shown(x)
        joined = torch.cat([read, shown, self.stored.expand(x.shape[0], 4, 6, 6)], 1)
        return joined + 1.0, shown + 0.0 * self.last(F.max_pool2d(read, 1))


@pytest.fixture(scope="module")
def dense() -> detent.Graph:
    torch.manual_seed(0)
    return detent.capture(Dense().eval(), images(2))


def placed(graph: detent.Graph, target: str, wanted: bool = True, **options: object) -> Placement:
    config = QuantizationConfig(concat_threshold_update=wanted)
    return place_as_asked(graph, load_target(target), config, **options)


@pytest.mark.parametrize("target", ["default", "imx500"])
def test_inputs_take_the_grid_of_the_last_concatenation(dense: detent.Graph, target: str) -> None:
    points = placed(dense, target).activations
    assert {name for name, point in points.items() if point.same_as == "cat:1"} == {"relu", "right", "cat", "sigmoid"}
    assert points["cat:1"].members == ("cat:1",)
    assert points["sigmoid"].bounds is None
    assert all(point.same_as is None for point in placed(dense, target, wanted=False).activations.values())


def test_targets_that_ask_for_it_keep_their_own_way(dense: detent.Graph) -> None:
    for target in ("tflite", "onnxruntime"):
        asked = placed(dense, target, wanted=False)
        assert placed(dense, target).activations == asked.activations
        assert asked.activations["relu"].same_as == "cat:1"


def test_what_others_read_keeps_its_own_grid() -> None:
    torch.manual_seed(0)
    graph = detent.capture(Awkward().eval(), images(2))
    placement = placed(graph, "imx500")
    assert not [name for name, point in placement.activations.items() if point.same_as is not None]
    notes = [note for note in placement.notes if "keeps its own grid before cat" in note]
    assert len(notes) == 3
    assert any(note.startswith("read ") and "last reads it too" in note for note in notes)
    assert any(note.startswith("shown ") and "reads it too" in note for note in notes)
    assert any("stored, not computed" in note for note in notes)


def test_what_is_decided_already_stays(dense: detent.Graph) -> None:
    points = placed(dense, "imx500", own=["relu", "cat"]).activations
    assert points["relu"].same_as is None
    assert points["cat"].same_as is None
    assert points["right"].same_as == "cat"
    assert points["sigmoid"].same_as == "cat:1"


def test_nothing_is_requantized(dense: detent.Graph) -> None:
    """Rounding at the concatenations changes no value."""
    stats = detent.calibrate(dense, images(), progress=False)
    plan = detent.plan(dense, stats, target="imx500", concat_threshold_update=True)
    assert plan.activation_grid("relu") == plan.activation_grid("cat:1")
    qmodel = detent.apply(dense, plan)
    rounded = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            result = super().run_node(n)
            if n.target is torch.ops.detent.fake_quantize.default and n.args[0].name.startswith("cat"):
                rounded[n.args[0].name] = (self.env[n.args[0]], result)
            return result

    Recorder(qmodel.graph_module, garbage_collect_values=False).run(images(8), enable_io_processing=False)
    assert len(rounded) == 2
    assert all(torch.equal(before, after) for before, after in rounded.values())


def test_the_plan_is_saved_loaded_and_applied(dense: detent.Graph, tmp_path: Path) -> None:
    qmodel = detent.quantize(Dense().eval(), images(), concat_threshold_update=True, progress=False)
    qmodel.plan.save(tmp_path / "plan.json")
    plan = detent.QuantPlan.load(tmp_path / "plan.json")
    assert plan.config == {"concat_threshold_update": True}
    assert plan.activations["relu"].to_dict() == {"same_as": "cat:1"}
    stats = detent.calibrate(dense, images(), progress=False)
    plan = detent.plan(dense, stats, concat_threshold_update=True)
    assert torch.isfinite(detent.apply(dense, plan)(images(4))).all()
    # A person may take a value out again.
    data = json.loads(plan.to_json())
    data["activations"]["relu"] = {"grid": data["activations"]["cat:1"]["grid"]}
    edited = detent.QuantPlan.from_json(json.dumps(data))
    assert detent.apply(dense, edited).plan.activations["relu"].same_as is None


def test_rules_mean_the_shared_grid() -> None:
    graph = detent.capture(gated(), images(2))
    stats = detent.calibrate(graph, images(), progress=False)
    options = {"target": "default", "concat_threshold_update": True}
    wide = edit.rule(edit.name("features.1.act"), edit.activations(bits=16))
    plan = detent.plan(graph, stats, rules=[wide], **options)
    assert plan.activations["features.1.act"].same_as == "cat"
    assert plan.activation_grid("cat").bits == 16
    assert plan.activation_grid("features.0.act").bits == 8  # the second block reads it too
    narrow = edit.rule(edit.op("cat"), edit.activations(bits=4))
    with pytest.raises(ConfigError, match="share one grid"):
        detent.plan(graph, stats, rules=[wide, narrow], **options)
    apart = detent.plan(graph, stats, rules=[wide, narrow], target="default")
    assert apart.activation_grid("cat").bits == 4


def test_frozen_and_edited_entries_are_not_overwritten() -> None:
    graph = detent.capture(gated(), images(2))
    stats = detent.calibrate(graph, images(), progress=False)
    frozen = edit.rule(edit.name("features.1.act"), edit.activations(bits=5, freeze=True))
    earlier = detent.plan(graph, stats, rules=[frozen])
    plan = detent.plan(graph, stats, earlier=earlier, concat_threshold_update=True)
    assert plan.activations["features.1.act"] == earlier.activations["features.1.act"]
    assert any("features.1.act keeps its own grid before cat: the plan has decided it" in note for note in plan.notes)
    shared = detent.plan(graph, stats, concat_threshold_update=True)
    apart = shared.with_activation("features.1.act", shared.activation_grid("mix.1"))
    revised = detent.revise(graph, apart, stats, [edit.rule(edit.name("head"), edit.weights(bits=4))])
    assert revised.activations["features.1.act"].grid == shared.activation_grid("mix.1")
    kept = detent.revise(graph, shared, stats, [edit.rule(edit.name("head"), edit.weights(bits=4))])
    assert kept.activations == shared.activations
