"""Moments of layers' inputs: right, deterministic, bounded; saved and loaded; refused when they do not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import detent
from detent.errors import CalibrationError, ConfigError, FormatError
from detent.kernels.threads import num_threads, set_num_threads
from detent.records.moments import InputMoments
from detent.statistics import moments as module


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.Flatten(), nn.Linear(8 * 16, 5)
    ).eval()


@pytest.fixture
def data() -> torch.Tensor:
    return torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def test_moments_are_those_of_all_patches(data: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LEAST_PATCHES", 5000)
    graph = detent.capture(network(), data[:2])
    found = detent.collect_moments(graph, [data], samples=40)
    assert list(found) == ["0", "2", "4"]
    assert found.samples == 40
    with torch.no_grad():
        hidden = torch.relu(nn.functional.conv2d(data, *_parameters(graph, "0")))
    for name, x, groups in (("0", data, 1), ("2", hidden, 4)):
        unfolded = nn.functional.unfold(x, 3, padding=1 if name == "0" else 0)
        patches = unfolded.transpose(1, 2).reshape(-1, groups, unfolded.shape[1] // groups).double().numpy()
        layer = found[name]
        assert layer.count == len(patches)
        wanted = np.einsum("rgi,rgj->gij", patches, patches) / len(patches)
        np.testing.assert_allclose(layer.second(central=False)[:, 0], wanted, rtol=1e-4, atol=1e-5)
        mean = patches.mean(axis=0)
        np.testing.assert_allclose(
            layer.second(central=True)[:, 0], wanted - mean[:, :, None] * mean[:, None], rtol=1e-4, atol=1e-4
        )


def _parameters(graph: detent.Graph, name: str) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    layer = graph.find(name)
    assert layer.weight is not None
    assert layer.bias is not None
    return graph.tensor(layer.weight), graph.tensor(layer.bias), 1, 1


def test_forms_are_mean_products_of_outputs(data: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = detent.capture(network(), data[:2])
    moments = detent.collect_moments(graph, data)
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 1, 7, 128)).astype(np.float32)
    matrix = moments["4"].second(central=True)[0, 0]
    found = moments.forms(["4"], central=True).of(a, b)
    np.testing.assert_allclose(found[0], np.einsum("ni,ij,nj->n", a[0], matrix, b[0]), rtol=1e-3, atol=1e-3)
    # Cut into blocks, what is between blocks is left out.
    monkeypatch.setattr(module, "_LONGEST_BLOCK", 50)
    cut = detent.collect_moments(graph, data)
    assert cut["4"].products.shape == (1, 3, 43, 43)
    inside = np.equal.outer(np.arange(128) // 43, np.arange(128) // 43)
    found = cut.forms(["4"], central=True).of(a, b)
    np.testing.assert_allclose(found[0], np.einsum("ni,ij,nj->n", a[0], matrix * inside, b[0]), rtol=1e-3, atol=1e-3)


def test_forms_of_a_kernel_with_several_users_weigh_their_patches(data: torch.Tensor) -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(data.shape[1], data.shape[1], 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.conv(x).relu())

    torch.manual_seed(0)
    graph = detent.capture(Twice().eval(), data[:2])
    moments = detent.collect_moments(graph, data)
    first, second = moments
    size = moments[first].sums.shape[-1]
    row = np.random.default_rng(0).normal(size=(1, 1, size)).astype(np.float32)
    for central in (False, True):
        apart = [float(moments.forms([name], central=central).of(row, row)[0, 0]) for name in (first, second)]
        counts = [moments[name].count for name in (first, second)]
        together = float(moments.forms([first, second], central=central).of(row, row)[0, 0])
        assert together == pytest.approx(np.average(apart, weights=counts), rel=1e-4)
    assert moments.forms([first, "elsewhere"], central=True).of(row, row)[0, 0] == apart[0]


def test_the_same_bits_for_any_batches_and_threads(data: torch.Tensor) -> None:
    graph = detent.capture(network(), data[:2])
    whole = detent.collect_moments(graph, data).to_bytes()
    before, of_torch = num_threads(), torch.get_num_threads()
    try:
        set_num_threads(3)
        assert detent.collect_moments(graph, list(data.split(7))).to_bytes() == whole
        torch.set_num_threads(1)
        assert detent.collect_moments(graph, data).to_bytes() == whole
    finally:
        set_num_threads(before)
        torch.set_num_threads(of_torch)
    assert detent.collect_moments(graph, data, samples=20).to_bytes() != whole


def test_many_positions_are_sampled_by_the_seed(monkeypatch: pytest.MonkeyPatch, data: torch.Tensor) -> None:
    monkeypatch.setattr(module, "_LEAST_PATCHES", 100)
    monkeypatch.setattr(module, "_PATCHES_PER_ELEMENT", 4)
    graph = detent.capture(network(), data[:2])
    found = detent.collect_moments(graph, data)
    assert 108 <= found["0"].count < 200
    assert found.to_bytes() == detent.collect_moments(graph, data).to_bytes()
    assert found.to_bytes() != detent.collect_moments(graph, data, seed=1).to_bytes()


def test_saved_and_loaded(data: torch.Tensor, tmp_path) -> None:
    graph = detent.capture(network(), data[:2])
    found = detent.collect_moments(graph, data)
    found.save(tmp_path / "m.safetensors")
    assert InputMoments.load(tmp_path / "m.safetensors").to_bytes() == found.to_bytes()
    assert (
        InputMoments.load(tmp_path / "m.safetensors") == found != detent.collect_moments(graph, data, seed=1, samples=9)
    )
    raw = bytearray((tmp_path / "m.safetensors").read_bytes())
    raw[-3] ^= 1
    (tmp_path / "m.safetensors").write_bytes(bytes(raw))
    with pytest.raises(FormatError, match="changed"):
        InputMoments.load(tmp_path / "m.safetensors")
    detent.calibrate(graph, data, progress=False).save(tmp_path / "s.safetensors")
    with pytest.raises(FormatError, match=r"detent\.statistics"):
        InputMoments.load(tmp_path / "s.safetensors")


def test_what_does_not_fit_is_refused(data: torch.Tensor) -> None:
    graph = detent.capture(network(), data[:2])
    stats = detent.calibrate(graph, data, progress=False)
    with pytest.raises(ConfigError, match="collect_moments"):
        detent.plan(graph, stats, weights_metric="output")
    with pytest.raises(ConfigError, match="collect_moments"):
        detent.plan(graph, stats, gain_correction="least_squares")
    torch.manual_seed(5)
    other = detent.capture(nn.Sequential(nn.Conv2d(3, 8, 3)), data[:2])
    with pytest.raises(ConfigError, match="another model"):
        detent.plan(graph, stats, weights_metric="output", moments=detent.collect_moments(other, data))
    with pytest.raises(ConfigError, match="InputMoments"):
        detent.plan(graph, stats, weights_metric="output", moments={})
    data[3, 0, 0, 0] = float("nan")
    with pytest.raises(CalibrationError, match="NaN"):
        detent.collect_moments(graph, data)


@pytest.mark.parametrize(
    "behind",
    [
        lambda: nn.Conv2d(8, 4, 3, padding=1),
        lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8),
        lambda: nn.Conv2d(8, 4, 3, groups=2),
    ],
)
def test_what_a_rewrite_added_to_the_input_does_not_count(data: torch.Tensor, behind) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), behind()).eval()
    graph = detent.capture(model, data[:2])
    stats = detent.calibrate(graph, data, progress=False)
    options = {"shift_negative": True, "shift_negative_ratio": 1.0}
    shifted = detent.transform(graph, stats, target="imx500", **options)
    assert shifted.fingerprint() != graph.fingerprint()
    plain, other = (detent.collect_moments(g, data) for g in (graph, shifted))
    for central in (False, True):
        before, after = (found["2"].second(central=central) for found in (plain, other))
        np.testing.assert_allclose(after, before, atol=1e-4 * float(np.abs(before).max()))


@pytest.mark.parametrize("form", ["array", "generator", "callable"])
def test_one_call_collects_moments_where_kernels_have_few_bits(data: torch.Tensor, form: str) -> None:
    given = {
        "array": data.numpy(),
        "generator": (part for part in data.split(9)),
        "callable": lambda: iter(data.split(16)),
    }[form]
    plan = detent.quantize(network(), given, weights_bits=4, progress=False).plan
    assert {entry.metric for entry in plan.weights.values()} == {"output"}
    assert all(entry.gain is not None for entry in plan.weights.values())
    assert plan.to_json() == detent.quantize(network(), data, weights_bits=4, progress=False).plan.to_json()
    wide = detent.quantize(network(), data, progress=False).plan
    assert {entry.metric for entry in wide.weights.values()} == {"mse"}
    assert all(entry.gain is None for entry in wide.weights.values())


def test_planning_without_moments_says_what_it_does_instead(data: torch.Tensor) -> None:
    graph = detent.capture(network(), data[:2])
    plan = detent.plan(graph, detent.calibrate(graph, data, progress=False), weights_bits=4)
    assert {entry.metric for entry in plan.weights.values()} == {"mse"}
    assert any("thresholds of 0, 2, 4 suit the weights only" in note for note in plan.notes)
    assert any("kernels of 0, 2, 4 have no gains" in note for note in plan.notes)


def test_wrong_arguments_are_refused(data: torch.Tensor) -> None:
    graph = detent.capture(network(), data[:2])
    for samples in (0, -3, 2.5, float("nan"), "5", None, True):
        with pytest.raises(ConfigError, match="`samples`"):
            detent.collect_moments(graph, data, samples=samples)  # type: ignore[arg-type]
    for seed in (-3, 2.5, None, "5"):
        with pytest.raises(ConfigError, match="`seed`"):
            detent.collect_moments(graph, data, seed=seed)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="must be a Graph"):
        detent.collect_moments("graph", data)  # type: ignore[arg-type]
    fixed = detent.capture(network(), data[:16], dynamic_batch=False)
    with pytest.raises(CalibrationError, match="exactly 16"):
        detent.collect_moments(fixed, data[:10])
