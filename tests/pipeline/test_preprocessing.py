"""Raw input from the first call to the exported file: the record travels with graph, plan and model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import detent
from detent import Preprocessing
from detent.errors import CalibrationError, ConfigError, FormatError

RECORD = Preprocessing(
    scale=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25), dtype="uint8", layout="NCHW", resize={"size": (8, 8)}
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(384, 5)).eval()


def images(samples: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (samples, 3, 8, 8), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def graph() -> detent.Graph:
    return detent.capture(network(), images(2), preprocessing=RECORD)


@pytest.fixture(scope="module")
def plan(graph: detent.Graph) -> detent.QuantPlan:
    return detent.plan(graph, detent.calibrate(graph, images(), progress=False))


def test_one_call_and_the_steps_give_the_same(graph: detent.Graph, plan: detent.QuantPlan) -> None:
    qmodel = detent.quantize(network(), images(), preprocessing=RECORD, progress=False)
    assert qmodel.plan.to_json() == plan.to_json()
    stepwise = detent.apply(graph, plan)
    assert torch.equal(qmodel(images()), stepwise(images()))
    assert qmodel.preprocessing == stepwise.preprocessing == {"input": RECORD}
    prepared = torch.from_numpy(RECORD.normalize(images().numpy()))
    with torch.no_grad():
        wanted = network()(prepared)
        assert (qmodel(images()) - wanted).abs().max() < 0.03 * wanted.abs().max()


def test_raw_data_may_come_as_bytes_or_as_the_same_numbers(graph: detent.Graph) -> None:
    results = {
        detent.calibrate(graph, data, progress=False).to_bytes()
        for data in (images(), images().float(), [images()[:8], images()[8:].numpy()])
    }
    assert len(results) == 1
    with pytest.raises(CalibrationError, match="int8, the model takes float32") as caught:
        detent.calibrate(graph, images().to(torch.int8), progress=False)
    assert "uint8 or float32" in str(caught.value)


def test_the_plan_carries_it(graph: detent.Graph, plan: detent.QuantPlan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan.json")
    loaded = detent.QuantPlan.load(tmp_path / "plan.json")
    assert loaded.preprocessing == {"input": RECORD}
    again = detent.capture(network(), images(2), preprocessing=loaded.preprocessing)
    assert torch.equal(detent.apply(again, loaded)(images()), detent.apply(graph, plan)(images()))
    bare = detent.capture(network(), torch.zeros(2, 3, 8, 8))
    without = detent.plan(bare, detent.calibrate(bare, torch.randn(8, 3, 8, 8), progress=False))
    assert "preprocessing" not in json.loads(without.to_json())


def test_a_plan_with_another_record_is_refused(graph: detent.Graph, plan: detent.QuantPlan) -> None:
    with pytest.raises(ConfigError, match="the plan preprocesses this input by") as caught:
        detent.apply(graph, replace(plan, preprocessing={"input": Preprocessing(dtype="uint8")}))
    assert "'input'" in str(caught.value)
    with pytest.raises(ConfigError, match="preprocesses"):
        detent.apply(graph, replace(plan, preprocessing={}))
    damaged = json.loads(plan.to_json())
    damaged["preprocessing"]["input"]["std"] = [0.0, 1.0, 1.0]
    with pytest.raises(ConfigError, match="greater than 0") as caught:
        detent.QuantPlan.from_json(json.dumps(damaged), "plan.json")
    assert "plan.json: preprocessing: input: std.0" in str(caught.value)
    damaged["preprocessing"] = []
    with pytest.raises(FormatError, match="`preprocessing` must be an object"):
        detent.QuantPlan.from_json(json.dumps(damaged))


def test_a_saved_program_takes_raw_input_too(plan: detent.QuantPlan, tmp_path: Path) -> None:
    program = torch.export.export(
        network(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(program, tmp_path / "net.pt2")
    qmodel = detent.quantize(tmp_path / "net.pt2", images(), preprocessing=RECORD, progress=False)
    assert qmodel.plan.activation_grid("input") == plan.activation_grid("input")
    assert qmodel.plan.weights.keys() == plan.weights.keys()


def test_a_declared_range_is_the_grid() -> None:
    record = Preprocessing(range=(0.0, 1.0), mean=0.5, std=0.5)
    raw = torch.rand(20, 3, 8, 8) * 0.1
    limits = {}
    for target in ("default", "imx500", "tflite"):
        grid = detent.quantize(network(), raw, target=target, preprocessing=record, progress=False)
        found = grid.plan.activation_grid("input")
        assert found is not None
        limits[target] = float(found.limits[1][0])
    np.testing.assert_allclose([limits["default"], limits["tflite"]], 1, rtol=1e-6)
    assert limits["imx500"] < 0.2, "no power of two ends at 1 without losing half the codes: the data decide"


def test_operators_in_float_are_noted() -> None:
    record = Preprocessing(samplewise="mean_and_std", dtype="uint8")
    qmodel = detent.quantize(network(), images(), target="tensorrt", preprocessing=record, progress=False)
    assert any("raw input input is prepared in float here on tensorrt" in note for note in qmodel.notes)
    assert any("the standard deviation in float" in note for note in qmodel.notes)


def test_values_beyond_the_declared_range_are_noted() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    raw = (torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255).round().to(torch.uint8)
    for limits, noted in (((0, 100), True), ((0, 255), False)):
        record = detent.Preprocessing(scale=1 / 255, dtype="uint8", range=limits)
        plan = detent.quantize(model, raw, target="tflite", preprocessing=record, progress=False).plan
        assert any("beyond is clipped" in note for note in plan.notes) is noted
