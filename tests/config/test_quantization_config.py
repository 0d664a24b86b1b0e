"""Options: defaults, what differs, and what a mistake says."""

from __future__ import annotations

import math
from typing import Any

import pytest

from detent.config import QuantizationConfig
from detent.errors import ConfigError


def test_defaults_are_the_documented_ones() -> None:
    config = QuantizationConfig()
    assert config.activation_metric == "mse"
    assert config.bias_correction == "auto"
    assert [config.metric_of_kernel(bits) for bits in (2, 4, 7, 8, 16)] == ["output"] * 3 + ["mse"] * 2
    assert [config.gain_of_kernel(bits) for bits in (2, 4, 7, 8, 16)] == ["least_squares"] * 3 + ["none"] * 2
    assert QuantizationConfig(weights_metric="kl", gain_correction="second_moment").metric_of_kernel(4) == "kl"
    assert QuantizationConfig(gain_correction="second_moment").gain_of_kernel(8) == "second_moment"
    assert config.z_threshold == math.inf
    assert config.min_threshold == 2.0**-16
    assert config.weights_bits is None
    assert config.activation_bits is None
    assert config.weight_search == "exact"


def test_printing_shows_what_differs() -> None:
    assert repr(QuantizationConfig()) == str(QuantizationConfig()) == "QuantizationConfig()"
    assert str(QuantizationConfig(z_threshold=5, activation_metric="kl")) == (
        "QuantizationConfig(activation_metric='kl', z_threshold=5.0)"
    )


def test_differences_restore_the_configuration() -> None:
    config = QuantizationConfig(p=2.4, weights_bits=4)
    assert config.differences() == {"p": 2.4, "weights_bits": 4}
    assert QuantizationConfig(**config.differences()) == config


def test_it_is_frozen_and_keyword_only() -> None:
    with pytest.raises(ValueError, match="frozen"):
        QuantizationConfig().p = 3.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        QuantizationConfig("mse")  # type: ignore[call-arg]


def test_single_options_win_over_the_object() -> None:
    base = QuantizationConfig(z_threshold=9.0, p=3.0)
    assert QuantizationConfig.resolve(base, {"z_threshold": 5.0}) == QuantizationConfig(z_threshold=5.0, p=3.0)
    assert QuantizationConfig.resolve({"p": 3.0}, {}) == QuantizationConfig(p=3.0)
    assert QuantizationConfig.resolve(None, {}) == QuantizationConfig()
    with pytest.raises(ConfigError, match="mapping"):
        QuantizationConfig.resolve("mse", {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation_metrc": "mse"}, "did you mean 'activation_metric'"),
        ({"activation_metric": "mes"}, "did you mean 'mse'"),
        ({"weights_bits": 1}, "weights_bits"),
        ({"weights_bits": 17}, "weights_bits"),
        ({"activation_bits": 0}, "activation_bits"),
        ({"weights_bits": 8.0}, "weights_bits"),
        ({"weights_bits": "8"}, "weights_bits"),
        ({"weights_bits": True}, "weights_bits"),
        ({"z_threshold": 0.0}, "z_threshold"),
        ({"z_threshold": math.nan}, "z_threshold"),
        ({"p": math.inf}, "p"),
        ({"p": -2}, "p"),
        ({"p": 7.0}, "p"),
        ({"p": 0.7, "activation_metric": "lp"}, "at least 1 for activations"),
        ({"min_threshold": 0}, "min_threshold"),
        ({"weight_search": "fast"}, "known: exact, grid"),
        ({"p": -2, "min_threshold": 0}, r"and 1 more"),
    ],
)
def test_a_mistake_names_the_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QuantizationConfig(**options)


def test_names_of_options_are_words() -> None:
    with pytest.raises(ConfigError, match="words, got 1"):
        QuantizationConfig.resolve({1: 2}, {})  # type: ignore[dict-item]
