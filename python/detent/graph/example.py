"""Example inputs in any form, bound to the model's forward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from detent.config import Preprocessing, assign_records
from detent.errors import CaptureError

__all__ = ["Example", "bind_example", "normalize_example"]


@dataclass(frozen=True, kw_only=True)
class Example:
    """Arguments for one call of the model.

    Args:
        args: positional arguments.
        kwargs: keyword arguments.
        batch: samples in them: the length of axis 0 of the first tensor that has axes.
        notes: what was done to the user's example.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    batch: int
    notes: tuple[str, ...] = ()

    def repeated(self) -> Example:
        """The same example with two samples, where it has one; tracing treats a length of one as fixed."""

        def twice(leaf: Any) -> Any:
            batched = isinstance(leaf, torch.Tensor) and leaf.dim() > 0 and leaf.shape[0] == 1
            return torch.cat([leaf, leaf]) if batched else leaf

        args, kwargs = pytree.tree_map(twice, (self.args, self.kwargs))
        return replace(self, args=args, kwargs=kwargs, batch=2)

    def is_batched(self, leaf: Any) -> bool:
        """Whether a leaf of the arguments is a tensor with one entry along axis 0 for each sample."""
        return isinstance(leaf, torch.Tensor) and leaf.dim() > 0 and leaf.shape[0] == self.batch


def bind_example(forward: Callable[..., Any], example: Any) -> Example:
    """Read an example given as a tensor, array, tuple, list or dict as arguments of `forward`.

    A dict whose keys are parameter names becomes keyword arguments, any other dict the single argument. A tuple or
    list is the arguments in order; if they do not fit, it is the single argument, or an (input, labels) pair whose
    labels are dropped with a note.

    Raises:
        CaptureError: nothing fits the model's parameters, there is no tensor, or the batch is empty.
    """
    example = pytree.tree_map(_as_tensor, example)
    signature = inspect.signature(forward)
    for args, kwargs, note in _readings(example):
        if _fits(signature, args, kwargs):
            return Example(args=args, kwargs=kwargs, batch=_batch_size((args, kwargs)), notes=(note,) if note else ())
    given = f"{len(example)} inputs" if isinstance(example, tuple | list) else f"keys {sorted(map(str, example))}"
    raise CaptureError(
        f"the example has {given}, which do not fit the model's parameters {signature}",
        where=_location(forward),
        remedy="give one tensor per parameter, as a tuple in order or as a dict by name",
    )


def normalize_example(
    model: nn.Module, example: Any, preprocessing: Preprocessing | Mapping[str, Preprocessing]
) -> Any:
    """An example of raw input as the model takes it: every tensor of an input that a record is for is normalized.

    Args:
        model: its forward names the inputs.
        example: as `bind_example` takes it.
        preprocessing: one record for all tensors, or records by input name; parts of an input that is a dict or a
            tuple are called `<parameter>_<key>`.

    Raises:
        CaptureError: as `bind_example`.
        ConfigError: a record for no input, or channels that are not those of the example.
    """
    if example is None:
        return None
    read = bind_example(model.forward, example)
    bound = inspect.signature(model.forward).bind(*read.args, **read.kwargs)
    leaves, structure = pytree.tree_flatten_with_path(dict(bound.arguments))
    paths = [[str(getattr(step, "key", getattr(step, "idx", ""))) for step in path] for path, _ in leaves]
    values = [leaf for _, leaf in leaves]
    # An input goes by its whole path or by its last step.
    tensors = [path for path, value in zip(paths, values, strict=True) if isinstance(value, torch.Tensor)]
    names = {path[-1]: "_".join(path) for path in tensors} | {"_".join(path): "_".join(path) for path in tensors}
    records = assign_records(preprocessing, names)
    for index, path in enumerate(paths):
        record = records.get("_".join(path))
        if record is not None:
            values[index] = torch.from_numpy(record.normalize(values[index].detach().cpu().numpy()))
    bound.arguments.update(pytree.tree_unflatten(values, structure))
    return bound.arguments if bound.kwargs else bound.args


def _readings(example: Any) -> list[tuple[tuple[Any, ...], dict[str, Any], str]]:
    if isinstance(example, Mapping):
        readings: list[tuple[tuple[Any, ...], dict[str, Any], str]] = []
        if all(isinstance(key, str) for key in example):
            readings.append(((), dict(example), ""))
        return [*readings, ((example,), {}, "")]
    if not isinstance(example, tuple | list):
        return [((example,), {}, "")]
    readings = [(tuple(example), {}, "")]
    if len(example) == 2 and _looks_like_labels(example):
        note = "the example is an (input, labels) pair: its labels were left out"
        readings += [(r[0], r[1], note) for r in _readings(example[0])]
    return [*readings, ((example,), {}, "")]


def _looks_like_labels(pair: tuple[Any, ...] | list[Any]) -> bool:
    data, labels = pair
    leaves = [leaf for leaf in pytree.tree_leaves(data) if isinstance(leaf, torch.Tensor)]
    same = bool(leaves) and isinstance(labels, torch.Tensor) and labels.dim() > 0 and leaves[0].dim() > labels.dim()
    return same and leaves[0].shape[0] == labels.shape[0]


def _fits(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _batch_size(arguments: Any) -> int:
    tensors = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, torch.Tensor)]
    if not tensors:
        raise CaptureError(
            "the example holds no tensor", remedy="give the model's inputs as tensors, the batch in front"
        )
    for tensor in tensors:
        if not tensor.numel():
            raise CaptureError(
                f"the example holds an empty tensor of shape {tuple(tensor.shape)}",
                remedy="give an example with at least one sample",
            )
    return next((int(t.shape[0]) for t in tensors if t.dim()), 1)


def _as_tensor(leaf: Any) -> Any:
    return torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf


def _location(forward: Callable[..., Any]) -> str | None:
    try:
        function = inspect.unwrap(forward)
        return f"{inspect.getsourcefile(function)}:{inspect.getsourcelines(function)[1]}"
    except (OSError, TypeError):
        return None
