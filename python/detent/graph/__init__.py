"""Capture of models as graphs, op roles, layer names and patterns."""

from __future__ import annotations

from detent.graph.capture import capture
from detent.graph.graph import Graph, GraphNode
from detent.graph.layouts import BatchLayout
from detent.graph.patterns import fused_groups
from detent.graph.roles import OpRole, register
from detent.graph.signature import BatchSpec, InputSpec, with_network_types

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
    "with_network_types",
]
