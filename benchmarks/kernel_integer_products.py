"""Convolutions on codes against torch's float convolutions of the same shape."""

from __future__ import annotations

from typing import Any

import numpy as np

from detent.kernels.integer_products import integer_conv
from detent.kernels.reference import integer as twin
from detent.kernels.requantize import Requantization
from harness import Row, compare, time_in_turns

TITLE = "integer_products: 32 samples, codes of 8 bits"
SAMPLES = 32
LAYERS: dict[str, dict[str, Any]] = {
    "3 x 3, 64 to 64, 16 x 16": {"x": (64, 16, 16), "kernel": (64, 64, 3, 3), "before": (1, 1)},
    "3 x 3 by 2, 32 to 64, 32 x 32": {"x": (32, 32, 32), "kernel": (64, 32, 3, 3), "before": (1, 1), "stride": (2, 2)},
    "1 x 1, 96 to 192, 16 x 16": {"x": (96, 16, 16), "kernel": (192, 96, 1, 1)},
    "depthwise 3 x 3, 96, 32 x 32": {"x": (96, 32, 32), "kernel": (96, 1, 3, 3), "before": (1, 1), "groups": 96},
    "depthwise 3 x 3, 480, 4 x 4": {"x": (480, 4, 4), "kernel": (480, 1, 3, 3), "before": (1, 1), "groups": 480},
}

_rng = np.random.default_rng(0)


def _case(layer: dict[str, Any], samples: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    options = {key: value for key, value in layer.items() if key not in ("x", "kernel")}
    x = _rng.integers(0, 255, (samples, *layer["x"]), np.uint8, endpoint=True)
    kernel = _rng.integers(-127, 127, layer["kernel"], np.int16, endpoint=True)
    bias = _rng.integers(-5000, 5000, len(kernel))
    factors = _rng.uniform(1e-4, 1e-3, len(kernel))
    how = Requantization.of("float", factors, zero_point=3, lowest=0, highest=255)
    return (x, kernel, how, np.uint8), {**options, "zero_point": 121, "bias": bias}


def verify() -> None:
    """Each layer equals its twin on two samples."""
    for layer in LAYERS.values():
        given, options = _case(layer, 2)
        found, wanted = integer_conv(*given, **options), twin.integer_conv(*given, **options)
        np.testing.assert_array_equal(found[0], wanted[0])
        assert found[1] == wanted[1]


def measure() -> list[Row]:
    """Times as fast as torch's float convolution, each layer in turns with it."""
    try:
        import torch
    except ImportError:
        return []
    rows = []
    for name, layer in LAYERS.items():
        given, options = _case(layer, SAMPLES)
        x, kernel = (torch.from_numpy(codes.astype(np.float32)) for codes in given[:2])
        padding, stride, groups = (
            layer.get(key, other) for key, other in (("before", 0), ("stride", 1), ("groups", 1))
        )
        times = time_in_turns(
            {
                "integer_conv": lambda given=given, options=options: integer_conv(*given, **options),
                "torch float": lambda x=x, kernel=kernel, padding=padding, stride=stride, groups=groups: (
                    torch.nn.functional.conv2d(x, kernel, None, stride, padding, 1, groups)
                ),
            }
        )
        rows.append(compare(name, times, "integer_conv", "torch float", at_least=1.0))
    return rows
