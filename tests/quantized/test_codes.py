"""Codes in a plan are the codes of the model, bit for bit; they are trained from where they are, or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import detent
from detent.errors import ConfigError
from detent.records.codes import KernelCodes
from detent.records.tensor_plan import TensorPlan


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def graph(images: Tensor) -> detent.Graph:
    torch.manual_seed(0)
    return detent.capture(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)).eval(), images)


@pytest.fixture(scope="module")
def plan(graph: detent.Graph, images: Tensor) -> detent.QuantPlan:
    return detent.plan(graph, detent.calibrate(graph, images), target="onnxruntime")


def with_codes(plan: detent.QuantPlan, codes: np.ndarray, layer: str = "0") -> detent.QuantPlan:
    grid = plan.weights[layer].grid
    assert grid is not None
    entry = replace(plan.weights[layer], gain=None, codes=KernelCodes(codes=codes, method="gptq", grid=grid))
    return replace(plan, weights={**plan.weights, layer: entry})


@pytest.fixture(scope="module")
def coded(plan: detent.QuantPlan) -> detent.QuantPlan:
    return with_codes(plan, np.random.default_rng(3).integers(-100, 100, (8, 3, 3, 3)))


def test_the_model_holds_the_codes_of_the_plan(
    graph: detent.Graph, coded: detent.QuantPlan, images: Tensor, tmp_path: Path
) -> None:
    coded.save(tmp_path / "plan.json")
    qmodel = detent.apply(graph, detent.QuantPlan.load(tmp_path / "plan.json"))
    entry = coded.weights["0"].codes
    assert entry is not None
    assert np.array_equal(qmodel.state_dict()["graph_module.0.weight_codes"].numpy(), entry.codes)
    assert torch.equal(qmodel(images), detent.apply(graph, coded)(images))


def test_training_starts_from_them(graph: detent.Graph, coded: detent.QuantPlan, images: Tensor) -> None:
    trained = detent.apply(graph, coded, trainable=True)
    kernels = {name: value for name, value in trained.named_parameters() if name.endswith("weight_rounded")}
    (kernel,) = kernels.values()
    grid = coded.weights["0"].grid
    assert grid is not None
    assert torch.equal(torch.round(kernel / torch.from_numpy(grid.scale.copy()).view(-1, 1, 1, 1)), codes_of(coded))
    trained(images).square().sum().backward()
    assert kernel.grad is not None
    assert kernel.grad.abs().sum() > 0


def codes_of(plan: detent.QuantPlan) -> Tensor:
    entry: TensorPlan = plan.weights["0"]
    assert entry.codes is not None
    return torch.from_numpy(entry.codes.codes.astype(np.float32))


def test_another_grid_takes_its_codes_along(coded: detent.QuantPlan) -> None:
    grid = coded.weights["0"].grid
    assert coded.with_weight("0", grid).weights["0"].codes is None


def test_codes_of_another_shape_are_refused(graph: detent.Graph, plan: detent.QuantPlan) -> None:
    wrong = with_codes(plan, np.zeros((8, 27), int))
    with pytest.raises(ConfigError, match=r"kernel is \[8, 3, 3, 3\], its codes are \[8, 27\]") as caught:
        detent.apply(graph, wrong)
    assert caught.value.where == "0"


def test_activations_have_none(graph: detent.Graph, plan: detent.QuantPlan) -> None:
    name, entry = next((name, entry) for name, entry in plan.activations.items() if entry.grid is not None)
    assert entry.grid is not None
    codes = KernelCodes(codes=np.zeros(1, int), method="gptq", grid=entry.grid)
    wrong = replace(plan, activations={**plan.activations, name: replace(entry, codes=codes)})
    with pytest.raises(ConfigError, match="`codes` is for weights"):
        detent.apply(graph, wrong)
