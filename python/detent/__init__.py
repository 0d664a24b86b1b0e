"""detent: post-training quantization for PyTorch."""

from __future__ import annotations

from detent import _core
from detent.kernels.build import build_info

__all__ = ["__version__", "build_info"]

__version__: str = _core.version
