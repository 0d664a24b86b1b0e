"""Nested tuples, lists and dicts of tensors as plain data."""

from __future__ import annotations

from typing import Any

from torch.utils import _pytree as pytree

from detent.errors import UnsupportedOpError

__all__ = ["described_structure", "restored_structure"]


def described_structure(spec: pytree.TreeSpec, what: str) -> Any:
    """What a call takes or returns, as plain data.

    Args:
        spec: as torch keeps it.
        what: `"takes"` or `"returns"`, for the error.

    Raises:
        UnsupportedOpError: an object that is no tuple, list or dict with names or numbers as keys.
    """
    data = _described(pytree.tree_unflatten(list(range(spec.num_leaves)), spec), what)
    assert restored_structure(data) == spec
    return data


def restored_structure(data: Any) -> pytree.TreeSpec:
    """The structure that `described_structure` described."""
    return pytree.tree_flatten(_restored(data))[1]


def _described(value: Any, what: str) -> Any:
    kind = type(value)
    if kind is int:
        return value
    if kind in (tuple, list):
        return {kind.__name__: [_described(one, what) for one in value]}
    if kind is dict and all(type(key) in (int, str) for key in value):
        return {"dict": [[key, _described(one, what)] for key, one in value.items()]}
    raise UnsupportedOpError(
        f"the network {what} a {kind.__name__}, which cannot be written",
        remedy="capture a module whose inputs and outputs are tensors in tuples, lists and dicts",
    )


def _restored(data: Any) -> Any:
    if isinstance(data, int):
        return data
    ((word, content),) = data.items()
    if word == "dict":
        return {key: _restored(one) for key, one in content}
    return {"tuple": tuple, "list": list}[word](_restored(one) for one in content)
