"""Frozen pydantic models whose mistakes become a `ConfigError` that says which key, and what was probably meant."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from detent._registry import unknown_name
from detent.errors import ConfigError, FormatError

__all__ = ["FrozenModel", "Options", "config_error", "parse_json", "validate"]


class FrozenModel(BaseModel):
    """Base of everything a user writes: immutable, no unknown keys, no silent conversion between types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    def differences(self) -> dict[str, Any]:
        """What differs from the defaults, as plain data; the constructor restores it from that."""
        fields = type(self).model_fields
        changed = {name: value for name, value in self if value != fields[name].default}
        return {
            name: value.differences() if isinstance(value, FrozenModel) else value for name, value in changed.items()
        }


Given = TypeVar("Given", bound="Options")


class Options(FrozenModel):
    """Base of what a user makes by keywords.

    Raises:
        ConfigError: an unknown key (with a suggestion) or a value out of range.
    """

    def __init__(self, **options: Any) -> None:
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise config_error(error, type(self)) from None

    @classmethod
    def of(cls: type[Given], given: Given | Mapping[str, Any] | None, name: str) -> Given:
        """The options from what a user gives for them under `name`: themselves, a mapping, or nothing.

        Raises:
            ConfigError: it is something else, or as the constructor.
        """
        if given is None:
            return cls()
        if isinstance(given, cls):
            return given
        if isinstance(given, Mapping) and all(isinstance(key, str) for key in given):
            return cls(**given)
        raise ConfigError(f"`{name}` must be a {cls.__name__} or a mapping of its options, got {type(given).__name__}")


Model = TypeVar("Model", bound=FrozenModel)


def validate(model: type[Model], data: object, *, where: str) -> Model:
    """Build `model` from plain JSON data.

    Raises:
        ConfigError: a wrong or unknown key; names the key and the nearest known one.
    """
    try:
        # JSON has no tuples: its arrays are accepted for them, everything else stays strict.
        return model.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise config_error(error, model, where=where) from None


def parse_json(text: str, where: str, *, remedy: str) -> Any:
    """Parse JSON that a person may have edited.

    Raises:
        ConfigError: an object has the same key twice.
        FormatError: this is not JSON.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except ConfigError as error:
        raise ConfigError(error.what, where=where) from None
    except ValueError as error:
        raise FormatError(f"not valid JSON: {error}", where=where, remedy=remedy) from None
    except RecursionError:
        raise FormatError("not valid JSON: nested too deeply", where=where, remedy=remedy) from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # JSON lets the last of two equal keys win; in a file written by hand that hides a mistake.
    data: dict[str, Any] = {}
    for key, value in pairs:
        if key in data:
            raise ConfigError(f"key {key!r} is written twice in one object")
        data[key] = value
    return data


def config_error(error: ValidationError, model: type[BaseModel], *, where: str | None = None) -> ConfigError:
    """Translate pydantic's first complaint; the number of further ones is told."""
    complaints = error.errors(include_url=False)
    first = complaints[0]
    location = tuple(part for part in first["loc"] if part != "[key]")
    key = ".".join(str(part) for part in location)
    place = ": ".join(part for part in (where, key) if part) or None
    more = f" (and {len(complaints) - 1} more)" if len(complaints) > 1 else ""
    context: dict[str, Any] = first.get("ctx", {})
    cause = context.get("error")
    if isinstance(cause, ConfigError):
        # A part that is a model of its own says where within it.
        inner = ".".join(part for part in (key, cause.where) if part)
        place = ": ".join(part for part in (where, inner) if part) or None
        return ConfigError(cause.what + more, where=place, remedy=cause.remedy)
    if first["type"] == "extra_forbidden":
        owner = _model_at(model, location[:-1])
        unknown = unknown_name("key", location[-1], owner.model_fields if owner else ())
        owner_place = ": ".join(part for part in (where, ".".join(map(str, location[:-1]))) if part)
        return ConfigError(unknown.what + more, where=owner_place or None, remedy=unknown.remedy)
    if first["type"] == "literal_error":
        known = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        if known:
            unknown = unknown_name("value", first["input"], known)
            return ConfigError(unknown.what + more, where=place, remedy=unknown.remedy)
    if first["type"] == "missing":
        return ConfigError(f"key {key!r} is missing{more}", where=where)
    return ConfigError(f"{first['msg']}, got {first['input']!r}{more}", where=place)


def _model_at(model: type[BaseModel], location: Iterable[int | str]) -> type[BaseModel] | None:
    """The model that owns the keys at `location`, found by walking the annotations."""
    current: Any = model
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(str(part))
            if field is None:
                return None
            current = _strip_optional(field.annotation)
        else:
            arguments = get_args(current)  # dict[str, X] or tuple[X, ...]
            if not arguments:
                return None
            current = _strip_optional(arguments[1] if get_origin(current) is dict else arguments[0])
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None


def _strip_optional(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [argument for argument in get_args(annotation) if argument is not type(None)]
        return rest[0] if len(rest) == 1 else annotation
    return annotation
