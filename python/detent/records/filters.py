"""Filters: which operations of a network a rule is about. Frozen values, combined with `&`, `|` and `~`."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Final

from detent._registry import unknown_name
from detent.errors import ConfigError
from detent.targets.op_names import OP_NAMES

__all__ = [
    "AllOf",
    "AnyOf",
    "Filter",
    "Module",
    "Name",
    "Not",
    "Op",
    "Operation",
    "Position",
    "Regex",
    "Scope",
    "filter_from_dict",
]

OP_WORDS: Final = OP_NAMES | {"input"}
"""Words for operations: those of targets, and the inputs of the network."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What a filter sees of one operation of a network.

    Args:
        name: name of its output in plans and statistics.
        words: its kind and its own name; empty for an operator that detent knows nothing about.
        layer: path of the module that runs it.
        modules: full class names of the modules around it, outermost first.
        position: its place among the layers with a quantized kernel; None for all others.
        positions: how many such layers there are.
    """

    name: str
    words: tuple[str, ...] = ()
    layer: str = ""
    modules: tuple[str, ...] = ()
    position: int | None = None
    positions: int = 0


class Filter(ABC):
    """A condition on operations."""

    key: ClassVar[str]
    """Its word in JSON."""

    @abstractmethod
    def matches(self, operation: Operation) -> bool:
        """Whether the operation meets the condition."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain data: one key, the word of the condition."""

    def __and__(self, other: Filter) -> Filter:
        return AllOf(_parts(self, AllOf) + _parts(_checked(other), AllOf))

    def __or__(self, other: Filter) -> Filter:
        return AnyOf(_parts(self, AnyOf) + _parts(_checked(other), AnyOf))

    def __invert__(self) -> Filter:
        return self.part if isinstance(self, Not) else Not(self)

    def __bool__(self) -> bool:
        # `a and b` would silently be b.
        raise ConfigError("a filter is neither true nor false", remedy="combine filters with `&`, `|` and `~`")


@dataclass(frozen=True, repr=False)
class Op(Filter):
    """Operations of a kind (`"activation"`) or of a name (`"silu"`), in the words of targets; `"input"` for inputs."""

    key = "op"
    word: str

    def __post_init__(self) -> None:
        if not isinstance(self.word, str) or self.word not in OP_WORDS:
            raise unknown_name("operation", self.word, OP_WORDS)

    def matches(self, operation: Operation) -> bool:
        """Whether the word is its kind or its name."""
        return self.word in operation.words

    def to_dict(self) -> dict[str, Any]:
        """`{"op": "silu"}`."""
        return {self.key: self.word}

    def __repr__(self) -> str:
        return f"op({self.word!r})"


@dataclass(frozen=True, repr=False)
class Name(Filter):
    """Operations whose name is, or fits, a pattern with `*`, `?` and `[...]`."""

    key = "name"
    pattern: str

    def __post_init__(self) -> None:
        _check_text(self.pattern, "a name")

    def matches(self, operation: Operation) -> bool:
        """Whether the pattern covers the whole name; `chunk[0]` also is itself, not only a pattern."""
        return operation.name == self.pattern or fnmatchcase(operation.name, self.pattern)

    def to_dict(self) -> dict[str, Any]:
        """`{"name": "features.*"}`."""
        return {self.key: self.pattern}

    def __repr__(self) -> str:
        return f"name({self.pattern!r})"


@dataclass(frozen=True, repr=False)
class Regex(Filter):
    """Operations in whose name a regular expression is found."""

    key = "regex"
    pattern: str
    compiled: re.Pattern[str] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        _check_text(self.pattern, "a regular expression")
        try:
            object.__setattr__(self, "compiled", re.compile(self.pattern))
        except re.error as error:
            raise ConfigError(
                f"the regular expression {self.pattern!r} is not valid: {error}",
                remedy="correct it, or use name('...') for a pattern with `*` and `?`",
            ) from None

    def matches(self, operation: Operation) -> bool:
        """Whether the expression is found anywhere in the name."""
        return self.compiled.search(operation.name) is not None

    def to_dict(self) -> dict[str, Any]:
        """`{"regex": "^layer[12]"}`."""
        return {self.key: self.pattern}

    def __repr__(self) -> str:
        return f"regex({self.pattern!r})"


@dataclass(frozen=True, repr=False)
class Module(Filter):
    """Operations that run inside a module of a class, given by its name (`"SiLU"`) or full name."""

    key = "module"
    class_name: str

    def __post_init__(self) -> None:
        _check_text(self.class_name, "a class")

    def matches(self, operation: Operation) -> bool:
        """Whether any module around it is of the class."""
        return any(full == self.class_name or full.split(".")[-1] == self.class_name for full in operation.modules)

    def to_dict(self) -> dict[str, Any]:
        """`{"module": "SiLU"}`."""
        return {self.key: self.class_name}

    def __repr__(self) -> str:
        return f"module({self.class_name!r})"


@dataclass(frozen=True, repr=False)
class Scope(Filter):
    """Operations of the module at a path, and of everything under it."""

    key = "scope"
    path: str

    def __post_init__(self) -> None:
        _check_text(self.path, "a scope")

    def matches(self, operation: Operation) -> bool:
        """Whether the module that runs it is the one at the path or lies under it."""
        return operation.layer == self.path or operation.layer.startswith(self.path + ".")

    def to_dict(self) -> dict[str, Any]:
        """`{"scope": "features.3"}`."""
        return {self.key: self.path}

    def __repr__(self) -> str:
        return f"scope({self.path!r})"


@dataclass(frozen=True, repr=False)
class Position(Filter):
    """Layers with a quantized kernel by their place in execution order, as a slice: -1 is the last, None the end."""

    key = "position"
    start: int | None
    stop: int | None

    def __post_init__(self) -> None:
        for value in (self.start, self.stop):
            if value is not None and type(value) is not int:
                raise ConfigError(f"a position is a whole number, got {value!r}")

    def matches(self, operation: Operation) -> bool:
        """Whether it is a layer with a quantized kernel in that range."""
        if operation.position is None:
            return False
        return operation.position in range(*slice(self.start, self.stop).indices(operation.positions))

    def to_dict(self) -> dict[str, Any]:
        """`{"position": [0, 1]}`."""
        return {self.key: [self.start, self.stop]}

    def __repr__(self) -> str:
        return f"position({self.start}, {self.stop})"


@dataclass(frozen=True, repr=False)
class AllOf(Filter):
    """Operations that meet all of several conditions; without any, all operations."""

    key = "all"
    parts: tuple[Filter, ...]

    def matches(self, operation: Operation) -> bool:
        """Whether every condition is met."""
        return all(part.matches(operation) for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """`{"all": [...]}`."""
        return {self.key: [part.to_dict() for part in self.parts]}

    def __repr__(self) -> str:
        return _joined(self.parts, " & ") if self.parts else "everything()"


@dataclass(frozen=True, repr=False)
class AnyOf(Filter):
    """Operations that meet at least one of several conditions."""

    key = "any"
    parts: tuple[Filter, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ConfigError("`any` of no conditions matches nothing", remedy="give at least one filter")

    def matches(self, operation: Operation) -> bool:
        """Whether some condition is met."""
        return any(part.matches(operation) for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """`{"any": [...]}`."""
        return {self.key: [part.to_dict() for part in self.parts]}

    def __repr__(self) -> str:
        return _joined(self.parts, " | ")


@dataclass(frozen=True, repr=False)
class Not(Filter):
    """Operations that do not meet a condition."""

    key = "not"
    part: Filter

    def matches(self, operation: Operation) -> bool:
        """Whether the condition is not met."""
        return not self.part.matches(operation)

    def to_dict(self) -> dict[str, Any]:
        """`{"not": {...}}`."""
        return {self.key: self.part.to_dict()}

    def __repr__(self) -> str:
        return f"~{_joined((self.part,), '')}"


_SIMPLE: Final[dict[str, type[Op | Name | Regex | Module | Scope]]] = {
    kind.key: kind for kind in (Op, Name, Regex, Module, Scope)
}
_KEYS: Final = (*_SIMPLE, Position.key, AllOf.key, AnyOf.key, Not.key)


def filter_from_dict(data: object) -> Filter:
    """Rebuild a filter from its `to_dict`'s data.

    Raises:
        ConfigError: not a filter, or one with a wrong value.
    """
    if not isinstance(data, Mapping) or len(data) != 1:
        raise ConfigError(
            f"a filter is an object with one key, got {data!r}", remedy=f"its key is one of {', '.join(_KEYS)}"
        )
    ((key, value),) = data.items()
    if key in _SIMPLE:
        return _SIMPLE[key](value)
    if key == Not.key:
        return ~filter_from_dict(value)
    if key not in _KEYS:
        raise unknown_name("filter", key, _KEYS)
    if not isinstance(value, list | tuple):
        raise ConfigError(f"`{key}` takes a list, got {value!r}")
    if key == Position.key:
        if len(value) != 2:
            raise ConfigError(f"`position` takes two numbers, the first place and the one behind the last; got {value}")
        return Position(value[0], value[1])
    parts = tuple(filter_from_dict(part) for part in value)
    return AllOf(parts) if key == AllOf.key else AnyOf(parts)


def _parts(part: Filter, kind: type[AllOf | AnyOf]) -> tuple[Filter, ...]:
    # everything() has no parts to merge into a larger conjunction, and needs none.
    return part.parts if isinstance(part, AllOf | AnyOf) and type(part) is kind else (part,)


def _checked(other: object) -> Filter:
    if not isinstance(other, Filter):
        raise ConfigError(f"a filter combines with filters, got {other!r}", remedy="for instance name('features.*')")
    return other


def _joined(parts: tuple[Filter, ...], word: str) -> str:
    mixed = [isinstance(part, AllOf | AnyOf) and len(part.parts) > 1 for part in parts]
    return word.join(f"({part!r})" if several else repr(part) for part, several in zip(parts, mixed, strict=True))


def _check_text(value: object, what: str) -> None:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{what} in a filter is a text that is not empty, got {value!r}")
