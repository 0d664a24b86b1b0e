"""The words rules are written in: filters, what is asked for weights and activations, and `rule` itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from detent._registry import unknown_name
from detent.errors import ConfigError
from detent.records.choice import OPTIONS, TensorChoice
from detent.records.filters import AllOf, AnyOf, Filter, Module, Name, Op, Position, Regex, Scope
from detent.records.rules import Rule

__all__ = [
    "Action",
    "activations",
    "all_of",
    "any_of",
    "everything",
    "first",
    "last",
    "module",
    "name",
    "op",
    "position",
    "regex",
    "rule",
    "scope",
    "weights",
]


@dataclass(frozen=True)
class Action:
    """What is asked for the weights or the activations of the operations of a rule."""

    of: Literal["weights", "activations"]
    choice: TensorChoice

    def __repr__(self) -> str:
        return f"{self.of}({self.choice!r})"


def rule(where: Filter, *actions: Action) -> Rule:
    """A rule: what `actions` ask for the operations that `where` matches.

    Args:
        where: a filter, or several combined with `&`, `|` and `~`.
        *actions: `weights(...)`, `activations(...)`, or several of them; what they ask for is put together.

    Raises:
        ConfigError: no action, something that is none, or actions that contradict each other.
    """
    asked: dict[str, dict[str, Any]] = {}
    for action in actions:
        if not isinstance(action, Action):
            raise ConfigError(f"an action is weights(...) or activations(...), got {action!r}")
        options = asked.setdefault(action.of, {})
        for option in action.choice.options():
            value = getattr(action.choice, option)
            if options.setdefault(option, value) != value:
                raise ConfigError(
                    f"one rule asks for {option}={options[option]!r} and {option}={value!r} of {action.of}"
                )
    choices = {of: TensorChoice(**options) for of, options in asked.items()}
    return Rule(where=where, **choices)


def weights(**options: Any) -> Action:
    """What is asked for kernels.

    Args:
        **options: `bits`, `kind`, `metric`, `p`, `threshold`, `lower` and `upper`, `keep_float`, `grid`, `freeze`;
            `detent.records.choice.TensorChoice` says what they mean.

    Raises:
        ConfigError: an unknown option, one out of range, or options that contradict each other.
    """
    return Action("weights", _choice(options))


def activations(**options: Any) -> Action:
    """What is asked for the outputs of operations.

    Args:
        **options: as of `weights`, and `z_threshold`.

    Raises:
        ConfigError: as `weights`.
    """
    return Action("activations", _choice(options))


def _choice(options: dict[str, Any]) -> TensorChoice:
    for option in options:
        if option not in OPTIONS:
            raise unknown_name("option", option, OPTIONS)
    return TensorChoice(**options)


def op(word: str) -> Filter:
    """Operations of a kind (`"activation"`) or name (`"silu"`), in the words of target files; `"input"` for inputs."""
    return Op(word)


def name(pattern: str) -> Filter:
    """Operations whose name fits a pattern with `*`, `?` and `[...]`; a plain name is itself."""
    return Name(pattern)


def regex(pattern: str) -> Filter:
    """Operations in whose name a regular expression is found; anchor it with `^` and `$`."""
    return Regex(pattern)


def module(class_name: str) -> Filter:
    """Operations that run inside a module of that class, at any depth: `"SiLU"`, `"InvertedResidual"`."""
    return Module(class_name)


def scope(path: str) -> Filter:
    """Operations of the module at that path, and of everything under it: `"features.3"`."""
    return Scope(path)


def position(start: int | None, stop: int | None) -> Filter:
    """Layers with a quantized kernel by place, as the slice `[start:stop]`; negative counts from the end."""
    return Position(start, stop)


def first(count: int = 1) -> Filter:
    """The first layers with a quantized kernel."""
    return Position(0, _positive(count))


def last(count: int = 1) -> Filter:
    """The last layers with a quantized kernel."""
    return Position(-_positive(count), None)


def everything() -> Filter:
    """All operations."""
    return AllOf(())


def all_of(*filters: Filter) -> Filter:
    """Operations that meet every one of the filters, as `&` between them."""
    return AllOf(_filters(filters))


def any_of(*filters: Filter) -> Filter:
    """Operations that meet at least one of the filters, as `|` between them."""
    return AnyOf(_filters(filters))


def _positive(count: int) -> int:
    if type(count) is not int or count < 1:
        raise ConfigError(f"a number of layers is a whole number from 1, got {count!r}")
    return count


def _filters(filters: tuple[Filter, ...]) -> tuple[Filter, ...]:
    for part in filters:
        if not isinstance(part, Filter):
            raise ConfigError(f"a filter combines with filters, got {part!r}", remedy="for instance name('features.*')")
    return filters
