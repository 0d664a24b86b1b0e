"""User options: frozen, checked, and printed as what differs from the defaults."""

from __future__ import annotations

from detent.config.quantization import ActivationMetric, QuantizationConfig, WeightsMetric

__all__ = ["ActivationMetric", "QuantizationConfig", "WeightsMetric"]
