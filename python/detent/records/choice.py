"""`TensorChoice`: what is asked for one tensor before its grid is searched.

Whoever decides something about single tensors (rules, or what distributes bit widths) says it here; the search, and all
that follows, start from it. What a choice leaves open is decided as for every other tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal, get_args

import numpy as np

from detent._registry import unknown_name
from detent.config import ActivationMetric, WeightsGrid
from detent.config.quantization import SQUARED_ERRORS
from detent.errors import ConfigError
from detent.records.grid import Grid

__all__ = ["OPTIONS", "TensorChoice"]

_KINDS: Final = get_args(WeightsGrid)
_METRICS: Final = (*get_args(ActivationMetric), "output")
_LIMITS: Final = ("threshold", "lower", "upper")
_SEARCH: Final = ("metric", "p", "z_threshold", "group_size")
_FORM: Final = ("bits", "kind")
OPTIONS: Final = (*_FORM, *_SEARCH, *_LIMITS, "keep_float", "grid", "freeze")
Limits = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class TensorChoice:
    """What is asked for one tensor; None leaves an option open.

    Args:
        bits: code width.
        kind: kind of grid, in the words of the option `weights_grid`.
        metric: error that the search for its limits minimizes; `"output"`, that of the layer's output, for kernels.
        p: exponent of the `"lp"` metric.
        z_threshold: values further than this many standard deviations from the mean are left out of the search;
            activations only.
        threshold: limit set by hand, in units of the tensor: one number, or one for each channel.
        lower: lower limits set by hand, for uniform grids; together with `upper`.
        upper: upper limits set by hand.
        group_size: input channels of a kernel that share a step; weights only.
        keep_float: do not quantize the tensor.
        grid: the whole grid, set by hand.
        freeze: later stages leave the tensor as it is, and a later plan takes it over.

    Raises:
        ConfigError: an option out of range, or options that contradict each other.
    """

    bits: int | None = None
    kind: WeightsGrid | None = None
    metric: ActivationMetric | Literal["output"] | None = None
    p: float | None = None
    z_threshold: float | None = None
    threshold: Limits | None = None
    lower: Limits | None = None
    upper: Limits | None = None
    group_size: int | None = None
    keep_float: bool | None = None
    grid: Grid | None = None
    freeze: bool | None = None

    def __post_init__(self) -> None:
        for name in _LIMITS:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _limits(getattr(self, name), name))
        self._check_values()
        self._check_limits()
        self._check_combination()

    def _check_values(self) -> None:
        if self.bits is not None and (type(self.bits) is not int or not 1 <= self.bits <= 16):
            raise ConfigError(f"`bits` must be a whole number in 1..16, got {self.bits!r}")
        if self.kind is not None and self.kind not in _KINDS:
            raise unknown_name("grid kind", self.kind, _KINDS)
        if self.metric is not None and self.metric not in _METRICS:
            raise unknown_name("metric", self.metric, _METRICS)
        if self.group_size is not None and (type(self.group_size) is not int or self.group_size < 1):
            raise ConfigError(f"`group_size` must be a whole number from 1, got {self.group_size!r}")
        for name, least, most in (("p", 0.5, 6.0), ("z_threshold", 0.0, np.inf)):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most or not value:
                limits = f"in {least:g}..{most:g}" if least else "positive"
                raise ConfigError(f"`{name}` must be a number, {limits}, got {value!r}")
        if self.keep_float not in (None, True):
            raise ConfigError(f"`keep_float` must be true or absent, got {self.keep_float!r}")
        if self.freeze is not None and not isinstance(self.freeze, bool):
            raise ConfigError(f"`freeze` must be true or false, got {self.freeze!r}")
        if self.grid is not None and not isinstance(self.grid, Grid):
            raise ConfigError(f"`grid` must be a detent.Grid, got a {type(self.grid).__name__}")

    def _check_limits(self) -> None:
        if (self.lower is None) != (self.upper is None):
            raise ConfigError("`lower` and `upper` are given together")
        if self.threshold is not None and self.lower is not None:
            raise ConfigError("a grid has a `threshold`, or `lower` and `upper`, not both")
        if self.threshold is not None and min(self.threshold) <= 0:
            raise ConfigError(f"`threshold` must be positive, got {min(self.threshold)!r}")
        if self.lower is not None and self.upper is not None:
            if len(self.lower) != len(self.upper):
                raise ConfigError("`lower` and `upper` must have the same length")
            if any(low > high for low, high in zip(self.lower, self.upper, strict=True)):
                raise ConfigError("`lower` must not be above `upper`")

    def _check_combination(self) -> None:
        given = self.options()
        for alone in ("grid", "keep_float"):
            others = sorted(given - {alone, "freeze"})
            if getattr(self, alone) is not None and others:
                raise ConfigError(f"`{alone}` decides everything and cannot go with `{others[0]}`")
        by_hand = sorted(given & set(_LIMITS))
        search = sorted(given & set(_SEARCH))
        if by_hand and search:
            raise ConfigError(f"`{by_hand[0]}` set by hand leaves nothing to search, so `{search[0]}` cannot be met")
        if self.kind in ("lut", "lut_power_of_two"):
            if by_hand:
                raise ConfigError(
                    f"a codebook is searched, `{by_hand[0]}` alone does not make one", remedy="give a `grid`"
                )
            if self.group_size is not None:
                raise ConfigError("a codebook has one threshold a channel, none for each group")
            if self.metric is not None and self.metric not in SQUARED_ERRORS:
                raise ConfigError(f"codebooks are searched by squared error, the metric asked for is {self.metric!r}")
        if self.metric == "moving_maximum" and self.z_threshold is not None:
            raise ConfigError("`z_threshold` leaves values out of a search, and a moving maximum is not searched")
        if self.p is not None and self.metric not in (None, "lp"):
            raise ConfigError(f"`p` is the exponent of the 'lp' metric, the metric asked for is {self.metric!r}")

    @property
    def leaves_width_open(self) -> bool:
        """Whether nothing asked decides the code width."""
        return self.bits is None and self.grid is None and not self.keep_float

    def options(self) -> set[str]:
        """Names of the options that are given."""
        return {item.name for item in fields(self) if getattr(self, item.name) is not None}

    @property
    def limits(self) -> dict[str, Limits]:
        """The limits set by hand, by the name a grid gives them."""
        return {name: getattr(self, name) for name in _LIMITS if getattr(self, name) is not None}

    @property
    def searched(self) -> bool:
        """Whether it is asked how to search for limits, so that limits known beforehand do not replace the search."""
        return self.metric is not None or self.p is not None or self.z_threshold is not None

    @property
    def limits_by_hand(self) -> bool:
        """Whether the limits are given and no stage may move them."""
        return self.grid is not None or self.threshold is not None or self.lower is not None

    @property
    def pinned(self) -> bool:
        """Whether the stages behind the search leave the tensor's grid alone."""
        return bool(self.freeze) or self.limits_by_hand

    def overlaid(self, later: TensorChoice) -> TensorChoice:
        """This choice with `later` on top: its options win, and take away those they cannot go with."""
        given = later.options()
        dropped: set[str] = set()
        if given & {"grid", "keep_float"}:
            dropped = set(OPTIONS) - {"freeze"}
        elif given - {"freeze"}:
            dropped = {"grid", "keep_float"}
        if given & set(_LIMITS):
            dropped |= {*_LIMITS, *_SEARCH}
        if given & set(_SEARCH):
            dropped |= set(_LIMITS)
        if "metric" in given:
            dropped.add("p")
        if later.metric == "moving_maximum":
            dropped.add("z_threshold")
        changes: dict[str, Any] = dict.fromkeys(dropped)
        return replace(self, **{**changes, **{name: getattr(later, name) for name in given}})

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in OPTIONS if getattr(self, name) is not None}
        for name in _LIMITS:
            if name in shown and len(shown[name]) == 1:
                shown[name] = shown[name][0]
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())

    def to_dict(self) -> dict[str, Any]:
        """Plain data with the options that are given; limits of one entry become numbers."""
        data: dict[str, Any] = {}
        for name in OPTIONS:
            value = getattr(self, name)
            if value is None:
                continue
            if name in _LIMITS:
                value = value[0] if len(value) == 1 else list(value)
            data[name] = value.to_dict() if isinstance(value, Grid) else value
        return data

    @classmethod
    def from_dict(cls, data: object) -> TensorChoice:
        """Rebuild a choice from `to_dict`'s data.

        Raises:
            ConfigError: an unknown option or one that makes no sense.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"what is asked for a tensor is an object of options, got {data!r}")
        for name in data:
            if name not in OPTIONS:
                raise unknown_name("option", name, OPTIONS)
        options = dict(data)
        if isinstance(options.get("grid"), Mapping):
            options["grid"] = Grid.from_dict(options["grid"])
        return cls(**options)


def _limits(value: object, name: str) -> Limits:
    try:
        vector = np.atleast_1d(np.asarray(value, np.float64))
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"`{name}` must be a number or a list of numbers, got {value!r}") from None
    if vector.ndim != 1 or not len(vector) or not bool(np.isfinite(vector).all()):
        raise ConfigError(f"`{name}` must be a finite number, or a list of them")
    return tuple(float(number) for number in vector)
