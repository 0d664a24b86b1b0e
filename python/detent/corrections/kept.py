"""Corrections that outlive the plan they were made for."""

from __future__ import annotations

from collections.abc import Collection

from detent.graph.placement import Placement
from detent.records.correction import BiasCorrection
from detent.records.plan import QuantPlan

__all__ = ["corrections_of"]


def corrections_of(plan: QuantPlan, placement: Placement, layers: Collection[str]) -> dict[str, BiasCorrection]:
    """The bias corrections of a plan that belong to the kernels of some layers."""
    users = {user for layer in layers for user in placement.weights[layer].users}
    return {name: correction for name, correction in plan.bias_corrections.items() if name in users}
