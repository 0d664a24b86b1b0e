"""Turns what `torch.export` raises into errors that say which line of the user's model is to blame, and what to do."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import TracebackType
from typing import Final

import torch
from torch import nn
from torch.utils import _pytree as pytree

from detent.errors import CaptureError
from detent.graph.example import Example

__all__ = ["explain_failure", "first_line", "run_failure", "user_frame"]

_OWN: Final = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")

_DATA_DEPENDENT: Final = ("data-dependent", "datadependent", "guardondatadependent", "could not guard", "unbacked")


def explain_failure(model: nn.Module, example: Example, error: Exception) -> CaptureError:
    """The error to raise when a model cannot be exported: the example's fault, the control flow's, or the code's."""
    where = user_frame(error.__traceback__)
    text = f"{type(error).__name__} {error}".lower()
    if not any(word in text for word in _DATA_DEPENDENT):
        failure = run_failure(model, example)
        if failure is not None:
            return failure
        return CaptureError(
            f"torch.export cannot trace the model: {first_line(error)}",
            where=where,
            remedy="replace the unsupported Python at that line by tensor operations, or capture the part of the model "
            "around it",
        )
    return CaptureError(
        f"the model's control flow or shapes depend on the values of a tensor: {first_line(error)}",
        where=where,
        remedy="make the branch or size at that line a fixed choice, or express it with torch.where or torch.cond",
    )


def run_failure(model: nn.Module, example: Example) -> CaptureError | None:
    """The error to raise if the model itself fails on the example, None if it runs."""
    try:
        with torch.no_grad():
            model(*example.args, **example.kwargs)
    except Exception as error:  # noqa: BLE001  (whatever the user's code raises is the answer)
        return CaptureError(
            f"the model does not run on the example inputs: {first_line(error)}",
            where=user_frame(error.__traceback__),
            remedy=_input_remedy(model, example),
        )
    return None


def user_frame(trace: TracebackType | None) -> str | None:
    """The innermost frame that is neither torch's nor detent's: `net.py:12, in forward: if x.sum() > 0:`."""
    frames = [f for f in traceback.extract_tb(trace) if not f.filename.startswith(_OWN)]
    if not frames:
        return None
    last = frames[-1]
    return f"{last.filename}:{last.lineno}, in {last.name}: {last.line}"


def first_line(error: BaseException) -> str:
    """The error's message up to its first line break, with its type where it has no message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _input_remedy(model: nn.Module, example: Example) -> str:
    leaves = [leaf for leaf in pytree.tree_leaves((example.args, example.kwargs)) if isinstance(leaf, torch.Tensor)]
    given = ", ".join(f"{str(leaf.dtype).removeprefix('torch.')} {list(leaf.shape)}" for leaf in leaves)
    wanted = {str(p.dtype).removeprefix("torch.") for p in model.parameters()}
    floats = {str(leaf.dtype).removeprefix("torch.") for leaf in leaves}
    hint = f"; the model's parameters are {', '.join(sorted(wanted))}" if wanted and not floats & wanted else ""
    return f"check the number, shapes and types of the inputs: the example has {given}{hint}"
