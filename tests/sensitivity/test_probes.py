"""Probe scores are the exact changes to first order along all directions, and estimates of them along few."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import detent
from detent import _core
from detent.errors import CalibrationError, ConfigError
from detent.sensitivity import Candidates, score_by_probes
from tests.mixed_targets import write_target
from tests.models import MODELS, build
from tests.sensitivity.linearized import Scored, exact_changes, exact_vectors

# What torch's forward-mode differentiation, with which scores are compared, says about itself.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    torch_threads, threads = torch.get_num_threads(), _core.num_threads()
    yield
    torch.set_num_threads(torch_threads)
    _core.set_num_threads(threads)


class Body(nn.Module):
    """Two linear layers and what is done between and behind them."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Any], inputs: int = 6) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(inputs, 5), nn.Linear(5, 4)
        self._forward = forward

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x)


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1, stride=2)
        self.b = nn.Conv2d(6, 12, 3, groups=6, bias=False)
        self.c = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b(F.silu(self.a(x))).mean((2, 3)), self.c(x).amax((2, 3))], 1)


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)
        self.b = nn.ConvTranspose2d(6, 3, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(torch.tanh(self.b(F.leaky_relu(self.a(x)))), size=(4, 4), mode="bilinear")


def body(forward: Callable[[Any, Tensor], Any], inputs: int = 6) -> Callable[[], nn.Module]:
    return lambda: Body(forward, inputs).eval()


def several(net: Any, x: Tensor) -> Any:
    x = net.a(x)
    return {"large": 30 * net.b(x), "small": x.relu(), "class": x.argmax(1)}


def normal(*shape: int) -> Callable[[int], Tensor]:
    return lambda count: torch.randn(count, *shape)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any]]] = {
    **{
        name: (lambda name=name: build(name), MODELS[name].inputs)
        for name in (
            "audio",
            "perceptron",
            "transformer",
            "attention",
            "stored_matrix",
            "dict_input",
            "two_inputs",
            "reused",
        )
    },
    "residual": (lambda: build("residual"), normal(4, 3, 3)),
    "transposed": (lambda: Transposed().eval(), normal(4, 2, 2)),
    "depthwise, concatenated": (lambda: Depthwise().eval(), normal(3, 7, 7)),
    "grouped": (lambda: build("grouped"), normal(4, 3, 3)),
    "channels last": (
        lambda: build("grouped"),
        lambda n: torch.randn(n, 4, 3, 3).contiguous(memory_format=torch.channels_last),
    ),
    "several outputs": (body(several), normal(6)),
    "tokens": (body(lambda net, x: net.b(net.a(x).relu())), normal(3, 6)),
    "tokens merged with the batch": (
        body(lambda net, x: net.b(net.a(x).relu().transpose(0, 1).reshape(-1, 5))),
        normal(3, 6),
    ),
    "batch not first": (body(lambda net, x: net.b(net.a(x.transpose(0, 1)).relu())), normal(3, 6)),
    "samples out of order": (body(lambda net, x: net.b(net.a(x).relu().flip(0))), normal(6)),
    "samples mixed": (body(lambda net, x: net.b(net.a(x) - net.a(x).mean(0))), normal(6)),
    "samples mixed in one output": (body(lambda net, x: (net.b(net.a(x)), net.a(x).relu().sum(0))), normal(6)),
    "a loss for an output": (body(lambda net, x: net.b(net.a(x)).sigmoid().mean()), normal(6)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("targets")


def scored(folder: Path, name: str, batches: int = 1, samples: int = 2, **options: Any) -> Scored:
    make, inputs = NETWORKS[name]
    torch.manual_seed(3)
    model = make()
    return Scored(folder, model, [inputs(samples) for _ in range(batches)], **options)


@pytest.mark.parametrize("name", NETWORKS)
def test_along_all_directions_scores_and_products_are_exact(folder: Path, name: str) -> None:
    case = scored(folder, name, kernels=(4,), values=(4,))
    table = case.score()
    vectors = exact_vectors(case, table)
    exact = vectors @ vectors.T
    sizes = np.diag(exact)
    found = np.concatenate([tensor.scores for tensor in table])
    np.testing.assert_allclose(found, sizes, rtol=1e-3, atol=1e-14)
    np.testing.assert_allclose(table.gram(), exact, atol=1e-3 * sizes.max())
    assert (np.abs(table.gram() - exact) <= 2e-3 * np.sqrt(np.outer(sizes, sizes)) + 1e-14).all()
    kinds = {tensor.role for tensor in table}
    assert kinds == {"weights", "activations"}
    assert [tensor.role for tensor in table] == sorted((tensor.role for tensor in table), reverse=True)


def test_every_width_is_scored(folder: Path) -> None:
    case = scored(folder, "depthwise, concatenated", batches=1)
    table = case.score()
    assert {tensor.bits for tensor in table if tensor.role == "weights"} == {(8, 4, 2)}
    assert {tensor.bits for tensor in table if tensor.role == "activations"} == {(8, 4)}
    assert set(table.find("b", "weights").members) == {"b"}
    vectors = exact_vectors(case, table)
    np.testing.assert_allclose(
        np.concatenate([tensor.scores for tensor in table]), np.square(vectors).sum(1), rtol=1e-3
    )
    # Few bits change more.
    assert all(one.scores[0] < one.scores[-1] for one in table)


def test_factors_are_the_scores(folder: Path) -> None:
    for probes in (1, 3, 10**6):
        table = scored(folder, "depthwise, concatenated", batches=2).score(probes)
        assert table.samples == 4
        assert table.probes == min(probes, 16)
        for tensor in table:
            assert tensor.factors.shape == (len(tensor.bits), table.samples * table.probes)
            np.testing.assert_allclose(np.square(tensor.factors).sum(1, dtype=np.float64), tensor.scores, rtol=1e-5)
        gram = table.gram()
        assert np.linalg.eigvalsh(gram).min() > -1e-6 * np.trace(gram)


def test_a_linear_network_changes_as_scored(folder: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.AvgPool2d(2), nn.Conv2d(6, 4, 2), nn.Flatten(), nn.Linear(16, 5)
    )
    case = Scored(folder, model.eval(), [torch.randn(4, 3, 6, 6)], linear_collapsing=False)
    table = case.score()
    true = exact_vectors(case, table, linear=False)
    np.testing.assert_allclose(np.concatenate([one.scores for one in table]), np.square(true).sum(1), rtol=1e-4)


@pytest.mark.parametrize("samples", [1, 2])
def test_few_samples(folder: Path, samples: int) -> None:
    case = scored(folder, "tokens", samples=samples)
    table = case.score()
    np.testing.assert_allclose(
        np.concatenate([one.scores for one in table]), np.square(exact_vectors(case, table)).sum(1), rtol=1e-3
    )
    assert all(np.isnan(one.errors).all() if samples == 1 else np.isfinite(one.errors).all() for one in table)


class Positions(nn.Module):
    """Embeddings of tokens and of their positions, which no input decides."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions, self.head = nn.Embedding(11, 6), nn.Embedding(5, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tokens(x) + self.positions(torch.arange(5)))


def test_few_directions_and_batches_are_unbiased(folder: Path) -> None:
    torch.manual_seed(0)
    networks = (Positions().eval(), torch.randint(0, 11, (4, 5))), (build("residual"), torch.randn(4, 4, 3, 3))
    for model, x in networks:
        case = Scored(folder, model, [x[:2], x[2:]], kernels=(4, 2), values=(4,))
        exact = np.square(exact_vectors(case, case.score())).sum(1)
        found = np.array([np.concatenate([one.scores for one in case.score(2, seed=seed)]) for seed in range(40)])
        deviation = found.std(0, ddof=1) / 40**0.5
        assert (np.abs(found.mean(0) - exact) <= 4 * deviation + 1e-4 * exact).all()
        assert (deviation * 40**0.5 < 2 * exact).all()


def test_products_with_what_no_sample_decides(folder: Path) -> None:
    torch.manual_seed(0)
    case = Scored(folder, Positions().eval(), [torch.randint(0, 11, (6, 5)), torch.randint(0, 11, (4, 5))], values=(4,))
    table = case.score()
    vectors = exact_vectors(case, table)
    exact = vectors @ vectors.T
    sizes = np.sqrt(np.diag(exact))
    assert np.abs(exact / np.outer(sizes, sizes) - np.eye(len(exact))).max() > 0.1  # there are products to find
    assert (np.abs(table.gram() - exact) <= 2e-3 * np.outer(sizes, sizes)).all()
    np.testing.assert_allclose(np.concatenate([one.scores for one in table]), np.diag(exact), rtol=1e-3)


def test_products_are_unbiased(folder: Path) -> None:
    case = scored(folder, "depthwise, concatenated", kernels=(4,), values=(4,), batches=1)
    vectors = exact_vectors(case, case.score())
    exact = vectors @ vectors.T
    found = np.array([case.score(2, seed=seed).gram() for seed in range(25)])
    deviation = found.std(0, ddof=1) / 25**0.5
    assert (np.abs(found.mean(0) - exact) <= 4.5 * deviation + 1e-4 * np.abs(exact)).all()


def test_standard_errors_tell_how_far_other_samples_are(folder: Path) -> None:
    torch.manual_seed(0)
    model, x = build("perceptron"), torch.randn(30, 64, 6)
    case = Scored(folder, model, [x.reshape(-1, 6)], kernels=(4,), values=(4,))
    scores, errors = [], []
    for part in x:
        case.batches = [[part]]
        table = case.score(2)
        scores.append(np.concatenate([one.scores for one in table]))
        errors.append(np.concatenate([one.errors for one in table]))
    told, seen = np.mean(errors, 0), np.std(scores, 0, ddof=1)
    # Scores are also divided by the energy of their own samples, which the errors do not count.
    assert (told < 2 * seen).all()
    assert (told > 0.5 * seen).all()


@pytest.mark.parametrize("name", ["depthwise, concatenated", "tokens merged with the batch", "samples mixed"])
def test_same_bits_for_any_threads_and_each_time(folder: Path, name: str) -> None:
    case = scored(folder, name, batches=5)
    found = set()
    for threads in (1, 2, 2, 3):
        torch.set_num_threads(threads)
        _core.set_num_threads(threads)
        table = case.score(4)
        found.add(b"".join(part.tobytes() for one in table for part in (one.scores, one.errors, one.factors)))
        assert torch.get_num_threads() == threads
    assert len(found) == 1


def test_the_seed_matters_and_progress_is_shown(folder: Path) -> None:
    case, shown = scored(folder, "depthwise, concatenated", batches=3), []
    first, second = case.score(2, seed=0, show=shown.append), case.score(2, seed=1)
    assert shown == [1, 2, 3]
    assert not np.array_equal(first.tensors[0].scores, second.tensors[0].scores)


def test_nothing_of_the_user_is_changed(folder: Path) -> None:
    case = scored(folder, "residual", batches=2)
    given, before = case.batches, [[tensor.clone() for tensor in batch] for batch in case.batches]
    stored = {name: tensor.clone() for name, tensor in case.graph.module.state_dict().items()}
    with torch.no_grad():
        case.score(2)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        inside = case.score(2)
        case.batches = [[tensor.clone() for tensor in batch] for batch in case.batches]
        made_inside = case.score(2)
    case.batches = given
    for table in (inside, made_inside):
        assert table.tensors[0].factors.tobytes() == case.score(2).tensors[0].factors.tobytes()
    for batch, old in zip(given, before, strict=True):
        for tensor, copy in zip(batch, old, strict=True):
            assert torch.equal(tensor, copy)
            assert not tensor.requires_grad
            assert tensor.grad is None
    for name, tensor in case.graph.module.state_dict().items():
        assert torch.equal(tensor, stored[name])
    assert all(one.grad is None for one in case.graph.module.parameters())


def test_shifts_and_gains_count(folder: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 4, 1))
    x = torch.randn(4, 3, 7, 7) + 0.7
    options = {"kernels": (4, 2), "values": (8,), "bias_correction": "analytic"}
    corrected = Scored(folder, model.eval(), [x], **options)
    assert any(np.abs(one.shift).max() > 1e-3 for one in corrected.plans[1].bias_corrections.values())
    # Gains come with moments; here by hand.
    name = next(iter(corrected.plans[1].weights))
    entry = corrected.plans[1].weights[name]
    gain = np.linspace(0.8, 1.3, entry.grid.size).astype(np.float32)
    weights = {**corrected.plans[1].weights, name: replace(entry, gain=gain)}
    corrected.plans[1] = replace(corrected.plans[1], weights=weights)
    plain = Scored(folder, model, [x], **{**options, "bias_correction": "none"}).score()
    table = corrected.score()
    exact = np.square(exact_vectors(corrected, table)).sum(1)
    found = np.concatenate([one.scores for one in table])
    np.testing.assert_allclose(found, exact, rtol=1e-3)
    assert (np.abs(found - np.concatenate([one.scores for one in plain])) > 1e-2 * found).any()


def test_a_gradient_that_is_not_finite_names_the_layer(folder: Path) -> None:
    case = scored_root(folder)
    case.batches[0][0][0] = 0  # the root of zero has an infinite slope
    with pytest.raises(CalibrationError, match="NaN or infinity") as error:
        case.score()
    assert error.value.where in {
        name for one in Candidates.of(case.graph, case.placement, case.plans).slots for name in one.members
    }


def scored_root(folder: Path) -> Scored:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 5, bias=False), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.sqrt(torch.relu(self.a(x)) * 2))

    torch.manual_seed(0)
    return Scored(folder, Root().eval(), [torch.rand(3, 6)])


@pytest.mark.parametrize("place", [0, 1])
def test_an_output_that_is_not_finite_is_named(folder: Path, place: int) -> None:
    case = scored(folder, "tokens", batches=2)
    case.batches[place][0][1, 1, 1] = torch.inf
    with pytest.raises(CalibrationError, match="the output holds NaN or infinity") as error:
        case.score()
    assert error.value.where == "b"


def test_outputs_without_gradients_are_refused(folder: Path) -> None:
    torch.manual_seed(0)
    case = Scored(folder, Body(lambda net, x: net.b(net.a(x)).argmax(1)).eval(), [torch.randn(3, 6)])
    with pytest.raises(ConfigError, match="no output of the network carries a gradient") as error:
        case.score()
    assert "argmax" in str(error.value.where)
    assert "int64" in str(error.value.where)


def test_an_operator_without_a_derivative_is_refused(folder: Path) -> None:
    @torch.library.custom_op("detent_tests::no_derivative", mutates_args=())
    def no_derivative(x: Tensor) -> Tensor:
        return x.clone()

    @no_derivative.register_fake
    def _(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    torch.manual_seed(0)
    case = Scored(folder, Body(lambda net, x: net.b(no_derivative(net.a(x)))).eval(), [torch.randn(3, 6)])
    with pytest.raises(ConfigError, match="cannot be differentiated"):
        case.score()


def test_zero_outputs_are_refused(folder: Path) -> None:
    torch.manual_seed(0)
    model = Body(lambda net, x: net.b(net.a(x))).eval()
    for parameter in model.b.parameters():
        parameter.data.zero_()
    with pytest.raises(CalibrationError, match="the outputs are zero"):
        Scored(folder, model, [torch.randn(3, 6)]).score()


def test_one_zero_output_counts_nothing(folder: Path) -> None:
    torch.manual_seed(0)
    model = Body(lambda net, x: (net.b(net.a(x)), torch.relu(net.a(x) - 1e3))).eval()
    x = torch.randn(3, 6)
    both = Scored(folder, model, [x]).score()
    alone = both.find("b", "activations").scores
    assert (alone > 0).all()
    assert np.isfinite(np.concatenate([one.scores for one in both])).all()


def test_plans_that_quantize_nothing(folder: Path) -> None:
    case = scored(folder, "tokens")
    with pytest.raises(ConfigError, match="there are none"):
        score_by_probes(case.graph, case.placement, [], case.batches)
    empty = replace(case.plans[0], weights={}, activations={})
    with pytest.raises(ConfigError, match="quantize nothing"):
        score_by_probes(case.graph, case.placement, [empty], case.batches)


def test_outputs_count_alike_whatever_their_size(folder: Path) -> None:
    class Twins(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(6, 5), nn.Linear(6, 5)
            self.b.load_state_dict(self.a.state_dict())
            for parameter in self.b.parameters():
                parameter.data *= factor

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.a(x), self.b(x)

    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    table = Scored(folder, Twins(64.0).eval(), [x]).score()
    np.testing.assert_allclose(table.find("a", "weights").scores, table.find("b", "weights").scores, rtol=1e-5)
    alone = Scored(folder, Twins(1.0).eval(), [x]).score()
    np.testing.assert_allclose(table.find("a", "weights").scores, alone.find("a", "weights").scores, rtol=1e-5)


@pytest.mark.parametrize("kind", ["logits", "tokens", "images", "log_softmax"])
def test_fisher_is_the_divergence_from_the_prediction(folder: Path, kind: str) -> None:
    torch.manual_seed(0)
    models: dict[str, tuple[nn.Module, Tensor, int]] = {
        "logits": (Body(lambda net, x: 3 * net.b(net.a(x))), torch.randn(4, 6), 1),
        "tokens": (Body(lambda net, x: 3 * net.b(net.a(x))), torch.randn(4, 3, 6), 2),
        "images": (nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 4, 2)), torch.randn(4, 3, 4, 4), 1),
        "log_softmax": (Body(lambda net, x: F.log_softmax(3 * net.b(net.a(x)), -1)), torch.randn(4, 6), 1),
    }
    model, x, axis = models[kind]
    case = Scored(folder, model.eval(), [x], kernels=(8,), values=(8,))
    table = case.score(loss="fisher")
    assert table.method == "probes of fisher"
    with torch.no_grad():
        logits = model(x).double()
    for tensor in table:
        if kind == "log_softmax" and tensor.role == "activations" and tensor.name == list(table)[-1].name:
            continue  # what is quantized behind the softmax need not be normalized
        (change,) = exact_changes(case, tensor, 8, case.batches[0])
        # A small part of the change, so that the divergence is of second order.
        p, q = (F.log_softmax(z, axis) for z in (logits, logits + change.detach().double() * 1e-3))
        divergence = float((p.exp() * (p - q)).sum()) / len(x) * 1e6
        np.testing.assert_allclose(tensor.scores, [divergence], rtol=1e-2)


def test_tied_values_are_one_slot(folder: Path) -> None:
    torch.manual_seed(0)
    model = Body(lambda net, x: net.b(net.a(x).relu().sigmoid() * 3)).eval()
    x = torch.randn(3, 6)
    graph = detent.capture(model, x)
    target = write_target(folder, (8, 4), (8, 4), input_bits="output")
    from detent.graph.policy import place_as_asked

    placement = place_as_asked(graph, detent.load_target(target))
    stats = detent.calibrate(graph, [x], progress=False)
    plans = [detent.plan(graph, stats, target=target, weights_bits=bits, activation_bits=bits) for bits in (8, 4)]
    found = Candidates.of(graph, placement, plans)
    groups = [slot.members for slot in found.slots if slot.role == "activations"]
    limits = [limit for limit in placement.limits if limit.widths == "output" and limit.output is not None]
    assert limits
    for limit in limits:
        owners = {placement.activations[name].same_as or name for name in (limit.value, limit.output)}
        assert any(owners <= set(group) for group in groups)
    assert sum(map(len, groups)) == len({name for group in groups for name in group})
