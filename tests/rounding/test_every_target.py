"""Chosen codes with every target, after mixed precision too: in the plan, in the model and in the exported file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import detent
from detent.exporters import fix_batch, verify_onnx
from tests.mixed_targets import write_target
from tests.rounding.networks import captured, images

WAYS: dict[str, dict[str, Any]] = {
    "gptq": {"rounding": "gptq"},
    "learned": {"rounding": "learned", "learned": {"steps": 20}},
}


def kernels_of(path: Path) -> dict[tuple[int, ...], list[np.ndarray]]:
    """Whole numbers of more than one axis that a file stores, by their shapes."""
    found: dict[tuple[int, ...], list[np.ndarray]] = {}
    for entry in onnx.load(path).graph.initializer:
        array = numpy_helper.to_array(entry)
        if array.ndim > 1 and array.dtype.name in ("int8", "uint8", "int4", "uint4"):
            found.setdefault(array.shape, []).append(array.astype(np.int32))
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("target", detent.target_names())
def test_codes_reach_the_file(target: str, way: str, tmp_path: Path) -> None:
    qmodel = detent.quantize(captured(), images()[:128], target=target, progress=False, **WAYS[way])
    chosen = {name: entry.codes for name, entry in qmodel.plan.weights.items() if entry.codes is not None}
    assert chosen
    path = detent.export(qmodel, tmp_path / "model.onnx").path
    stored = kernels_of(path)
    for name, codes in chosen.items():
        wanted = codes.codes.astype(np.int32)
        assert any(
            np.array_equal(wanted, one) for array in stored.values() for some in array for one in (some, some.T)
        ), name
    # Files for Qualcomm's HTP take one sample at a time.
    taken = fix_batch(qmodel, 1) if target == "qnn" else qmodel
    assert verify_onnx(path, taken, images()[128:]).largest_steps <= 1


@pytest.mark.parametrize("way", WAYS)
def test_after_mixed_precision(way: str, tmp_path: Path) -> None:
    target = write_target(tmp_path)
    given: dict[str, Any] = {"target": target, "budget": {"weights": "60%"}, "progress": False}
    qmodel = detent.quantize(captured(), images()[:128], **given, **WAYS[way])
    widths = {entry.grid.bits for entry in qmodel.plan.weights.values() if entry.grid is not None}
    assert len(widths) > 1
    assert any(entry.codes is not None for entry in qmodel.plan.weights.values())
    again = detent.QuantPlan.from_json(qmodel.plan.to_json())
    x = images()[128:]
    assert torch.equal(detent.apply(captured(), again)(x), qmodel(x))
