"""User options: frozen, checked, and printed as what differs from the defaults."""

from __future__ import annotations

from detent.config.budget import Budget
from detent.config.learned import LearnedConfig
from detent.config.mixed_precision import MixedPrecisionConfig
from detent.config.preprocessing import Preprocessing, RawType, Resize, assign_records, resolve_preprocessing
from detent.config.quantization import ActivationMetric, QuantizationConfig, WeightsGrid, WeightsMetric
from detent.config.rounding import GptqConfig

__all__ = [
    "ActivationMetric",
    "Budget",
    "GptqConfig",
    "LearnedConfig",
    "MixedPrecisionConfig",
    "Preprocessing",
    "QuantizationConfig",
    "RawType",
    "Resize",
    "WeightsGrid",
    "WeightsMetric",
    "assign_records",
    "resolve_preprocessing",
]
