"""Whether a target offers what a rule asks for; the error names the rule, the layer and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detent.config import QuantizationConfig
from detent.config.quantization import SQUARED_ERRORS
from detent.errors import ConfigError
from detent.graph import Graph
from detent.graph.placement import Placement, WeightPoint, first_misfit
from detent.graph.shapes import concrete_shape
from detent.records.choice import TensorChoice
from detent.records.grid import Grid
from detent.records.plan import TensorPlan
from detent.records.rules import Rule
from detent.targets import Target

__all__ = ["Offers"]


@dataclass(frozen=True)
class Offers:
    """What a target offers for the tensors of one graph under a configuration."""

    graph: Graph
    placement: Placement
    target: Target
    config: QuantizationConfig

    def check_activation(self, value: str, choice: TensorChoice, rule: Rule) -> None:
        """Refuse a choice for a value that the target, or the kind of tensor, does not allow."""
        point = self.placement.activations[value]
        offered = point.rule
        if choice.grid is not None:
            self._check_activation_grid(value, choice.grid, rule)
            return
        if choice.keep_float:
            return
        self._check_bits(choice.bits, offered.bits, value, rule)
        bits = choice.bits or offered.choose_bits(
            self.config.activation_bits, what="activations", target=self.target.name
        )
        at = offered.at(bits)
        self._check_kind(choice.kind, at.kinds, value, rule)
        fixed = point.op_rule.fixed_output(bits)
        extra = sorted(choice.options() - {"bits", "freeze"})
        if fixed is not None and extra:
            raise self._refused(
                rule,
                f"prescribes step {fixed.scale:g} and zero point {fixed.zero_point}, `{extra[0]}` cannot be met",
                value,
                "ask for `bits`, `keep_float` or `freeze` only",
            )
        if choice.metric == "output":
            raise ConfigError(
                f"{rule!r}: the metric 'output' is the error at the output of a layer, for its kernel",
                where=value,
                remedy="ask for it with edit.weights, or choose another metric",
            )
        if choice.metric == "lp" or choice.p is not None:
            p = self.config.p if choice.p is None else choice.p
            if p < 1:
                raise ConfigError(
                    f"{rule!r}: `p` must be at least 1 for activations, got {p:g}",
                    where=value,
                    remedy="give p=1 or more",
                )
        for name in ("threshold", "lower"):
            limits = getattr(choice, name)
            if limits is not None and len(limits) != 1:
                raise ConfigError(
                    f"{rule!r}: limits by hand are those of the whole activation, and {len(limits)} are given",
                    where=value,
                    remedy="give one number",
                )
        self._check_limits(choice, choice.kind or at.kind, value, rule)

    def check_weights(self, layer: str, choice: TensorChoice, rule: Rule) -> None:
        """Refuse a choice for a kernel that the target, or its shape, does not allow."""
        point = self.placement.weights[layer]
        if choice.grid is not None:
            self._check_kernel_grid(point, choice.grid, rule)
            return
        if choice.keep_float:
            return
        asked = choice.kind or self.config.weights_grid or point.rule.kind
        kind = "lut" if asked == "lut_power_of_two" else asked
        self._check_kind(kind, point.rule.kinds, layer, rule)
        self._check_bits(choice.bits, point.rule.widths(kind), layer, rule)
        if kind == "lut" and (choice.metric or self.config.weights_metric) not in SQUARED_ERRORS:
            raise ConfigError(
                f"{rule!r}: codebooks are searched by squared error, the metric of all kernels is "
                f"{self.config.weights_metric!r}",
                where=layer,
                remedy="add metric='mse' to the rule",
            )
        if choice.group_size is not None:
            self._check_groups(point, choice.group_size, rule)
        channels = self._channels(point)
        for name in ("threshold", "lower"):
            limits = getattr(choice, name)
            if limits is not None and len(limits) not in (1, channels):
                raise ConfigError(
                    f"{rule!r}: the kernel has {channels} channels, and {len(limits)} limits are given",
                    where=layer,
                    remedy=f"give one number or {channels}",
                )
        self._check_limits(choice, kind, layer, rule)

    def _check_groups(self, point: WeightPoint, group_size: int, rule: Rule) -> None:
        sizes = point.rule.group_sizes
        if sizes != "any" and group_size not in sizes:
            offered = f"choose among {', '.join(map(str, sizes))}" if sizes else "it offers one step a channel"
            raise self._refused(rule, f"has no groups of {group_size} channels here", point.layer, offered)
        read = self.graph.find(point.layer).weight
        assert read is not None
        shape = concrete_shape(read)
        inputs = shape[1 - point.axis] if point.axis in (0, 1) and len(shape) > 1 else 1
        if inputs % group_size:
            raise ConfigError(
                f"{rule!r}: {group_size} does not divide the {inputs} input channels of this kernel",
                where=point.layer,
                remedy="choose a divisor, or leave the layer out of the rule",
            )

    def check_widths(self, asked: Mapping[str, tuple[TensorChoice, Rule]], kept: Mapping[str, TensorPlan]) -> None:
        """Refuse widths of activations that their readers do not take."""

        def bits_of(value: str) -> int | None:
            owner = self.placement.activations[value].same_as or value
            if owner in kept:
                grid = kept[owner].grid
                return None if grid is None else grid.bits
            choice = asked[owner][0] if owner in asked else TensorChoice()
            if choice.keep_float:
                return None
            if choice.grid is not None:
                return choice.grid.bits
            offered = self.placement.activations[owner].rule
            return choice.bits or offered.choose_bits(
                self.config.activation_bits, what="activations", target=self.target.name
            )

        found = first_misfit(self.placement, bits_of) if asked else None
        if found is None:
            return
        limit, widths = found
        names = [name for name in (limit.value, limit.output) if name is not None]
        owners = [self.placement.activations[name].same_as or name for name in names]
        rules = [asked[owner][1] for owner in owners if owner in asked]
        who = f"{rules[0]!r}: " if rules else ""
        raise ConfigError(
            f"{who}{limit.value} gets {bits_of(limit.value)} bits, but {limit.reader} reads {widths} on target "
            f"{self.target.name!r}",
            where=limit.value,
            remedy="leave this value out of the rule, or give all values around that operation one width",
        )

    def _check_activation_grid(self, value: str, grid: Grid, rule: Rule) -> None:
        point = self.placement.activations[value]
        self._check_bits(grid.bits, point.rule.bits, value, rule)
        at = point.rule.at(grid.bits)
        self._check_kind(grid.kind, at.kinds, value, rule)
        if grid.axis is not None and point.axis is None:
            raise ConfigError(
                f"{rule!r}: this activation has one step for all channels, {point.one_step}",
                where=value,
                remedy="remove `axis`, and give one number for each limit",
            )
        shape = self.graph.find(value).shape
        channels = None if shape is None or point.axis is None else shape[point.axis]
        if grid.axis is not None and (grid.axis, grid.size, grid.group_size) != (point.axis, channels, None):
            raise ConfigError(
                f"{rule!r}: the value has {channels} channels along axis {point.axis}, the grid {grid.size} entries "
                f"along axis {grid.axis}",
                where=value,
                remedy="give one entry for each channel",
            )
        if at.signed is not None and grid.signed != at.signed:
            word = "signed" if at.signed else "unsigned"
            raise self._refused(rule, f"has {word} codes here", value, f"give a grid with signed={at.signed}")
        fixed = point.op_rule.fixed_output(grid.bits)
        if fixed is not None and (float(grid.scale[0]), int(grid.zero_point[0])) != (
            float(np.float32(fixed.scale)),
            fixed.zero_point,
        ):
            raise self._refused(
                rule,
                f"prescribes step {fixed.scale:g} and zero point {fixed.zero_point} here",
                value,
                "leave the grid to the target",
            )

    def _check_kernel_grid(self, point: WeightPoint, grid: Grid, rule: Rule) -> None:
        self._check_kind(grid.kind, point.rule.kinds, point.layer, rule)
        self._check_bits(grid.bits, point.rule.widths(grid.kind), point.layer, rule)
        narrow = point.rule.narrow_range and grid.kind in ("power_of_two", "symmetric")
        if not grid.signed or grid.narrow_range != narrow:
            raise self._refused(
                rule, "has other kernel codes", point.layer, f"give a grid with signed=True, narrow_range={narrow}"
            )
        if grid.axis not in (None, point.axis):
            raise self._refused(rule, f"has kernel grids along axis {point.axis}", point.layer, "correct `axis`")
        if grid.group_size is not None:
            self._check_groups(point, grid.group_size, rule)
        elif grid.axis is not None and grid.size != self._channels(point):
            raise ConfigError(
                f"{rule!r}: the kernel has {self._channels(point)} channels, the grid {grid.size} entries",
                where=point.layer,
                remedy="give one entry for each channel",
            )

    def _channels(self, point: WeightPoint) -> int:
        """Channels that have a grid of their own."""
        read = self.graph.find(point.layer).weight
        assert read is not None
        return 1 if point.axis is None else concrete_shape(read)[point.axis]

    def _check_bits(self, bits: int | None, offered: Sequence[int], where: str, rule: Rule) -> None:
        if bits is not None and bits not in offered:
            allowed = ", ".join(map(str, sorted(offered)))
            raise self._refused(rule, f"has no {bits} bits here", where, f"choose among {allowed}")

    def _check_kind(self, kind: str | None, offered: Sequence[str], where: str, rule: Rule) -> None:
        if kind is not None and kind not in offered:
            raise self._refused(rule, f"has no {kind} grid here", where, f"choose among {', '.join(offered)}")

    def _check_limits(self, choice: TensorChoice, kind: str, where: str, rule: Rule) -> None:
        uniform = kind == "uniform"
        if (choice.threshold is not None and uniform) or (choice.lower is not None and not uniform):
            needed = "`lower` and `upper`" if uniform else "`threshold`"
            raise ConfigError(f"{rule!r}: a {kind} grid takes {needed}", where=where, remedy=f"give {needed}")
        if choice.threshold is not None and kind == "power_of_two":
            for threshold in choice.threshold:
                if np.frexp(np.float32(threshold))[0] != 0.5:
                    near = 2.0 ** round(float(np.log2(threshold)))
                    raise ConfigError(
                        f"{rule!r}: threshold {threshold:g} of a power_of_two grid is not a power of two",
                        where=where,
                        remedy=f"use {near:g}",
                    )

    def _refused(self, rule: Rule, what: str, where: str, remedy: str) -> ConfigError:
        return ConfigError(f"{rule!r}: target {self.target.name!r} {what}", where=where, remedy=remedy)
