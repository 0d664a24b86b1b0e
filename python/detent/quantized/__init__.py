"""Model + plan = quantized model: an `nn.Module` whose weights are integer codes and whose activations are on grids."""

from __future__ import annotations

from detent.quantized.assemble import assemble
from detent.quantized.model import QuantizedModel

__all__ = ["QuantizedModel", "assemble"]
