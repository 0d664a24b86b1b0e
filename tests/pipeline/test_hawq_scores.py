"""HAWQ scores by the front door: they come from Hessian traces, and widths are chosen by them."""

from __future__ import annotations

import numpy as np
import pytest

import detent
from tests.pipeline.mixed_network import choose, images, network, target


def test_widths_are_chosen_by_them() -> None:
    found = choose({"weights": "60%"}, mixed={"scores": "hawq"})
    assert found.use["weights"] <= found.limits["weights"]
    assert not found.interactions
    assert found.objective > 0


def test_hawq_scores_come_from_traces_of_what_has_a_choice() -> None:
    graph, stats = network()
    mixed = {"scores": "hawq", "samples": 8, "loss": "fisher", "weights_widths": (8, 4), "activation_widths": (8,)}
    table = detent.score(graph, stats, images(), target=target(), mixed_precision=mixed, progress=False)
    traces = detent.estimate_traces(graph, images(), stats=stats, target=target(), samples=8, loss="fisher")
    assert table.method == f"hawq, {traces.method}"
    plan = detent.plan(graph, stats, target=target(), weights_bits=4)
    for tensor in (one for one in table if one.role == "weights"):
        kernel = graph.module.get_parameter(f"{tensor.name}.weight").detach().numpy()
        size = np.square(plan.weights[tensor.name].rounded(kernel) - kernel, dtype=np.float64).sum()
        assert tensor.score(4) == pytest.approx(traces.find(tensor.name, "weights").mean * size, rel=0.1)
        assert tensor.score(4) > tensor.score(8) >= 0
