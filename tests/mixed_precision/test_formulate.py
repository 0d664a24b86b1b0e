"""The rows of the problem are the figures of the resource model, for whatever widths are assigned."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch

from detent.config import Budget
from detent.errors import ConfigError
from detent.graph import Graph, capture
from detent.graph.policy import place_as_asked
from detent.mixed_precision import formulate, resource_model, resource_of, widths_of
from detent.mixed_precision.model import ResourceModel
from detent.mixed_precision.problem import Problem, Row
from detent.records.sensitivity import Role, SensitivityTable, TensorSensitivity
from detent.records.widths import Widths
from detent.targets import load_target
from tests.models import MODELS, build

LIMITS = {"weights": 1e3, "activations": 2e3, "total": 3e3, "bit_operations": 4e6, "latency": 5.0}


@functools.cache
def graph_of(name: str) -> Graph:
    torch.manual_seed(0)
    return capture(build(name), MODELS[name].inputs(3))


def times(graph: Graph, widths: tuple[int, ...]) -> dict[tuple[str, int | None, int], float]:
    random = np.random.default_rng(0)
    kinds = {node.kind for node in graph.nodes() if node.kind in ("conv", "linear", "add", "matmul")}
    with_kernels = ("conv", "linear")
    return {
        (kind, kernel, value): float(random.uniform(1, 9))
        for kind in sorted(kinds)
        for kernel in ((*widths, 32) if kind in with_kernels else (None,))
        for value in (*widths, 32)
    }


def model_of(name: str, target: str = "imx500", **options: Any) -> ResourceModel:
    graph, chip = graph_of(name), load_target(target)
    if options.pop("timed", False):
        options["latency"] = times(graph, (8, 6, 4, 2))
    return resource_model(graph, place_as_asked(graph, chip), chip, **options)


def entry(
    name: str, role: Role, bits: tuple[int, ...], random: Any, members: tuple[str, ...] = ()
) -> TensorSensitivity:
    factors = random.normal(size=(len(bits), 6)).astype(np.float32)
    return TensorSensitivity(
        name=name,
        role=role,
        members=members or (name,),
        bits=bits,
        scores=np.square(factors).sum(1, dtype=np.float64),
        errors=np.zeros(len(bits)),
        factors=factors,
    )


def divided(model: ResourceModel, random: Any) -> tuple[SensitivityTable, Widths, Widths]:
    """Tensors at random among slots with a choice, alone or tied, settled ones and float ones, with the settled."""
    tensors, settled, in_float = [], {"weights": {}, "activations": {}}, {"weights": {}, "activations": {}}
    for role, names in (("weights", list(model.kernels)), ("activations", list(model.slots))):
        names = list(random.permutation(names))
        while names:
            kind = random.choice(["choice", "choice", "tied", "settled", "float"])
            name = str(names.pop())
            if kind == "settled":
                settled[role][name] = int(random.choice([8, 5]))
            elif kind == "float":
                in_float[role][name] = 32
            else:
                others = [str(names.pop())] if kind == "tied" and role == "activations" and names else []
                bits = ((8, 4, 2), (8, 4), (6,))[random.integers(3)]
                tensors.append(entry(name, role, bits, random, (name, *others)))
    if not tensors:
        name = next(iter(model.kernels))
        tensors = [entry(name, "weights", (8, 4), random)]
        settled["weights"].pop(name, None)
        in_float["weights"].pop(name, None)
    table = SensitivityTable(tensors=tuple(tensors), method="probes", samples=3, probes=2, fingerprint="f")
    return table, Widths(**settled), in_float


def amount(row: Row, assignment: list[int]) -> float:
    found = row.constant + sum(values[assignment[slot]] for slot, values in row.linear.items())
    return float(found + sum(values[assignment[a], assignment[b]] for a, b, values in row.products))


def largest(problem: Problem, assignment: list[int], resource: str) -> float:
    return max(amount(row, assignment) for row in problem.rows if resource_of(row.name) == resource)


@pytest.mark.parametrize("order", ["captured", "best"])
@pytest.mark.parametrize("name", ["conv_chain", "residual", "mobile", "attention", "reused", "transformer"])
def test_rows_are_the_figures_of_the_model(name: str, order: Any) -> None:
    model = model_of(name, order=order, timed=True)
    random = np.random.default_rng(1)
    for _ in range(4):
        table, settled, in_float = divided(model, random)
        # Times of 5 bits are not in the table.
        settled = Widths(**{role: dict.fromkeys(part, 8) for role, part in settled.to_dict().items()})
        problem = formulate(table, model, LIMITS, settled)
        for _ in range(5):
            assignment = [int(random.integers(len(tensor.bits))) for tensor in table]
            widths = widths_of(table, assignment, settled)
            kernels = {**in_float["weights"], **widths.weights}
            values = {**in_float["activations"], **widths.activations}
            assert set(kernels) == set(model.kernels)
            assert set(values) == set(model.slots)
            figures = model.figures(kernels, values)
            for resource in LIMITS:
                assert largest(problem, assignment, resource) == pytest.approx(getattr(figures, resource), rel=1e-12)


def test_other_widths_than_powers_of_two_and_padded_channels() -> None:
    model = model_of("conv_chain")
    kernels, random = list(model.kernels), np.random.default_rng(0)
    table = SensitivityTable(
        tensors=tuple(entry(layer, "weights", (8, 7, 5, 3, 1), random) for layer in kernels),
        method="probes",
        samples=1,
        probes=1,
        fingerprint="f",
    )
    problem = formulate(table, model, {"weights": 1.0}, Widths())
    for choice in range(5):
        bits = table.tensors[0].bits[choice]
        assert largest(problem, [choice] * len(kernels), "weights") == model.weights(bits)


def test_limits_costs_and_factors_arrive() -> None:
    model = model_of("residual", timed=True)
    table, settled, _ = divided(model, np.random.default_rng(4))
    problem = formulate(table, model, LIMITS, settled)
    assert {resource_of(row.name) for row in problem.rows} == set(LIMITS)
    assert all(row.limit == LIMITS[resource_of(row.name)] for row in problem.rows)
    assert len({row.name for row in problem.rows}) == len(problem.rows)
    assert [slot.widths for slot in problem.slots] == [tensor.bits for tensor in table]
    assert [slot.name for slot in problem.slots] == [f"{tensor.role} of {tensor.name}" for tensor in table]
    for costs, factors, tensor in zip(problem.costs, problem.factors, table, strict=True):
        np.testing.assert_array_equal(costs, tensor.scores)
        # The squares of factors over their number are costs, as the problem defines it.
        np.testing.assert_allclose(np.square(factors).mean(1), costs, rtol=1e-6)
    grams = [a @ b.T / a.shape[1] for a in problem.factors for b in problem.factors]
    wanted = [a.factors.astype(np.float64) @ b.factors.astype(np.float64).T for a in table for b in table]
    for found, exact in zip(grams, wanted, strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-15)


def test_scores_alone_make_a_problem_without_interactions() -> None:
    model = model_of("residual")
    table, settled, _ = divided(model, np.random.default_rng(4))
    bare = tuple(
        TensorSensitivity(
            name=one.name,
            role=one.role,
            members=one.members,
            bits=one.bits,
            scores=one.scores,
            errors=one.errors,
            factors=one.factors[:, :0],
        )
        for one in table
    )
    measured = SensitivityTable(tensors=bare, method="measured", samples=5, probes=0, fingerprint="f")
    assert formulate(measured, model, {"weights": 1.0}, settled).factors is None


def test_only_what_is_limited_has_rows() -> None:
    model = model_of("residual")
    table, settled, _ = divided(model, np.random.default_rng(4))
    for resource in ("weights", "activations", "total", "bit_operations"):
        problem = formulate(table, model, {resource: 7.0}, settled)
        assert {resource_of(row.name) for row in problem.rows} == {resource}
    rows = formulate(table, model, {"activations": 7.0}, settled).rows
    assert len(rows) == len(model.cuts)
    assert all(" at " in row.name for row in rows)


def test_settled_kernels_of_a_layer_without_choice() -> None:
    model = model_of("residual")
    random = np.random.default_rng(0)
    layers = list(model.kernels)
    table = SensitivityTable(
        tensors=(entry(layers[0], "weights", (8, 4), random),), method="m", samples=1, probes=1, fingerprint="f"
    )
    problem = formulate(table, model, {"weights": math.inf}, Widths(weights={layers[1]: 2}))
    assert largest(problem, [1], "weights") == model.weights({layers[0]: 4, layers[1]: 2})
    # What is in neither is in float.
    problem = formulate(table, model, {"weights": math.inf}, Widths())
    assert largest(problem, [0], "weights") == model.weights({layers[0]: 8, layers[1]: None})


def test_widths_of_an_assignment_are_those_of_all_members() -> None:
    random = np.random.default_rng(0)
    tensors = (entry("conv", "weights", (8, 4), random), entry("x", "activations", (8, 4), random, ("x", "y")))
    table = SensitivityTable(tensors=tensors, method="m", samples=1, probes=1, fingerprint="f")
    settled = Widths(weights={"head": 2}, activations={"z": 16})
    found = widths_of(table, (1, 1), settled)
    assert found == Widths(weights={"head": 2, "conv": 4}, activations={"z": 16, "x": 4, "y": 4})
    assert widths_of(table, (0, 1), Widths()).weights == {"conv": 8}
    with pytest.raises(ValueError):
        widths_of(table, (0,), Widths())


def test_a_limit_of_time_without_times_is_refused_before() -> None:
    model = model_of("residual")
    with pytest.raises(ConfigError, match="latency"):
        Budget(latency=1.0).limits(model.figures(8, 8))
