"""`MixedPrecisionConfig`: how code widths are scored and distributed under a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from detent._validation import Options
from detent.errors import ConfigError

__all__ = ["Distance", "MixedPrecisionConfig", "Weighting"]

Width = Annotated[int, Field(ge=1, le=16)]
Distance = Literal["mse", "kl", "cosine"]
Weighting = Literal["average", "last_layer", "exponential", "hessian"]

_MEASURED: Final = "give a `metric` that compares predictions, or take probes"
_PROBED: Final = 'set scores="measured", or leave it out: gradients are those of the outputs alone'


class MixedPrecisionConfig(Options):
    """Options of mixed precision; keyword only, immutable.

    Attributes:
        scores: `"probes"` takes backward passes along a few directions of the outputs, to first order; `"measured"`
            runs what is behind each tensor for each of its widths, which costs more, needs no gradients, and knows no
            interactions; `"hawq"` multiplies the mean curvature of each tensor by the squared size of its errors
            (HAWQ-V2, Dong et al. 2020, arXiv:1911.03852), with more directions until the curvature is certain.
        samples: calibration samples that scores are taken on.
        probes: directions of the outputs for each sample; each costs a backward pass.
        loss: what a score counts: `"outputs"`, the squared change of the outputs relative to their energy, or
            `"fisher"`, the divergence of a classifier's prediction (outputs are logits).
        points: what measured scores compare: the `"outputs"` alone, or besides them values on the way, the points of
            interest: the `"usual"` ones (of convolutions, linear layers, sigmoids, softmaxes, sums, concatenations), or
            those named.
        weighting: how much each point counts: all alike (`"average"`); the last alone (`"last_layer"`), for networks
            whose last layers matter most; by its distance d, 1 - exp(-d / 0.1) (`"exponential"`); or by
            `point_weights` (`"hessian"`).
        point_weights: of all points by name, for `"hessian"`, whatever they come from.
        distances: how points are compared by the name or kind of their operation: `"mse"`, `"kl"`, `"cosine"`; None
            takes `"kl"` for softmaxes, `"cosine"` for sigmoids and linear layers, and `"mse"` for all else.
        metric: compares all values instead: takes the float value and the changed one of a batch, returns a number
            from 0.
        interactions: the objective knows how errors of different tensors add up or cancel; without them scores are
            added up.
        evaluated: how many of the best distributions are run on held-out samples, the best of which is taken; 0 or 1
            takes the solver's.
        weights_widths: candidate widths of kernels; None takes all that the target offers.
        activation_widths: candidate widths of activations; None takes all that the target offers.
        widths: candidate widths of single tensors, by layer or value; one width fixes it.
        configuration_overwrite: widths in place of the solver's: the index of the candidate of each tensor with a
            choice, 0 for the widest, in the order in which `detent.score` numbers them; or widths by name, of layers
            for kernels and of values for activations, with the others left to the solver.
        order: operations run in the order of the graph, or in the one that needs the least memory.
        gap: how far, relatively, the solution may be from the best one.
        time_limit_s: the solver's time.
        seed: of the probes.

    Raises:
        ConfigError: an unknown key (with a suggestion) or a value out of range.
    """

    scores: Literal["probes", "measured", "hawq"] = "probes"
    samples: Annotated[int, Field(ge=1)] = 32
    probes: Annotated[int, Field(ge=1)] = 4
    loss: Literal["outputs", "fisher"] = "outputs"
    points: Literal["outputs", "usual"] | tuple[str, ...] = "outputs"
    weighting: Weighting = "average"
    point_weights: Mapping[str, float] | None = None
    distances: Mapping[str, Distance] | None = None
    metric: Callable[..., Any] | None = None
    interactions: bool = True
    evaluated: Annotated[int, Field(ge=0)] = 4
    weights_widths: tuple[Width, ...] | None = None
    activation_widths: tuple[Width, ...] | None = None
    widths: Mapping[str, tuple[Width, ...]] = Field(default_factory=dict)
    configuration_overwrite: tuple[int, ...] | Mapping[str, Width] | None = None
    order: Literal["captured", "best"] = "captured"
    gap: Annotated[float, Field(ge=0, lt=1)] = 1e-4
    time_limit_s: Annotated[float, Field(gt=0)] = 60.0
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("points", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value not in ("outputs", "usual"):
                raise ConfigError(f'"outputs", "usual" or a list of names of values is needed, got {value!r}')
            return value
        if not isinstance(value, Sequence) or not value or not all(isinstance(name, str) for name in value):
            raise ConfigError(f'"outputs", "usual" or a list of names of values is needed, got {value!r}')
        return tuple(value)

    @model_validator(mode="after")
    def _options_fit_the_scores(self) -> MixedPrecisionConfig:
        if self.scores == "measured":
            if self.loss != "outputs":
                raise ConfigError(f"`loss={self.loss!r}` is for gradients, and scores are measured", remedy=_MEASURED)
            return self
        default = type(self).model_fields
        for name in ("points", "weighting", "point_weights", "distances", "metric"):
            if getattr(self, name) != default[name].default:
                raise ConfigError(f"`{name}` is for measured scores, and these are {self.scores!r}", remedy=_PROBED)
        return self

    @field_validator("configuration_overwrite", mode="before")
    @classmethod
    def _indices_or_widths(cls, value: Any) -> Any:
        if value is None or isinstance(value, Mapping):
            wrong = [f"{name!r}: {bits!r}" for name, bits in (value or {}).items() if not _is_width(name, bits)]
            if wrong:
                raise ConfigError(f"names with widths in 1..16 are needed, got {wrong[0]}")
            return value
        if isinstance(value, str) or not isinstance(value, Sequence) or not all(type(one) is int for one in value):
            raise ConfigError(f"a list of candidate indices, or widths by name are needed, got {value!r}")
        return tuple(value)

    @property
    def measuring(self) -> dict[str, Any]:
        """What measured scores look at, as the arguments of `score_by_measuring`."""
        return {
            "points": None if self.points == "usual" else self.points,
            "distances": self.distances,
            "metric": self.metric,
            "weighting": self.weighting,
            "weights": self.point_weights,
        }


def _is_width(name: object, bits: object) -> bool:
    return isinstance(name, str) and type(bits) is int and 1 <= bits <= 16
