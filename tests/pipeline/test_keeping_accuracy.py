"""Widths that keep a metric: raised one by one, logged, the narrowest that suffice; and Pareto fronts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import detent
from detent.errors import ConfigError
from detent.records.front import ParetoFront
from detent.records.widths import Widths
from tests.mixed_targets import write_target
from tests.pipeline.test_mixing import Net

QUICK = {"samples": 8, "probes": 4, "evaluated": 2}
Evaluate = Callable[[nn.Module], float]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def given(images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.manual_seed(0)
    graph = detent.capture(Net().eval(), images[:2])
    target = write_target(tmp_path_factory.mktemp("targets"))
    stats = detent.calibrate(graph, images, progress=False)
    table = detent.score(graph, stats, images, target=target, mixed_precision=QUICK, progress=False)
    options = {"target": target, "mixed_precision": QUICK, "progress": False, "table": table}
    return {"graph": graph, "stats": stats, "data": images, **options}


@pytest.fixture(scope="module")
def closeness(given: dict[str, Any], images: Tensor) -> Evaluate:
    """Minus the error of the outputs relative to their spread over the samples: 0 for the float network."""
    with torch.no_grad():
        wanted = given["graph"].module(images)
    spread = (wanted - wanted.mean(dim=0)).square().sum()

    def evaluate(model: nn.Module) -> float:
        with torch.no_grad():
            return -float((model(images) - wanted).square().sum() / spread)

    return evaluate


def run(given: dict[str, Any], name: str, *args: Any, **options: Any) -> Any:
    rest = {key: value for key, value in given.items() if key not in ("graph", "stats", "data")} | options
    return getattr(detent, name)(given["graph"], given["stats"], given["data"], *args, **rest)


def test_widths_are_raised_until_the_metric_is_kept(given: dict[str, Any], closeness: Evaluate) -> None:
    found = run(given, "keep_accuracy", closeness, 0.1)
    assert found.kept
    assert found.metric_of_float == pytest.approx(0, abs=1e-9)
    assert found.metric >= -0.1
    # Every trial before the last missed, each raised one tensor, and the widths are those of the last.
    assert len(found.trials) > 1
    assert all(trial.metric < -0.1 for trial in found.trials[:-1])
    assert [len(trial.raised) for trial in found.trials] == [0] + [1] * (len(found.trials) - 1)
    plan = detent.plan(given["graph"], given["stats"], target=given["target"], widths=found.widths)
    assert closeness(detent.apply(given["graph"], plan)) == pytest.approx(found.metric)
    assert "kept" in str(found).splitlines()[-1]
    assert found.widths.least < 8


def test_a_wider_tolerance_needs_no_wider_widths(given: dict[str, Any], closeness: Evaluate) -> None:
    strict, loose = (run(given, "keep_accuracy", closeness, drop) for drop in (0.1, 1.0))
    bits = [sum([*found.widths.weights.values(), *found.widths.activations.values()]) for found in (strict, loose)]
    assert bits[1] < bits[0]
    assert loose.trials == strict.trials[: len(loose.trials)]


def test_the_most_sensitive_tensor_is_raised_first(given: dict[str, Any], closeness: Evaluate) -> None:
    found = run(given, "keep_accuracy", closeness, 0.1)
    saved = {
        f"{one.role} of {one.name} to {one.bits[-2]} bits": one.scores[-1] - one.scores[-2] for one in given["table"]
    }
    assert found.trials[1].raised == (max(saved, key=lambda words: saved[words]),)


def test_several_can_be_raised_at_once(given: dict[str, Any], closeness: Evaluate) -> None:
    one, three = (run(given, "keep_accuracy", closeness, 0.1, raised_at_once=count) for count in (1, 3))
    assert three.kept
    assert len(three.trials) == math.ceil((len(one.trials) - 1) / 3) + 1


def test_what_cannot_be_kept_is_said(given: dict[str, Any]) -> None:
    metrics = iter([1.0, *[0.0] * 100])
    found = run(given, "keep_accuracy", lambda model: next(metrics), 0.5)
    assert not found.kept
    assert set(found.widths.weights.values()) == {8}
    assert "not kept" in str(found)
    at_once = run(given, "keep_accuracy", lambda model: 1.0, 0.0)
    assert at_once.kept
    assert len(at_once.trials) == 1


def test_it_can_start_from_a_distribution(given: dict[str, Any], closeness: Evaluate) -> None:
    start = run(given, "choose_widths", detent.Budget(total="70%")).widths
    found = run(given, "keep_accuracy", closeness, 0.03, start=start)
    assert all(found.widths.weights[name] >= bits for name, bits in start.weights.items())


@pytest.mark.parametrize(
    ("evaluate", "drop", "options", "message"),
    [
        (None, 0.1, {}, "function"),
        (lambda model: 1.0, -1, {}, "from 0"),
        (lambda model: 1.0, math.nan, {}, "from 0"),
        (lambda model: 1.0, "1", {}, "from 0"),
        (lambda model: math.nan, 0.1, {}, "returned nan"),
        (lambda model: None, 0.1, {}, "must return a number"),
        (lambda model: 1.0, 0.1, {"raised_at_once": 0}, "raised_at_once"),
        (lambda model: 1.0, 0.1, {"start": Widths(weights={"stem": 3})}, "start"),
    ],
)
def test_mistakes(given: dict[str, Any], evaluate: Any, drop: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(given, "keep_accuracy", evaluate, drop, **options)


@pytest.fixture(scope="module")
def front(given: dict[str, Any], closeness: Evaluate) -> ParetoFront:
    return run(given, "pareto", "weights", ["40%", "100%", "60%", "1%"], evaluate=closeness)


def test_points_are_ordered_and_within_their_limits(front: ParetoFront) -> None:
    assert [point.limit for point in front.points] == ["100%", "60%", "40%"]
    for point in front.points:
        assert point.amount <= point.distribution.limits["weights"]
    errors = [point.distribution.objective for point in front.points]
    assert errors == sorted(errors)
    assert all(point.measured is not None for point in front.points)
    assert "below the least achievable" in front.infeasible["1%"]


def test_fronts_are_written_and_drawn(front: ParetoFront, tmp_path: Path) -> None:
    front.save(tmp_path / "front.json")
    data = json.loads((tmp_path / "front.json").read_text())
    assert [point["limit"] for point in data["points"]] == ["100%", "60%", "40%"]
    assert Widths.from_dict(data["points"][2]["widths"], "front") == front.points[2].distribution.widths
    assert len(str(front).splitlines()) == 5
    pytest.importorskip("matplotlib")
    front.plot(tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="cannot draw"):
        front.plot(tmp_path / "missing" / "front.png")
    with pytest.raises(ConfigError, match="cannot draw"):
        front.plot(tmp_path / "front.nothing")


@pytest.mark.parametrize(
    ("args", "message"), [(("weight",), "weights"), (("weights", []), "limits"), (("weights", "50%"), "limits")]
)
def test_wrong_fronts(given: dict[str, Any], args: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(given, "pareto", *args)
