"""Capture of models as graphs, op roles, layer names and patterns."""

from __future__ import annotations

from detent.graph.axes import BatchLayout
from detent.graph.capture import capture
from detent.graph.graph import BatchSpec, Graph, GraphNode, InputSpec
from detent.graph.patterns import fused_groups
from detent.graph.roles import OpRole, register

__all__ = [
    "BatchLayout",
    "BatchSpec",
    "Graph",
    "GraphNode",
    "InputSpec",
    "OpRole",
    "capture",
    "fused_groups",
    "register",
]
