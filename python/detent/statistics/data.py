"""The forms calibration data may take, turned into checked batches.

A DataLoader, any iterable of batches or a function without arguments that returns one; whole arrays: one array or
tensor, a dict of them by input name, or an `.npz` file. Labels next to the inputs are ignored with a note.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from detent.errors import CalibrationError, FormatError
from detent.graph import Graph
from detent.statistics.batches import Batch
from detent.statistics.inputs import fits, match_batch, note

__all__ = ["Data", "checked_batches", "comes_whole", "expected_samples", "read_npz"]

Tensor: TypeAlias = "torch.Tensor | npt.NDArray[Any]"
Data: TypeAlias = "Tensor | Mapping[str, Tensor] | str | Path | Iterable[Any] | Callable[[], Iterable[Any]]"


_UNREADABLE: Final = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    zipfile.BadZipFile,
    zlib.error,
)
"""All that NumPy raises for archives that are damaged, hold objects or are something else."""


def checked_batches(data: Data, graph: Graph, notes: list[str]) -> Iterator[Batch]:
    """Iterate over the data as batches whose tensors fit the model's inputs.

    Args:
        data: calibration data in any of the accepted forms.
        graph: the model.
        notes: receives what was left out.

    Raises:
        CalibrationError: the data are empty or do not fit the model.
        FormatError: the `.npz` file is missing, truncated or holds objects.
    """
    whole = _whole_arrays(data, graph, notes)
    if whole is not None:
        name, item = whole
        yield match_batch(item, graph, name, notes)
        return
    source = _iterable(data)
    batches = iter(source)
    count = 0
    for count, item in enumerate(batches, 1):
        yield match_batch(item, graph, f"batch {count - 1}", notes)
    if not count:
        once = batches is source
        raise CalibrationError(
            "the data are empty: not a single batch came",
            where=f"data of type {type(data).__name__}",
            remedy="this iterator may have been used up before; pass a list, or a function that returns a new iterator"
            if once
            else "give at least one batch",
        )


def expected_samples(data: Data, graph: Graph) -> int | None:
    """How many samples the data will give, where that can be told without reading them; for the progress bar only."""
    if isinstance(data, torch.Tensor | np.ndarray):
        axis = graph.inputs[0].batch_axis
        return int(data.shape[axis]) if axis is not None and axis < data.ndim else None
    if isinstance(data, torch.utils.data.DataLoader):
        return len(data.dataset) if isinstance(data.dataset, Sized) else None
    return None


def comes_whole(data: Data) -> bool:
    """Whether all samples come in one piece, so that no batches of the user's are in it."""
    return isinstance(data, str | Path | torch.Tensor | np.ndarray | Mapping)


def _iterable(data: Data) -> Iterable[Any]:
    source: Any = data() if callable(data) and not isinstance(data, Iterable) else data
    if not isinstance(source, Iterable) and not hasattr(source, "__getitem__"):
        raise CalibrationError(
            f"data of type {type(source).__name__} cannot be iterated over",
            remedy="give a DataLoader, an iterable or a function of batches, an array, or the path of an .npz file",
        )
    return source  # type: ignore[no-any-return]


def _whole_arrays(data: Data, graph: Graph, notes: list[str]) -> tuple[str, object] | None:
    """The whole data as one batch with its name, if that is the form they have."""
    if isinstance(data, str | Path):
        path = Path(data)
        return str(path), _pick_input(read_npz(path), graph, notes)
    if isinstance(data, torch.Tensor | np.ndarray | Mapping):
        return "the data", data
    return None


def read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an `.npz` file by name; nothing is unpickled.

    Raises:
        CalibrationError: the name does not end in `.npz`.
        FormatError: the file is missing, damaged, or holds objects.
    """
    if path.suffix != ".npz":
        raise CalibrationError(
            "calibration data in a file must be .npz",
            where=str(path),
            remedy="save the arrays with numpy.savez(path, input_name=array)",
        )
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except _UNREADABLE as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise FormatError(
            f"cannot read the calibration data: {reason}",
            where=str(path),
            remedy="write plain arrays with numpy.savez(path, input_name=array); pickled objects are never loaded",
        ) from None


def _pick_input(arrays: dict[str, npt.NDArray[Any]], graph: Graph, notes: list[str]) -> object:
    """For a model with one input, the only array that can be it, whatever its name; otherwise all of them."""
    names = {name for spec in graph.inputs for name in (spec.name, spec.key)}
    if len(graph.inputs) != 1 or names & set(arrays):
        return arrays
    spec = graph.inputs[0]
    fitting = [name for name, array in arrays.items() if len(arrays) == 1 or fits(array, spec)]
    if len(fitting) != 1:
        return arrays
    for name in arrays.keys() - fitting:
        note(notes, f"array {name!r} of the file is not an input of the model and was ignored")
    return arrays[fitting[0]]
