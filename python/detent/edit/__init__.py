"""The network editor: rules that change what the planner would decide, for the tensors that filters name.

    rules = [
        edit.rule(edit.op("silu"), edit.activations(bits=16)),
        edit.rule(edit.first() | edit.last(), edit.weights(bits=8)),
        edit.rule(edit.scope("head") & ~edit.name("*.gate"), edit.weights(keep_float=True)),
    ]
    plan = detent.plan(graph, stats, target="onnxruntime", rules=rules)

Later rules win. The word of every filter and option is the same in Python and in JSON.
"""

from __future__ import annotations

from detent.edit.resolve import resolve_changes, resolve_rules
from detent.edit.rules import (
    activations,
    all_of,
    any_of,
    everything,
    first,
    last,
    module,
    name,
    op,
    position,
    regex,
    rule,
    scope,
    weights,
)
from detent.records.filters import Filter
from detent.records.rules import Rule, load_rules, save_rules

__all__ = [
    "Filter",
    "Rule",
    "activations",
    "all_of",
    "any_of",
    "everything",
    "first",
    "last",
    "load_rules",
    "module",
    "name",
    "op",
    "position",
    "regex",
    "resolve_changes",
    "resolve_rules",
    "rule",
    "save_rules",
    "scope",
    "weights",
]
