"""detent: post-training quantization for PyTorch."""

from __future__ import annotations

from detent import _core

__version__: str = _core.version
