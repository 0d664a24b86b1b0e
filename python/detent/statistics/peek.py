"""The first batch of calibration data, as example inputs for capturing the model it belongs to."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from detent.errors import CalibrationError
from detent.statistics.data import read_npz

__all__ = ["first_batch"]

_ENOUGH = 2
"""Samples in an example: torch.export needs two to tell a batch axis from an axis of one."""


def first_batch(data: Any, model: object) -> tuple[Any, Any]:
    """Example inputs for `model` from calibration data, and the data with nothing lost.

    Args:
        data: calibration data in any accepted form; whole arrays give their first samples.
        model: what the example is for; a module's signature tells inputs from labels.

    Returns:
        The example, and `data` itself or, if it was a one-shot iterator, one that starts again at the first batch.

    Raises:
        CalibrationError: the data are empty, or nothing tells which of several arrays is the input.
    """
    if isinstance(data, str | Path):
        arrays = read_npz(Path(data))
        return _only_inputs({name: _head(array) for name, array in arrays.items()}, model), data
    if isinstance(data, torch.Tensor | np.ndarray):
        return _head(data), data
    if isinstance(data, Mapping):
        return _only_inputs({name: _head(array) for name, array in data.items()}, model), data
    source = data() if callable(data) and not isinstance(data, Iterable) else data
    if not isinstance(source, Iterable) and not hasattr(source, "__getitem__"):
        raise CalibrationError(
            f"data of type {type(source).__name__} cannot be iterated over",
            remedy="give a DataLoader, an iterable or a function of batches, an array, or the path of an .npz file",
        )
    batches = iter(source)
    first = next(batches, None)
    if first is None:
        raise CalibrationError("the data are empty: not a single batch came", remedy="give at least one batch")
    if batches is data:
        data = itertools.chain([first], batches)
    return _only_inputs(_tensors(_without_other_things(first)), model), data


def _without_other_things(batch: Any) -> Any:
    """Drop what no model takes: labels that are names, numbers or records of them, entries such as file names."""
    if isinstance(batch, Mapping):
        return {name: part for name, part in batch.items() if _holds_tensors(part)} or batch
    if (
        isinstance(batch, tuple | list)
        and len(batch) > 1
        and _holds_tensors(batch[0])
        and not _holds_tensors(batch[-1])
    ):
        return tuple(batch[:-1])
    return batch


def _holds_tensors(part: Any) -> bool:
    return all(isinstance(leaf, torch.Tensor | np.ndarray) for leaf in pytree.tree_leaves(part))


def _tensors(batch: Any) -> Any:
    if isinstance(batch, np.ndarray):
        return torch.from_numpy(batch.copy())
    if isinstance(batch, Mapping):
        return {name: _tensors(part) for name, part in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(_tensors(part) for part in batch)
    if not isinstance(batch, torch.Tensor):
        raise CalibrationError(
            f"the first batch holds a {type(batch).__name__}, not a tensor or an array",
            remedy="give batches as tensors or NumPy arrays, or tuples or dicts of them",
        )
    return batch


def _head(array: Any) -> torch.Tensor:
    if not isinstance(array, torch.Tensor | np.ndarray):
        raise CalibrationError(
            f"the data hold a {type(array).__name__} where an array is expected",
            remedy="give a dict of arrays by input name, or an iterable of batches",
        )
    if array.ndim == 0 or not len(array):
        raise CalibrationError("the data are empty: an array without samples", remedy="give at least one sample")
    head = array[:_ENOUGH]
    return head.clone() if isinstance(head, torch.Tensor) else torch.from_numpy(head.copy())


def _only_inputs(batch: Any, model: object) -> Any:
    """The parts of a batch that are the model's inputs; the rest (labels) is left to the calibration to note."""
    if not isinstance(model, nn.Module):
        return batch
    parameters = list(inspect.signature(model.forward).parameters.values())
    if isinstance(batch, tuple):
        return _without_labels(batch, parameters, model)
    if isinstance(batch, dict):
        return _by_name(batch, parameters)
    return batch


def _without_labels(batch: tuple[Any, ...], parameters: list[inspect.Parameter], model: nn.Module) -> Any:
    if len(batch) == 2 and isinstance(batch[0], tuple | dict):
        return _only_inputs(batch[0], model)
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = sum(parameter.default is parameter.empty for parameter in positional)
    if not any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        batch = batch[: len(positional)]
    # `forward(x, return_features=False)` could take the labels of an (x, y) pair as its second argument.
    while len(batch) > max(required, 1) and _look_like_labels(batch[-1]):
        batch = batch[:-1]
    return batch


def _look_like_labels(part: Any) -> bool:
    return isinstance(part, torch.Tensor) and not part.is_floating_point() and part.ndim <= 1


def _by_name(batch: dict[str, Any], parameters: list[inspect.Parameter]) -> Any:
    names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    known = {name: part for name, part in batch.items() if name in names}
    if known:
        return known
    images = [part for part in batch.values() if part.is_floating_point() and part.ndim > 1]
    # Raw images are integers, as labels are, but labels have no axes besides the batch.
    images = images or [part for part in batch.values() if part.ndim > 1]
    if len(names) == 1 and len(images) == 1:
        return images[0]
    raise CalibrationError(
        f"nothing tells which of the arrays {sorted(batch)} are the model's inputs ({', '.join(names)})",
        remedy="name the arrays like the arguments of the model's forward",
    )
