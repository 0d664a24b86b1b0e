"""Finding and reading target files, built in or the user's."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from detent._registry import unknown_name
from detent._validation import parse_json, validate
from detent.errors import ConfigError, FormatError
from detent.targets.schema import Target, merge_rules, overlay

__all__ = ["load_target", "target_names"]


def target_names() -> list[str]:
    """Names of the built-in targets, sorted."""
    return sorted(
        entry.name.removesuffix(".json")
        for entry in resources.files("detent.targets").iterdir()
        if entry.name.endswith(".json")
    )


def load_target(name_or_path: str | Path | Target) -> Target:
    """Read a target by name, or from a user's `.json` file; a `Target` is returned as it is.

    Raises:
        ConfigError: unknown name, or a wrong entry in the file; names the key and the nearest known one.
        FormatError: the file is not readable JSON.
    """
    if isinstance(name_or_path, Target):
        return name_or_path
    text = str(name_or_path)
    data, where = _read(text, Path(), trail=())
    return validate(Target, merge_rules(data), where=where)


def _read(name: str, folder: Path, trail: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    """The raw data of a target with everything it extends laid under it, and where it came from."""
    is_path = name.endswith(".json") or "/" in name or "\\" in name
    if is_path:
        path = folder / Path(name).expanduser()
        where, identity = str(path), str(path.resolve())
        text = _read_file(path)
    else:
        if name not in target_names():
            error = unknown_name("target", name, target_names())
            raise ConfigError(error.what, where=trail[-1] if trail else None, remedy=f"{error.remedy}; or a path.json")
        path = folder
        where, identity = f"target {name!r}", name
        text = (resources.files("detent.targets") / f"{name}.json").read_text(encoding="utf-8")
    if identity in trail:
        raise ConfigError(f"`extends` goes round in a circle: {' -> '.join((*trail, identity))}", where=where)
    data = _parse(text, where)
    base = data.pop("extends", None)
    if base is None:
        return data, where
    if not isinstance(base, str):
        raise ConfigError("`extends` is the name or the path of another target", where=where)
    under, _ = _read(base, path.parent if is_path else folder, (*trail, identity))
    return overlay(under, data), where


def _read_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            "there is no such target file", where=str(path), remedy=f"built in are {', '.join(target_names())}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"cannot read the target file: {error}", where=str(path)) from None


def _parse(text: str, where: str) -> dict[str, Any]:
    data = parse_json(text, where, remedy="correct the file")
    if not isinstance(data, dict):
        raise FormatError("a target file holds one JSON object", where=where)
    return data
