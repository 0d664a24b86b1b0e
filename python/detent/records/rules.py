"""`Rule`: where something shall be decided otherwise, and how; as a value that is saved with the plan it shaped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from detent._registry import unknown_name
from detent._validation import parse_json
from detent.errors import ConfigError
from detent.records.choice import TensorChoice
from detent.records.files import read_text, write_atomically
from detent.records.filters import Filter, filter_from_dict

__all__ = ["Rule", "checked_rules", "load_rules", "rules_from_data", "save_rules"]

_KEYS: Final = ("where", "weights", "activations")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What is asked for the tensors of the operations that a filter matches.

    Args:
        where: the operations.
        weights: what is asked for their kernels; None asks nothing.
        activations: what is asked for their outputs; None asks nothing.

    Raises:
        ConfigError: the rule asks nothing, or something a kernel does not have.
    """

    where: Filter
    weights: TensorChoice | None = None
    activations: TensorChoice | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.where, Filter):
            raise ConfigError(f"`where` is a filter, got {self.where!r}", remedy="for instance op('silu')")
        if not any(choice is not None and choice.options() for choice in (self.weights, self.activations)):
            raise ConfigError("the rule asks for nothing", where=repr(self), remedy="for instance activations(bits=16)")
        if self.weights is not None and self.weights.z_threshold is not None:
            raise ConfigError(
                "`z_threshold` is for activations, a kernel has no outliers to leave out", where=repr(self)
            )
        if self.weights is not None and self.weights.metric == "moving_maximum":
            raise ConfigError("a moving maximum is collected from activations, a kernel has none", where=repr(self))
        if self.activations is not None and self.activations.group_size is not None:
            raise ConfigError("`group_size` is for weights, an activation has one step", where=repr(self))

    def __repr__(self) -> str:
        actions = [
            f"{name}({choice!r})" for name in ("weights", "activations") if (choice := getattr(self, name)) is not None
        ]
        return f"rule({', '.join([repr(self.where), *actions])})"

    def to_dict(self) -> dict[str, Any]:
        """Plain data: `where`, and what is asked for `weights` and `activations`."""
        data: dict[str, Any] = {"where": self.where.to_dict()}
        for name in ("weights", "activations"):
            choice = getattr(self, name)
            if choice is not None:
                data[name] = choice.to_dict()
        return data

    @classmethod
    def from_dict(cls, data: object) -> Rule:
        """Rebuild a rule from `to_dict`'s data.

        Raises:
            ConfigError: an unknown key or a value that makes no sense.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"a rule is an object with the keys {', '.join(_KEYS)}, got {data!r}")
        for key in data:
            if key not in _KEYS:
                raise unknown_name("key of a rule", key, _KEYS)
        if "where" not in data:
            raise ConfigError("a rule needs `where`", remedy='for instance {"op": "silu"}')
        choices = {name: TensorChoice.from_dict(data[name]) for name in ("weights", "activations") if name in data}
        return cls(where=filter_from_dict(data["where"]), **choices)


def rules_from_data(data: object, where: str) -> tuple[Rule, ...]:
    """Rules from a list of plain data.

    Raises:
        ConfigError: not a list, or a rule that makes no sense; the error counts rules from 1.
    """
    if not isinstance(data, list | tuple):
        raise ConfigError("rules are a list", where=where)
    found = []
    for number, entry in enumerate(data, 1):
        try:
            found.append(Rule.from_dict(entry))
        except ConfigError as error:
            raise ConfigError(error.what, where=f"{where}: rule {number}", remedy=error.remedy) from None
    return tuple(found)


def save_rules(rules: Iterable[Rule], path: str | Path) -> None:
    """Write rules as a JSON list, one rule a line.

    Raises:
        FormatError: the file cannot be written.
    """
    lines = ",\n".join("  " + json.dumps(rule.to_dict(), ensure_ascii=False) for rule in rules)
    write_atomically(Path(path), (f"[\n{lines}\n]\n" if lines else "[]\n").encode())


def load_rules(path: str | Path) -> tuple[Rule, ...]:
    """Read a JSON list of rules.

    Raises:
        FormatError: the file cannot be read or is not JSON.
        ConfigError: a rule that makes no sense; the error counts rules from 1.
    """
    data = parse_json(read_text(Path(path)), str(path), remedy="a rules file is a JSON list of rules")
    return rules_from_data(data, str(path))


def checked_rules(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The rules as a tuple.

    Raises:
        ConfigError: not a sequence of rules.
    """
    if isinstance(rules, Rule | str) or not isinstance(rules, Iterable):
        raise ConfigError(f"`rules` is a list of rules, got {rules!r}", remedy="detent.edit.load_rules reads a file")
    found = tuple(rules)
    for rule in found:
        if not isinstance(rule, Rule):
            raise ConfigError(f"`rules` holds detent.edit.rule(...), got {rule!r}")
    return found
