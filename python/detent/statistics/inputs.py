"""Checks every calibration batch against the inputs the model was captured with.

Nothing is cast or moved, but for raw integers where the model's preprocessing declares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from detent.errors import CalibrationError, CaptureError
from detent.graph import Graph, InputSpec

__all__ = ["describe_input", "fits", "match_batch"]


def match_batch(item: Any, graph: Graph, where: str, notes: list[str]) -> list[torch.Tensor]:
    """The model's input tensors, in its order, from one batch in any of the accepted forms.

    Args:
        item: a tensor or array; a tuple or list of them in the order of the inputs; a dict of them by name; the
            structure the model itself takes; any of these in a pair with labels.
        graph: the model.
        where: which batch this is, for errors.
        notes: receives what was left out.

    Raises:
        CalibrationError: the batch does not fit the model.
    """
    item = _without_labels(item, graph.inputs, where, notes)
    if isinstance(item, Mapping):
        known = {name for spec in graph.inputs for name in (spec.name, spec.key)}
        nested = any(isinstance(value, Mapping | tuple | list) for value in item.values())
        for key in () if nested else item:
            if key not in known:
                note(notes, f"entry {key!r} of the data is not an input of the model and was ignored")
    try:
        parts: list[Any] = graph.flatten(item)
    except CaptureError as error:
        raise CalibrationError(f"{where} does not fit the model: {error.what}", remedy=error.remedy) from None
    several = len(graph.inputs) > 1
    tensors = [
        _check(part, spec, f"input {spec.name!r} of {where}" if several else where)
        for part, spec in zip(parts, graph.inputs, strict=True)
    ]
    _check_sizes(tensors, graph.inputs, where)
    return tensors


def fits(item: object, spec: InputSpec) -> bool:
    """Whether `item` could be this input: dtype and every size but that of the batch agree."""
    if isinstance(item, np.ndarray):
        return str(item.dtype) in map(_dtype_name, _dtypes(spec)) and _fits_shape(item.shape, spec)
    return isinstance(item, torch.Tensor) and item.dtype in _dtypes(spec) and _fits_shape(tuple(item.shape), spec)


def describe_input(spec: InputSpec) -> str:
    """`x: float32 [batch, 3, 32, 32]`."""
    sizes = ["batch" if axis == spec.batch_axis else str(size) for axis, size in enumerate(spec.shape)]
    return f"{spec.name}: {' or '.join(map(_dtype_name, _dtypes(spec)))} [{', '.join(sizes)}]"


def note(notes: list[str], text: str) -> None:
    """Add a note once."""
    if text not in notes:
        notes.append(text)


def _without_labels(item: Any, specs: Sequence[InputSpec], where: str, notes: list[str]) -> Any:
    """Drop the last part of a tuple or list if the parts before it are all the model takes."""
    if not isinstance(item, tuple | list) or len(item) < 2:
        return item
    before = item[0] if len(item) == 2 else item[:-1]
    # A dict may hold more than the inputs, so it is counted as what the model takes.
    complete = isinstance(before, Mapping) or len(pytree.tree_leaves(before)) == len(specs)
    if not complete or len(pytree.tree_leaves(item)) == len(specs):
        return item
    if any(fits(leaf, spec) for leaf in pytree.tree_leaves(item[-1]) for spec in specs):
        raise CalibrationError(
            f"{where} has more parts that look like inputs than the {len(specs)} the model takes",
            where="; ".join(map(describe_input, specs)),
            remedy="leave out what is not an input",
        )
    note(notes, "the last part of each batch was taken for labels and ignored")
    return before


def _check(item: object, spec: InputSpec, where: str) -> torch.Tensor:
    """View `item` as a tensor if it is the input `spec` describes."""
    tensor = _as_tensor(item, spec, where)
    if tensor.dtype == spec.raw_dtype:
        tensor = tensor.to(spec.dtype)
    if tensor.dtype != spec.dtype:
        got, wanted = _dtype_name(tensor.dtype), _dtype_name(spec.dtype)
        remedy = f"convert it as in training, e.g. tensor.to(torch.{wanted}) or array.astype(numpy.{wanted})"
        if tensor.dtype == torch.uint8 and spec.dtype.is_floating_point:
            remedy += "; raw images need the normalization the model was trained with, see detent.Preprocessing"
        raise CalibrationError(
            f"{where} has dtype {got}, the model takes {wanted}", where=describe_input(spec), remedy=remedy
        )
    if not _fits_shape(tuple(tensor.shape), spec):
        remedy = "give data of the shape the model was captured with"
        if spec.batch_axis is not None and tensor.ndim == len(spec.shape) - 1:
            remedy = f"a single sample needs a batch axis, e.g. x.unsqueeze({spec.batch_axis}), or use a DataLoader"
        raise CalibrationError(f"{where} has shape {list(tensor.shape)}", where=describe_input(spec), remedy=remedy)
    if tensor.numel() == 0:
        raise CalibrationError(
            f"{where} is empty: shape {list(tensor.shape)}",
            where=describe_input(spec),
            remedy="leave empty batches out of the data",
        )
    return tensor


def _fits_shape(shape: tuple[int, ...], spec: InputSpec) -> bool:
    return len(shape) == len(spec.shape) and all(
        size == wanted or axis == spec.batch_axis
        for axis, (size, wanted) in enumerate(zip(shape, spec.shape, strict=True))
    )


def _as_tensor(item: object, spec: InputSpec, where: str) -> torch.Tensor:
    if isinstance(item, torch.Tensor):
        if item.device.type != "cpu":
            raise CalibrationError(
                f"{where} is on {item.device}, calibration runs on the CPU",
                where=describe_input(spec),
                remedy="pass tensor.cpu()",
            )
        if item.layout != torch.strided:
            raise CalibrationError(
                f"{where} is a sparse tensor ({item.layout})",
                where=describe_input(spec),
                remedy="pass tensor.to_dense()",
            )
        return item.detach()
    if isinstance(item, np.ndarray):
        try:
            # torch refuses to wrap negative strides and warns about read-only memory; both are copied here instead.
            plain = item.flags.writeable and all(stride >= 0 for stride in item.strides)
            return torch.from_numpy(item if plain else item.copy())
        except TypeError:
            raise CalibrationError(
                f"{where} is an array of dtype {item.dtype}, which torch does not have",
                where=describe_input(spec),
                remedy=f"convert it, e.g. array.astype(numpy.{_dtype_name(spec.dtype)})",
            ) from None
    raise CalibrationError(
        f"{where} is a {type(item).__name__}, not a tensor or an array",
        where=describe_input(spec),
        remedy="give batches as tensors or NumPy arrays, or tuples or dicts of them",
    )


def _check_sizes(tensors: Sequence[torch.Tensor], specs: Sequence[InputSpec], where: str) -> None:
    sizes = {
        spec.name: tensor.shape[spec.batch_axis]
        for tensor, spec in zip(tensors, specs, strict=True)
        if spec.batch_axis is not None
    }
    if len(set(sizes.values())) > 1:
        raise CalibrationError(
            f"the inputs of {where} have different batch sizes",
            where=", ".join(f"{name}: {size}" for name, size in sizes.items()),
            remedy="give as many samples of each input",
        )


def _dtypes(spec: InputSpec) -> list[torch.dtype]:
    return [dtype for dtype in (spec.raw_dtype, spec.dtype) if dtype is not None]


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
