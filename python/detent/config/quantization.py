"""`QuantizationConfig`: what is rewritten, how thresholds and bit widths are chosen, what is corrected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from detent._validation import Options
from detent.config.learned import LearnedConfig
from detent.config.rounding import GptqConfig
from detent.errors import ConfigError

__all__ = ["ActivationMetric", "QuantizationConfig", "WeightsGrid", "WeightsMetric"]

ActivationMetric = Literal["noclipping", "mse", "mae", "lp", "kl", "hmse", "moving_maximum"]
WeightsMetric = Literal["auto", "noclipping", "mse", "mae", "lp", "kl", "hmse", "output"]
WeightsGrid = Literal["power_of_two", "symmetric", "uniform", "lut", "lut_power_of_two"]

SQUARED_ERRORS: Final = ("auto", "mse", "hmse", "output")
"""Metrics of kernels that a codebook can be searched by."""
FEW_BITS: Final = 8
"""Kernels of fewer bits lose enough for `"auto"` options to look at the data again."""


class QuantizationConfig(Options):
    """Options of `detent.transform`, `detent.plan` and `detent.quantize`; keyword only, immutable.

    Attributes:
        activation_metric: error that activation thresholds minimize; `"hmse"` weights squared errors by Hessian scores;
            `"moving_maximum"` searches nothing and clips at the moving maximum of the magnitudes, as QuantizeML does:
            it depends on the order of the batches.
        moving_maximum: momentum of that maximum; None takes 0.9, or that of the statistics a plan is made from.
        activation_per_channel: a step for each channel of the activations that nothing sums over their channels, on a
            target that offers it; notes name the others.
        concat_threshold_update: values that only a concatenation reads take its grid, so that nothing is requantized
            there, also where the target does not ask for it.
        weights_metric: error that weight thresholds minimize; `"output"` is the squared error of the layer's output on
            the data, for which moments of the layers' inputs are collected; `"hmse"` weights squared errors by Hessian
            scores; `"auto"` is `"output"` for kernels of fewer than 8 bits, `"mse"` for the others and where there are
            no moments.
        p: exponent of the `"lp"` metric, sum of |Q(x) - x|^p; 0.5 to 6, for activations 1 to 6.
        z_threshold: activation values further than this many standard deviations from their mean are left out of the
            search; infinity keeps all.
        min_threshold: least clipping limit a search may choose, in units of the tensor.
        weights_bits: code width of all kernels; None takes the target's first.
        activation_bits: code width of all activations; None takes the target's first.
        weights_grid: kind of grid of all kernels; None takes the target's own. `"lut"` is a codebook of 8-bit values
            for each kernel with a threshold a channel, `"lut_power_of_two"` one whose thresholds are powers of two.
        codebook_scope: one codebook for each `"tensor"`, or one for each of its `"channel"`s, which is better and takes
            2^bits bytes a channel.
        weights_group_size: input channels of a kernel that share a step; None for one step a channel. A kernel whose
            input channels it does not divide keeps one step a channel, and a note names it.
        weight_search: `"exact"` finds the global optimum over all thresholds (mean squared error on symmetric grids,
            every other case searches a dense grid anyway); `"grid"` always searches the dense grid, which is faster.
        tie_free: move kernel thresholds by at most one part in 4096 so that no accumulator lies halfway between two
            codes of its layer's output; PyTorch and the runtimes then round alike (`docs/decisions/tie-free.md`).
        linear_collapsing: merge layers that follow each other with nothing in between, where that saves parameters.
        residual_collapsing: merge a shortcut around a convolution into its kernel.
        equalization: `"cross_layer"` gives the channels between two layers similar ranges; `"activations"` gives weak
            channels of an activation more of its range, by the folded batch norm; `"none"`.
        relu_bound_to_power_of_2: widen the bound of ReLU6 and the like to a power of two, scaling the layers around it.
        bias_absorption: move what a ReLU never cuts off from one bias into the next; needs a calibration of its own.
        softmax_shift: centre the logits of a softmax; needs a calibration of its own.
        smooth_quant: scale outlying channels behind a norm into the next layers; needs a calibration of its own.
        shift_negative: add a constant to the output of SiLU, GELU and the like so that unsigned codes serve it; needs a
            target with power-of-two or symmetric activations of free or unsigned sign, and a calibration of its own.
        shift_negative_ratio: the least output may be at most this part of the signed threshold for that.
        bias_correction: `"analytic"` takes the shift of every layer's mean from the saved statistics; `"sequential"`
            then measures what remains, layer by layer behind quantized predecessors, on a part of the calibration
            samples (`detent.correct_biases`, which `detent.quantize` calls); `"none"`. `"auto"` is sequential where
            kernels or activations have fewer than 8 bits, else analytic.
        activation_bias_correction: also take back how far rounding and clipping move the mean of a layer's input.
        activation_bias_correction_threshold: only where that is at least so many per cent of the mean.
        gain_correction: multiply the output channels of kernels, through their steps, by what makes up for rounding:
            `"least_squares"` for the least error at the layer's output, `"second_moment"` so that its variance stays;
            `"none"`. Needs moments of the layers' inputs. `"auto"` is the first for kernels of fewer than 8 bits, where
            there are moments.
        rounding: how kernels go to their grids: `"nearest"`; `"gptq"`, in closed form for the least error at the
            layers' outputs (`detent.round_kernels`, which `detent.quantize` calls); or `"learned"` behind that, block
            by block (`detent.learn_rounding`), which takes minutes.
        gptq: options of rounding in closed form.
        learned: options of learned rounding.
        moment_samples: calibration samples that moments are collected from.
        bias_correction_samples: calibration samples for the sequential one; a quarter of them judge it.

    Raises:
        ConfigError: an unknown option (with a suggestion) or a value out of range.
    """

    activation_metric: ActivationMetric = "mse"
    moving_maximum: Annotated[float, Field(ge=0, lt=1)] | None = None
    activation_per_channel: bool = False
    concat_threshold_update: bool = False
    weights_metric: WeightsMetric = "auto"
    p: Annotated[float, Field(ge=0.5, le=6)] = 2.0
    z_threshold: Annotated[float, Field(gt=0)] = float("inf")
    min_threshold: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0**-16
    weights_bits: Annotated[int, Field(ge=2, le=16)] | None = None
    activation_bits: Annotated[int, Field(ge=1, le=16)] | None = None
    weights_grid: WeightsGrid | None = None
    codebook_scope: Literal["tensor", "channel"] = "tensor"
    weights_group_size: Annotated[int, Field(ge=1)] | None = None
    weight_search: Literal["exact", "grid"] = "exact"
    tie_free: bool = True
    linear_collapsing: bool = True
    residual_collapsing: bool = True
    equalization: Literal["none", "activations", "cross_layer"] = "none"
    relu_bound_to_power_of_2: bool = False
    bias_absorption: bool = False
    softmax_shift: bool = False
    smooth_quant: bool = False
    shift_negative: bool = False
    shift_negative_ratio: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.05
    bias_correction: Literal["auto", "none", "analytic", "sequential"] = "auto"
    activation_bias_correction: bool = False
    activation_bias_correction_threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    gain_correction: Literal["auto", "none", "least_squares", "second_moment"] = "auto"
    rounding: Literal["nearest", "gptq", "learned"] = "nearest"
    gptq: GptqConfig = GptqConfig()
    learned: LearnedConfig = LearnedConfig()
    moment_samples: Annotated[int, Field(ge=1)] = 256
    bias_correction_samples: Annotated[int, Field(ge=2)] = 256

    @model_validator(mode="after")
    def _searchable(self) -> QuantizationConfig:
        if self.activation_metric == "lp" and self.p < 1:
            raise ConfigError(
                f"`p` must be at least 1 for activations, got {self.p:g}", remedy="0.5 to 1 is for `weights_metric`"
            )
        self._check_moving_maximum()
        self._check_rounding()
        if self.codebook_scope == "channel" and self.weights_grid not in ("lut", "lut_power_of_two"):
            raise ConfigError("`codebook_scope` is for codebooks", remedy="give weights_grid='lut' too")
        if self.weights_grid in ("lut", "lut_power_of_two"):
            if self.weights_metric not in SQUARED_ERRORS:
                raise ConfigError(
                    f"codebooks are searched by squared error, `weights_metric` is {self.weights_metric!r}",
                    remedy="use weights_metric='mse', 'hmse' or 'output', or another `weights_grid`",
                )
            if self.weights_group_size is not None:
                raise ConfigError(
                    "a codebook has one threshold a channel, none for each group",
                    remedy="leave out `weights_group_size`, or use another `weights_grid`",
                )
        return self

    def _check_rounding(self) -> None:
        """Options of a rounding that is not chosen would be without effect."""
        if self.rounding != "learned" and self.learned != LearnedConfig():
            raise ConfigError(
                f"`learned` has options of learned rounding, and `rounding` is {self.rounding!r}",
                remedy="give rounding='learned' too, or leave `learned` out",
            )
        if not self.rounds_in_closed_form and self.gptq != GptqConfig():
            raise ConfigError(
                f"`gptq` has options of rounding in closed form, and `rounding` is {self.rounding!r}",
                remedy="give rounding='gptq' or 'learned' too, or leave `gptq` out",
            )

    def _check_moving_maximum(self) -> None:
        if self.activation_metric != "moving_maximum":
            if self.moving_maximum is not None:
                raise ConfigError(
                    f"`moving_maximum` is a momentum, and `activation_metric` is {self.activation_metric!r}",
                    remedy="give activation_metric='moving_maximum' too",
                )
            return
        if self.z_threshold != float("inf"):
            raise ConfigError(
                "`z_threshold` leaves values out of a search, and a moving maximum is not searched",
                remedy="leave it out, or use another `activation_metric`",
            )
        if self.shift_negative:
            raise ConfigError(
                "`shift_negative` searches shift and threshold together, and a moving maximum is not searched",
                remedy="leave one of them out",
            )

    @classmethod
    def resolve(
        cls, config: QuantizationConfig | Mapping[str, Any] | None, options: Mapping[str, Any]
    ) -> QuantizationConfig:
        """The configuration given as an object, as a mapping, as single options, or as a mix: options win.

        Raises:
            ConfigError: as the constructor, or `config` is neither.
        """
        if config is None:
            return cls(**options)
        if isinstance(config, cls):
            return cls(**{**config.differences(), **options})
        if isinstance(config, Mapping):
            for name in config:
                if not isinstance(name, str):
                    raise ConfigError(f"the names of options are words, got {name!r}")
            return cls(**{**config, **options})
        raise ConfigError(f"`config` must be a QuantizationConfig or a mapping, got {type(config).__name__}")

    @property
    def rewrites_by_statistics(self) -> bool:
        """Whether a rewrite is wanted that reads statistics, so that the network is calibrated twice."""
        return self.bias_absorption or self.softmax_shift or self.smooth_quant or self.shift_negative

    @property
    def corrects_by_statistics(self) -> bool:
        """Whether biases are corrected by means in the statistics."""
        return self.bias_correction != "none" or self.activation_bias_correction

    @property
    def rounds_in_closed_form(self) -> bool:
        """Whether kernels are rounded in closed form, at the end or to begin learning with."""
        return self.rounding == "gptq" or (self.rounding == "learned" and self.learned.start == "gptq")

    @property
    def requires_moments(self) -> bool:
        """Whether planning fails without moments of the layers' inputs."""
        return self.weights_metric == "output" or self.gain_correction in ("least_squares", "second_moment")

    def refuse_hessians(self) -> None:
        """Refuse metrics that need Hessian scores, where there is no way to give any.

        Raises:
            ConfigError: a metric is `"hmse"`.
        """
        for name in ("activation_metric", "weights_metric"):
            if getattr(self, name) == "hmse":
                raise ConfigError(
                    f"`{name}` 'hmse' needs Hessian scores, which one call from model to quantized model cannot have",
                    remedy="calibrate, then plan with hessians=detent.estimate_traces(graph, data, stats=stats)",
                )

    def metric_of_kernel(self, bits: int) -> WeightsMetric:
        """The error that the thresholds of a kernel of that width minimize, moments permitting."""
        if self.weights_metric != "auto":
            return self.weights_metric
        return "output" if bits < FEW_BITS else "mse"

    def gain_of_kernel(self, bits: int) -> Literal["none", "least_squares", "second_moment"]:
        """How the gains of a kernel of that width are found, moments permitting."""
        if self.gain_correction != "auto":
            return self.gain_correction
        return "least_squares" if bits < FEW_BITS else "none"

    def samples_kept(self, *, moments: bool, sequential: bool) -> int:
        """How many samples are read again after calibration, from the beginning, for what is wanted of these."""
        return max(
            self.moment_samples if moments else 0,
            self.bias_correction_samples if sequential else 0,
            self.gptq.samples if self.rounds_in_closed_form else 0,
            self.learned.samples if self.rounding == "learned" else 0,
        )

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        return list(self.differences().items())

    def __str__(self) -> str:
        return repr(self)
