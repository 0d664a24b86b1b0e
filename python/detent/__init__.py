"""detent: post-training quantization for PyTorch.

    qmodel = detent.quantize(model, data, target="imx500")
    detent.export(qmodel, "model.onnx")

or step by step: `capture`, `calibrate`, `plan`, `apply`. Rules for single tensors are in `detent.edit`. Names
are loaded when first used, so that importing `detent.kernels` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from detent import _core
from detent.errors import DetentError
from detent.kernels.build import build_info

if TYPE_CHECKING:
    from detent import edit
    from detent.config import (
        Budget,
        GptqConfig,
        LearnedConfig,
        MixedPrecisionConfig,
        Preprocessing,
        QuantizationConfig,
    )
    from detent.curvature import estimate_traces
    from detent.exporters import export, load, verify
    from detent.graph import Graph
    from detent.integer import IntegerProgram, lower
    from detent.mixed_precision import Resources, resources
    from detent.pipeline import (
        apply,
        calibrate,
        capture,
        choose_widths,
        collect_moments,
        correct_biases,
        keep_accuracy,
        learn_rounding,
        pareto,
        plan,
        quantize,
        revise,
        round_kernels,
        score,
        transform,
    )
    from detent.quantized import QuantizedModel
    from detent.records.grid import Grid
    from detent.records.hessians import HessianScores
    from detent.records.moments import InputMoments
    from detent.records.plan import QuantPlan
    from detent.records.sensitivity import SensitivityTable
    from detent.records.statistics import Statistics
    from detent.records.traces import HessianTraces
    from detent.records.widths import Widths
    from detent.targets import load_target, target_names

__all__ = [
    "Budget",
    "DetentError",
    "GptqConfig",
    "Graph",
    "Grid",
    "HessianScores",
    "HessianTraces",
    "InputMoments",
    "IntegerProgram",
    "LearnedConfig",
    "MixedPrecisionConfig",
    "Preprocessing",
    "QuantPlan",
    "QuantizationConfig",
    "QuantizedModel",
    "Resources",
    "SensitivityTable",
    "Statistics",
    "Widths",
    "apply",
    "build_info",
    "calibrate",
    "capture",
    "choose_widths",
    "collect_moments",
    "correct_biases",
    "edit",
    "estimate_traces",
    "export",
    "keep_accuracy",
    "learn_rounding",
    "load",
    "load_target",
    "lower",
    "pareto",
    "plan",
    "quantize",
    "resources",
    "revise",
    "round_kernels",
    "score",
    "target_names",
    "transform",
    "verify",
]

__version__: str = _core.version

_HOMES: Final = {
    "Budget": "detent.config",
    "GptqConfig": "detent.config",
    "Graph": "detent.graph",
    "Grid": "detent.records.grid",
    "HessianScores": "detent.records.hessians",
    "HessianTraces": "detent.records.traces",
    "InputMoments": "detent.records.moments",
    "IntegerProgram": "detent.integer",
    "LearnedConfig": "detent.config",
    "MixedPrecisionConfig": "detent.config",
    "Preprocessing": "detent.config",
    "QuantPlan": "detent.records.plan",
    "QuantizationConfig": "detent.config",
    "QuantizedModel": "detent.quantized",
    "Resources": "detent.mixed_precision",
    "SensitivityTable": "detent.records.sensitivity",
    "Statistics": "detent.records.statistics",
    "Widths": "detent.records.widths",
    "apply": "detent.pipeline",
    "calibrate": "detent.pipeline",
    "capture": "detent.pipeline",
    "choose_widths": "detent.pipeline",
    "collect_moments": "detent.pipeline",
    "correct_biases": "detent.pipeline",
    "estimate_traces": "detent.curvature",
    "export": "detent.exporters",
    "keep_accuracy": "detent.pipeline",
    "learn_rounding": "detent.pipeline",
    "load": "detent.exporters",
    "load_target": "detent.targets",
    "lower": "detent.integer",
    "pareto": "detent.pipeline",
    "plan": "detent.pipeline",
    "quantize": "detent.pipeline",
    "resources": "detent.mixed_precision",
    "revise": "detent.pipeline",
    "round_kernels": "detent.pipeline",
    "score": "detent.pipeline",
    "target_names": "detent.targets",
    "transform": "detent.pipeline",
    "verify": "detent.exporters",
}


def get_include() -> str:
    """Folder of the C++ headers, for projects that embed the kernels."""
    from pathlib import Path

    return str(Path(__file__).resolve().parent / "include")


def __getattr__(name: str) -> Any:
    if name == "edit":
        return importlib.import_module("detent.edit")
    if name not in _HOMES:
        raise AttributeError(f"module 'detent' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "edit"})
