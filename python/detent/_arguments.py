"""What the functions of the pipeline check of their arguments before they begin."""

from __future__ import annotations

from pathlib import Path

from detent.errors import ConfigError
from detent.graph import Graph
from detent.records.plan import QuantPlan
from detent.records.statistics import Statistics
from detent.targets import Target, load_target, target_names

__all__ = ["check_plan_is_of", "expect", "fingerprint_of", "path_of", "reference_of"]


def expect(value: object, kind: type, name: str, maker: str) -> None:
    """Refuse an argument of another type.

    Args:
        value: the argument.
        kind: what it must be.
        name: what the function calls it.
        maker: the function that returns such a thing, for the remedy.

    Raises:
        ConfigError: it is of another type.
    """
    if not isinstance(value, kind):
        raise ConfigError(
            f"`{name}` must be a {kind.__name__}, got a {type(value).__name__}", remedy=f"pass what {maker} returns"
        )


def path_of(given: object, name: str) -> Path:
    """The path of a file that an argument names.

    Raises:
        ConfigError: it is neither a path nor a word, or empty.
    """
    if not isinstance(given, str | Path) or not str(given):
        raise ConfigError(f"`{name}` must be the path of a file, got {given!r}")
    return Path(given)


def fingerprint_of(graph: Graph, stats: Statistics) -> str:
    """The fingerprint of a graph.

    Raises:
        ConfigError: an argument of another type, or the statistics are of another graph.
    """
    expect(graph, Graph, "graph", "detent.capture")
    expect(stats, Statistics, "stats", "detent.calibrate")
    fingerprint = graph.fingerprint()
    if stats.fingerprint != fingerprint:
        raise ConfigError(
            f"the statistics were collected from another model (graph {stats.fingerprint[:12]}, this one is "
            f"{fingerprint[:12]})",
            remedy="calibrate this model",
        )
    return fingerprint


def check_plan_is_of(plan: QuantPlan, fingerprint: str, name: str) -> None:
    """Refuse a plan of another graph; `name` is what the function calls it.

    Raises:
        ConfigError: it is no plan, or of another graph.
    """
    expect(plan, QuantPlan, name, "detent.plan or QuantPlan.load")
    if plan.graph != fingerprint:
        raise ConfigError(
            f"`{name}` was made for another model (graph {plan.graph[:12]}, this one is {fingerprint[:12]})",
            remedy="pass the plan of this model",
        )


def reference_of(target: str | Path | Target) -> str:
    """What a plan calls its target: the name of a built-in one, or the path of a file.

    Raises:
        ConfigError: a target that has neither.
    """
    if not isinstance(target, Target):
        return str(target)
    if target.name in target_names() and load_target(target.name) == target:
        return target.name
    raise ConfigError(
        "a plan refers to its target by name or path, and this one is an object",
        where=f"target {target.name!r}",
        remedy="pass the path of its file; target.model_dump_json() gives the text to save",
    )
