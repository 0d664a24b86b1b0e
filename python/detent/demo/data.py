"""Scikit-learn's handwritten digits, split by writer: nobody in the test split wrote a training digit."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from detent.errors import ConfigError

__all__ = ["CALIBRATION_IMAGES", "Split", "calibration_images", "load_test", "load_training"]

_TEST_IMAGES: Final = 597
"""The images are ordered by writer; the last third, about, comes from writers of its own."""

CALIBRATION_IMAGES: Final = 256


class Split(NamedTuple):
    """Images float32 `[N, 1, 8, 8]` in 0..1 and labels int64 `[N]`."""

    images: Tensor
    labels: Tensor


def load_training() -> Split:
    """The 1200 training digits.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    images, labels = _load()
    return Split(images[:-_TEST_IMAGES], labels[:-_TEST_IMAGES])


def load_test() -> Split:
    """The 597 test digits, used neither for training nor for calibration."""
    images, labels = _load()
    return Split(images[-_TEST_IMAGES:], labels[-_TEST_IMAGES:])


def calibration_images() -> Tensor:
    """256 training images `[256, 1, 8, 8]`, evenly spread over the training split."""
    images = load_training().images
    chosen = np.linspace(0, len(images) - 1, CALIBRATION_IMAGES).round().astype(np.int64)
    return images[torch.from_numpy(chosen)]


def _load() -> Split:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ConfigError(
            "the demo needs scikit-learn for its images", remedy="install it with: pip install 'detent[demo]'"
        ) from None
    digits = load_digits()
    images = torch.from_numpy(digits.images.astype(np.float32) / np.float32(16))
    return Split(images.unsqueeze(1), torch.from_numpy(digits.target.astype(np.int64)))
