"""Widths under a budget: limits are kept, rules and options narrow the choice, mistakes are found before the work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner, Result

import detent
from detent import _core
from detent.cli.app import app
from detent.errors import CalibrationError, ConfigError, InfeasibleBudgetError
from detent.records.distribution import Distribution
from detent.records.widths import Widths
from tests.mixed_targets import write_target

QUICK = {"samples": 8, "probes": 4}


class Net(nn.Module):
    """Convolutions of different sizes, one of them used twice, a residual add and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 24, 1)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.twice(torch.relu(self.twice(x))) + x)
        return self.head(torch.relu(self.wide(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def graph(model: nn.Module, images: Tensor) -> detent.Graph:
    return detent.capture(model, images[:2])


@pytest.fixture(scope="module")
def stats(graph: detent.Graph, images: Tensor) -> detent.Statistics:
    return detent.calibrate(graph, images, progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("targets")


@pytest.fixture(scope="module")
def target(folder: Path) -> Path:
    return write_target(folder)


@pytest.fixture(scope="module")
def table(graph: detent.Graph, stats: detent.Statistics, images: Tensor, target: Path) -> detent.SensitivityTable:
    return detent.score(graph, stats, images, target=target, mixed_precision=QUICK, progress=False)


@pytest.fixture
def choose(graph: detent.Graph, stats: detent.Statistics, images: Tensor, target: Path) -> Any:
    def run(budget: Any, *, data: Any = images, mixed: dict[str, Any] | None = None, **given: Any) -> Distribution:
        options = {"target": target, "mixed_precision": {**QUICK, **(mixed or {})}, "progress": False, **given}
        return detent.choose_widths(graph, stats, data, budget, **options)

    return run


def planned(
    graph: detent.Graph, stats: detent.Statistics, target: Path, widths: Widths, **given: Any
) -> detent.QuantPlan:
    return detent.plan(graph, stats, target=target, widths=widths, **given)


BUDGETS: list[dict[str, Any]] = [
    {"weights": "60%"},
    {"activations": "70%"},
    {"weights": "55%", "activations": "80%"},
    {"total": "60%"},
    {"bit_operations": "45%"},
    {"weights": "75%", "bit_operations": "50%"},
    {"weights": "1.5kB", "total": 3000},
]


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_the_plan_needs_what_was_said_and_no_more_than_allowed(
    graph: detent.Graph,
    stats: detent.Statistics,
    target: Path,
    table: detent.SensitivityTable,
    choose: Any,
    budget: dict[str, Any],
) -> None:
    found = choose(detent.Budget(**budget), table=table if set(budget) - {"weights", "activations"} else None)
    plan = planned(graph, stats, target, found.widths)
    figures = detent.resources(graph, plan=plan)
    assert set(found.limits) == set(found.use) == set(budget)
    for name, limit in found.limits.items():
        assert getattr(figures, name) <= limit * (1 + 1e-12)
        assert getattr(figures, name) == pytest.approx(found.use[name], rel=1e-12)
    assert found.bound <= found.objective
    assert 0 <= found.gap < 1
    assert set(found.binding) <= set(budget)
    # Every tensor with a grid has the width that was chosen for it.
    for layer, bits in found.widths.weights.items():
        assert plan.weights[layer].grid.bits == bits
    for value, bits in found.widths.activations.items():
        assert plan.activation_grid(value).bits == bits
    assert set(found.widths.weights) == set(plan.weights)
    assert detent.apply(graph, plan) is not None


def test_a_budget_of_weights_leaves_activations_alone(choose: Any) -> None:
    found = choose({"weights": "50%"})
    assert set(found.widths.activations.values()) == {8}
    assert min(found.widths.weights.values()) < 8
    other = choose({"activations": "60%"})
    assert set(other.widths.weights.values()) == {8}
    assert min(other.widths.activations.values()) < 8


def test_the_usual_width_is_kept_where_nothing_is_limited(folder: Path, choose: Any) -> None:
    # The usual width is the first that the target names, here not the widest.
    target = write_target(folder, (8, 4), (4, 8))
    found = choose({"weights": "70%"}, target=target)
    assert set(found.widths.activations.values()) == {4}
    assert set(choose({"weights": "70%"}, target=target, activation_bits=8).widths.activations.values()) == {8}


def test_what_no_widths_keep_is_told_in_figures(choose: Any, table: detent.SensitivityTable) -> None:
    with pytest.raises(InfeasibleBudgetError, match="least achievable") as error:
        choose({"weights": "10%"})
    (name,) = error.value.needed
    assert error.value.needed[name] > error.value.allowed[name]
    with pytest.raises(InfeasibleBudgetError):
        choose({"total": 10}, table=table)
    everything = choose({"weights": error.value.needed[name]})
    assert set(everything.widths.weights.values()) == {2}


def test_all_fits_into_a_large_budget(choose: Any, table: detent.SensitivityTable) -> None:
    for mixed in ({"interactions": False, "evaluated": 0}, {"evaluated": 0}, {}):
        found = choose({"total": "100%"}, table=table, mixed=mixed)
        assert {*found.widths.weights.values(), *found.widths.activations.values()} == {8}
        assert found.interactions or found.binding == ()
        assert found.objective >= 0


def test_more_budget_never_predicts_more_error(choose: Any, table: detent.SensitivityTable) -> None:
    options = {"interactions": False, "evaluated": 0, "gap": 0.0}
    for resource, shares in (("weights", (40, 50, 65, 80, 100)), ("bit_operations", (20, 40, 60, 80, 100))):
        found = [choose({resource: f"{share}%"}, table=table, mixed=options) for share in shares]
        errors = [one.objective for one in found]
        assert errors == sorted(errors, reverse=True)
        assert all(one.gap < 1e-6 for one in found)


@pytest.mark.parametrize("interactions", [False, True])
def test_never_worse_than_one_width_for_all_of_the_same_size(
    graph: detent.Graph, target: Path, choose: Any, table: detent.SensitivityTable, interactions: bool
) -> None:
    for weights_bits, activation_bits in ((4, 8), (4, 4), (2, 4)):
        figures = detent.resources(graph, target, weights_bits=weights_bits, activation_bits=activation_bits)
        options = {"interactions": interactions, "evaluated": 0}
        found = choose({"weights": figures.weights, "activations": figures.activations}, table=table, mixed=options)
        places, start = [], 0
        for tensor in table:
            bits = weights_bits if tensor.role == "weights" else activation_bits
            places.append(start + tensor.bits.index(bits))
            start += len(tensor.bits)
        gram = table.gram()[np.ix_(places, places)]
        uniform = gram.sum() if found.interactions else np.trace(gram)
        assert found.objective <= uniform * (1 + 1e-3)


def test_rules_fix_widths(graph: detent.Graph, stats: detent.Statistics, target: Path, choose: Any, table: Any) -> None:
    rules = [
        detent.edit.rule(detent.edit.name("wide"), detent.edit.weights(bits=8)),
        detent.edit.rule(detent.edit.name("head"), detent.edit.weights(keep_float=True)),
        detent.edit.rule(detent.edit.name("x"), detent.edit.activations(bits=4)),
    ]
    found = choose({"total": "90%"}, rules=rules)
    assert found.widths.weights["wide"] == 8
    assert "head" not in found.widths.weights
    assert found.widths.activations["x"] == 4
    plan = planned(graph, stats, target, found.widths, rules=rules)
    assert plan.weights["head"].grid is None
    assert detent.resources(graph, plan=plan).total == pytest.approx(found.use["total"])
    assert found.use["total"] <= found.limits["total"]
    # Scores made without rules still serve where the rules only choose among their candidates.
    again = choose({"total": "90%"}, rules=[rules[0], rules[2]], table=table)
    assert (again.widths.weights["wide"], again.widths.activations["x"]) == (8, 4)
    with pytest.raises(ConfigError, match="other tensors or widths") as error:
        choose({"total": "90%"}, rules=rules, table=table)
    assert error.value.where == "head"


def test_options_narrow_the_candidates(choose: Any) -> None:
    found = choose({"weights": "70%"}, mixed={"weights_widths": (8, 4)})
    assert set(found.widths.weights.values()) <= {8, 4}
    found = choose({"weights": "70%"}, mixed={"widths": {"stem": (8,), "twice": (4,), "x": (4,)}})
    assert (found.widths.weights["stem"], found.widths.weights["twice"]) == (8, 4)
    assert found.widths.activations["x"] == 4
    assert {bits for name, bits in found.widths.activations.items() if name != "x"} == {8}
    with pytest.raises(ConfigError, match="none of the candidate widths") as error:
        choose({"weights": "70%"}, mixed={"widths": {"stem": (3,)}})
    assert error.value.where == "stem"
    with pytest.raises(ConfigError, match=r"(?s)tensor in `widths` 'stme'.*'stem'"):
        choose({"weights": "70%"}, mixed={"widths": {"stme": (4,)}})
    # A width for all kernels leaves no choice.
    with pytest.raises(ConfigError, match="no tensor has a choice"):
        choose({"weights": "70%"}, weights_bits=4)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "limits nothing"),
        (detent.Budget(), "limits nothing"),
        (None, "there is no budget"),
        ({"weight": "50%"}, "did you mean 'weights'"),
        ({"weights": "50 percent"}, "percent"),
        ({"latency": 1.0}, "latency"),
        (7, "must be a Budget"),
    ],
)
def test_wrong_budgets(choose: Any, budget: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(budget, data=iter(()))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget": {}}, "limits nothing"),
        ({"budget": {"weights": "50%"}, "target": "tensorrt"}, "no tensor has a choice"),
        ({"budget": {"weights": "50%"}, "weights_bits": 4}, "no tensor has a choice"),
        ({"budget": {"weights": "50%"}, "mixed_precision": {"widths": {"stme": (4,)}}}, "did you mean 'stem'"),
        ({"budget": {"weights": "50%"}, "mixed_precision": {"probe": 3}}, "did you mean 'probes'"),
        ({"budget": {"latency": "2ms"}}, "latency"),
        ({"mixed_precision": {"probes": 3}}, "budget"),
    ],
)
def test_mistakes_are_found_before_calibration(
    graph: detent.Graph, images: Tensor, target: Path, given: dict[str, Any], message: str
) -> None:
    read = []

    def data() -> Iterator[Tensor]:
        read.append(1)
        return iter(images.split(20))

    with pytest.raises(ConfigError, match=message):
        detent.quantize(graph, data, **{"target": target, "progress": False, **given})
    assert not read


def test_one_call_is_the_steps(
    model: nn.Module, graph: detent.Graph, stats: detent.Statistics, images: Tensor, target: Path, choose: Any
) -> None:
    options = {"bias_correction": "analytic", "gain_correction": "none", "weights_metric": "mse"}
    whole = detent.quantize(
        model, images, target=target, budget={"weights": "60%"}, mixed_precision=QUICK, progress=False, **options
    )
    found = choose({"weights": "60%"}, **options)
    steps = planned(graph, stats, target, found.widths, **options)
    assert whole.plan.widths == found.widths
    assert whole.plan.weights == steps.weights
    assert whole.plan.activations == steps.activations
    assert whole.plan.notes[-len(found.notes()) :] == found.notes()
    assert set(found.notes()) <= set(whole.notes)
    assert detent.resources(graph, plan=whole.plan).weights <= found.limits["weights"]
    assert detent.QuantPlan.from_json(whole.plan.to_json()).to_json() == whole.plan.to_json()
    with torch.no_grad():
        wanted, got = model(images), whole(images)
    assert (wanted - got).square().mean() < 0.1 * wanted.square().mean()


def test_data_that_can_be_read_once_only(model: nn.Module, images: Tensor, target: Path, choose: Any) -> None:
    def run(data: Any) -> str:
        return detent.quantize(
            model, data, target=target, budget={"weights": "60%"}, mixed_precision=QUICK, progress=False
        ).plan.to_json()

    assert run(batch for batch in images.split(10)) == run(images.split(10))
    once = choose({"weights": "60%"}, data=(batch for batch in images.split(10)))
    assert once.widths == choose({"weights": "60%"}).widths
    assert [one.measured for one in once.evaluated] == [one.measured for one in choose({"weights": "60%"}).evaluated]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_samples(choose: Any, images: Tensor, count: int) -> None:
    found = choose({"weights": "60%"}, data=images[:count])
    assert found.use["weights"] <= found.limits["weights"]


def test_no_samples(choose: Any) -> None:
    with pytest.raises(CalibrationError, match="empty"):
        choose({"weights": "60%"}, data=[])
    with pytest.raises(CalibrationError, match="empty"):
        choose({"weights": "60%"}, data=iter(()))


def test_evaluation_takes_the_best_on_held_out_samples(choose: Any, images: Tensor) -> None:
    found = choose({"weights": "60%"}, mixed={"evaluated": 3})
    measured = [one.measured for one in found.evaluated]
    assert measured == sorted(measured)
    assert len(measured) in (0, 2, 3)
    if measured:
        assert found.widths == found.evaluated[0].widths
        assert found.objective == found.evaluated[0].predicted
        assert len({str(one.widths) for one in found.evaluated}) == len(measured)
    assert choose({"weights": "60%"}, mixed={"evaluated": 0}).evaluated == ()
    assert set(found.seconds) == {"plans", "scores", "solver", "evaluation"}


def test_measured_errors_are_those_of_the_plan(
    graph: detent.Graph, stats: detent.Statistics, target: Path, choose: Any, images: Tensor
) -> None:
    found = choose({"weights": "45%"}, bias_correction="analytic")
    for one in found.evaluated:
        plan = planned(graph, stats, target, one.widths, bias_correction="analytic")
        with torch.no_grad():
            wanted, got = graph(images[8:16]).double(), detent.apply(graph, plan)(images[8:16]).double()
        error = float((wanted - got).square().sum() / wanted.square().sum())
        # A correction for activations' errors may differ where widths are composed of several plans.
        assert one.measured == pytest.approx(error, rel=1e-3)


def test_a_table_serves_several_budgets(choose: Any, table: detent.SensitivityTable, tmp_path: Path) -> None:
    table.save(tmp_path / "scores")
    loaded = detent.SensitivityTable.load(tmp_path / "scores")
    for budget in ({"total": "70%"}, {"bit_operations": "50%"}):
        anew, reused = choose(budget), choose(budget, table=loaded)
        assert anew.widths == reused.widths
        assert anew.objective == reused.objective
    narrow = choose({"weights": "60%"}, table=loaded)
    assert set(narrow.widths.activations.values()) == {8}


def test_a_table_of_something_else_is_refused(
    choose: Any, images: Tensor, table: detent.SensitivityTable, folder: Path
) -> None:
    other = detent.capture(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), images[:2])
    seen = detent.calibrate(other, images, progress=False)
    scores = detent.score(other, seen, images, target=write_target(folder), mixed_precision=QUICK, progress=False)
    with pytest.raises(ConfigError, match="another model"):
        choose({"weights": "60%"}, table=scores)
    with pytest.raises(ConfigError, match=r"detent\.score"):
        choose({"weights": "60%"}, table={"conv": 1})
    with pytest.raises(ConfigError, match="other tensors or widths"):
        choose({"weights": "60%"}, table=table, target=write_target(folder, (7, 3), (8, 4)))


def test_the_same_each_time_and_for_any_threads(choose: Any) -> None:
    found = []
    threads, ours = torch.get_num_threads(), _core.num_threads()
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            _core.set_num_threads(count)
            one = choose({"weights": "55%", "activations": "75%"})
            found.append((one.widths, one.objective, one.bound, tuple(e.measured for e in one.evaluated)))
    finally:
        torch.set_num_threads(threads)
        _core.set_num_threads(ours)
    assert found[0] == found[1] == found[2]


def test_one_width_for_values_that_must_share_it(
    graph: detent.Graph, stats: detent.Statistics, folder: Path, choose: Any
) -> None:
    target = write_target(folder, (8, 4), (8, 4), input_bits="output")
    for bits in (8, 4):
        found = choose({"total": "90%"}, target=target, mixed={"widths": {"relu:1": (bits,)}})
        assert found.widths.activations["relu"] == found.widths.activations["relu:1"] == bits
        detent.apply(graph, planned(graph, stats, target, found.widths))


def test_operations_that_read_the_width_of_their_output(
    graph: detent.Graph, stats: detent.Statistics, folder: Path, choose: Any
) -> None:
    target = write_target(folder, (8, 4), (8, 4), input_bits="output")
    found = choose({"activations": "70%"}, target=target)
    assert min(found.widths.activations.values()) == 4
    detent.apply(graph, planned(graph, stats, target, found.widths))  # refuses widths that do not fit


# ---- the command line ----------------------------------------------------------------------------------------------


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def program(model: nn.Module, images: Tensor, folder: Path) -> tuple[Path, Path]:
    exported = torch.export.export(model, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(exported, folder / "net.pt2")
    np.savez(folder / "data.npz", x=images.numpy())
    return folder / "net.pt2", folder / "data.npz"


def test_the_command_takes_budgets(
    program: tuple[Path, Path], target: Path, graph: detent.Graph, tmp_path: Path
) -> None:
    model, data = program
    arguments = ("quantize", model, "--data", data, "--target", target, "--out", tmp_path, "--no-onnx")
    result = run(*arguments, "--budget", "weights=60%", "--budget", "activations = 80%")
    assert result.exit_code == 0, result.output
    plan = detent.QuantPlan.load(tmp_path / "plan.json")
    figures, full = detent.resources(detent.capture(model), plan=plan), detent.resources(graph, target)
    assert figures.weights <= 0.6 * full.weights
    assert figures.activations <= 0.8 * full.activations
    assert plan.widths
    assert any(note.startswith("mixed precision: weights") for note in plan.notes)
    assert "mixed precision" in run("inspect", tmp_path / "plan.json").stdout


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (("60%",), "names no resource"),
        (("weight=60%",), "did you mean 'weights'"),
        (("weights=much",), "no amount"),
        (("weights=",), "no amount"),
        (("weights=60%", "weights=50%"), "limits weights twice"),
        (("latency=1ms",), "latency"),
        (("weights=1%",), "least achievable"),
    ],
)
def test_mistakes_in_budgets_of_the_command(
    program: tuple[Path, Path], target: Path, tmp_path: Path, budget: tuple[str, ...], message: str
) -> None:
    model, data = program
    options = [word for text in budget for word in ("--budget", text)]
    result = run("quantize", model, "--data", data, "--target", target, "--out", tmp_path / "out", *options)
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "out" / "plan.json").exists()


def test_measured_scores_choose_too(choose: Any) -> None:
    probed, measured = (
        choose({"weights": "60%"}, mixed={**QUICK, "scores": scores}) for scores in ("probes", "measured")
    )
    assert measured.use["weights"] <= measured.limits["weights"]
    assert not measured.interactions
    # Both count the change of the outputs relative to their energy.
    assert measured.objective == pytest.approx(probed.objective, rel=1.5)
