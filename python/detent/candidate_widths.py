"""The widths among which mixed precision chooses, by target, options and rules; and what they read the data for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detent._arguments import expect
from detent._registry import unknown_name
from detent.config import Budget, MixedPrecisionConfig, QuantizationConfig
from detent.config.quantization import FEW_BITS
from detent.edit import Rule, resolve_rules
from detent.errors import ConfigError
from detent.graph import Graph
from detent.graph.placement import Placement
from detent.graph.policy import place_as_asked
from detent.mixed_precision import (
    FLOAT_BITS,
    LatencyTable,
    activation_slots,
    latencies,
    latency_table,
    overwritten,
)
from detent.planning import FurtherPasses
from detent.records.choices import Choices
from detent.records.rules import checked_rules
from detent.records.sensitivity import Role
from detent.sensitivity import points_of_interest
from detent.targets import Target, load_target
from detent.thresholds.forms import for_kernel, form_of_kernel

__all__ = [
    "Setting",
    "candidate_widths",
    "check_times",
    "checked_budget",
    "checked_latency",
    "mixed_passes",
    "setting_of",
    "widths_in",
]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all steps need; `roles` are those with a choice of widths, `latency` is there if it is limited."""

    graph: Graph
    named: str | Path | Target
    target: Target
    config: QuantizationConfig
    options: MixedPrecisionConfig
    rules: tuple[Rule, ...]
    placement: Placement
    choices: Choices
    roles: frozenset[Role]
    latency: LatencyTable | None


def checked_budget(budget: Budget | Mapping[str, Any] | None) -> Budget | None:
    """A budget that limits something, or None.

    Raises:
        ConfigError: it limits nothing, or is none.
    """
    if budget is None:
        return None
    found = Budget.resolve(budget)
    if not found.limited:
        raise ConfigError("the budget limits nothing", remedy='give at least one limit, e.g. weights="50%"')
    return found


def checked_latency(budget: Budget | None, latency: LatencyTable | str | Path | None) -> LatencyTable | None:
    """The table of times that a limit of latency needs; None where nothing limits it.

    Raises:
        ConfigError: one is given without the other, or the file holds no such table.
        FormatError: the file cannot be read.
    """
    limited = budget is not None and "latency" in budget.limited
    if limited and latency is None:
        raise ConfigError(
            "latency is limited, but nothing is known about it",
            remedy="pass `latency`, a table of measured times or the path of its file (docs/mixed-precision.md)",
        )
    if latency is None:
        return None
    if not limited:
        raise ConfigError("`latency` is for a budget that limits it", remedy='limit it, e.g. latency="80%"')
    return latency_table(latency)


def candidate_widths(
    graph: Graph,
    target: str | Path | Target,
    config: QuantizationConfig,
    mixed_precision: MixedPrecisionConfig | None = None,
    rules: Sequence[Rule] = (),
    budget: Budget | None = None,
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """The candidate widths of kernels by layer, and of activations by the value that owns the grid; wide ones first.

    A budget that limits the memory of weights alone leaves activations their usual width, and the other way round.

    Raises:
        ConfigError: a width that the target does not offer, a tensor or point that does not exist, or no tensor has a
            choice.
    """
    return widths_in(setting_of(graph, target, config, mixed_precision, rules, budget))


def widths_in(setting: Setting) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """As `candidate_widths`; what the options name is looked up too."""
    kernels, values = _kernel_widths(setting), _activation_widths(setting)
    for name in setting.options.widths:
        if name not in kernels and name not in values:
            raise unknown_name("tensor in `widths`", name, [*kernels, *values])
    if setting.options.scores == "measured":
        points_of_interest(setting.graph, **setting.options.measuring)
    given = setting.options.configuration_overwrite
    if isinstance(given, Mapping):
        overwritten([*_tensors(kernels, "weights"), *_tensors(values, "activations")], given)
    if all(len(widths) < 2 for widths in (*kernels.values(), *values.values())):
        raise ConfigError(
            f"no tensor has a choice of widths on target {setting.target.name!r}",
            remedy="take a target that offers several widths, or leave out what fixes them",
        )
    return kernels, values


@dataclass(frozen=True)
class _Tensor:
    """A tensor with its candidates, as `overwritten` takes it."""

    name: str
    role: Role
    members: tuple[str, ...]
    bits: tuple[int, ...]


def _tensors(table: Mapping[str, tuple[int, ...]], role: Role) -> list[_Tensor]:
    return [_Tensor(name, role, (name,), bits) for name, bits in table.items()]


def setting_of(
    graph: Graph,
    target: str | Path | Target,
    config: QuantizationConfig,
    options: MixedPrecisionConfig | Mapping[str, Any] | None,
    rules: Sequence[Rule],
    budget: Budget | None = None,
    latency: LatencyTable | str | Path | None = None,
) -> Setting:
    """Resolve what was asked for, and see which tensors have a choice under a budget.

    Raises:
        ConfigError: a wrong target, option or rule, or a limit of latency without times or the other way round.
        FormatError: the file of times cannot be read.
    """
    expect(graph, Graph, "graph", "detent.capture")
    chip, asked = load_target(target), checked_rules(rules)
    placement = place_as_asked(graph, chip, config)
    return Setting(
        graph=graph,
        named=target,
        target=chip,
        config=config,
        options=MixedPrecisionConfig.of(options, "mixed_precision"),
        rules=asked,
        placement=placement,
        choices=resolve_rules(graph, placement, chip, config, asked),
        roles=_roles(budget),
        latency=checked_latency(budget, latency),
    )


def _roles(budget: Budget | None) -> frozenset[Role]:
    """Which tensors have a choice: all, unless only one kind of memory is limited."""
    limited = () if budget is None else budget.limited
    if limited == ("weights",):
        return frozenset(("weights",))
    return frozenset(("activations",)) if limited == ("activations",) else frozenset(("weights", "activations"))


def _kernel_widths(setting: Setting) -> dict[str, tuple[int, ...]]:
    found = {}
    for layer, point in setting.placement.weights.items():
        choice = setting.choices.of_weights(layer)
        if choice.keep_float:
            continue
        wanted = for_kernel(setting.config, choice)
        kind, usual = form_of_kernel(point, wanted, setting.target)
        fixed = choice.grid.bits if choice.grid is not None else wanted.weights_bits
        found[layer] = (fixed,) if fixed else _narrowed(setting, layer, point.rule.widths(kind), "weights", usual)
    return found


def _activation_widths(setting: Setting) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for value, point in setting.placement.activations.items():
        choice = setting.choices.of_activation(value)
        if point.same_as is not None or choice.keep_float:
            continue
        rule, asked = point.rule, choice.bits or setting.config.activation_bits
        usual = rule.choose_bits(asked, what="activations", target=setting.target.name, where=value)
        fixed = usual if choice.grid is None else choice.grid.bits
        if asked or choice.grid is not None or point.constant:
            found[value] = (fixed,)
        else:
            found[value] = _narrowed(setting, value, rule.bits, "activations", usual)
    for limit in setting.placement.limits:
        owner = setting.placement.activations[limit.value].same_as or limit.value
        if limit.widths != "output" and owner in found:
            readable = tuple(bits for bits in found[owner] if bits in limit.widths)
            found[owner] = readable or found[owner]
    return found


def _narrowed(setting: Setting, name: str, offered: Sequence[int], role: Role, usual: int) -> tuple[int, ...]:
    """Candidates of a tensor: those wanted of what is offered, in descending order."""
    options = setting.options
    if role not in setting.roles and name not in options.widths:
        return (usual,)
    of_role = options.weights_widths if role == "weights" else options.activation_widths
    wanted = options.widths.get(name, of_role)
    if wanted is None:
        return tuple(sorted(offered, reverse=True))
    found = tuple(sorted({bits for bits in wanted if bits in offered}, reverse=True))
    if not found and name in options.widths:
        known = ", ".join(map(str, sorted(offered)))
        raise ConfigError(
            f"target {setting.target.name!r} offers none of the candidate widths {list(wanted)} here",
            where=name,
            remedy=f"choose among {known}",
        )
    return found or (usual,)


def check_times(setting: Setting, kernels: Mapping[str, Sequence[int]], values: Mapping[str, Sequence[int]]) -> None:
    """Refuse a table of times that lacks widths which may be chosen, before anything is scored.

    Raises:
        ConfigError: it does, or is wrong in itself; names the layer.
    """
    if setting.latency is None:
        return
    slots = activation_slots(setting.graph, setting.placement)
    for item in latencies(setting.graph, setting.placement, slots, setting.latency)[0]:
        of_input = values.get(item.input or "", (FLOAT_BITS,))
        for kernel_bits in kernels.get(item.kernel or "", (FLOAT_BITS,)):
            for input_bits in of_input:
                item.time(kernel_bits, input_bits)


def mixed_passes(
    graph: Graph,
    target: str | Path | Target,
    config: QuantizationConfig,
    mixed_precision: MixedPrecisionConfig | None = None,
    rules: Sequence[Rule] = (),
    budget: Budget | None = None,
    latency: LatencyTable | str | Path | None = None,
) -> FurtherPasses:
    """What reads the data again after calibration if widths are chosen under a budget, by the candidate widths.

    Raises:
        ConfigError: as `candidate_widths` and `check_times`.
    """
    setting = setting_of(graph, target, config, mixed_precision, rules, budget, latency)
    kernels, values = widths_in(setting)
    check_times(setting, kernels, values)
    widths = {bits for found in kernels.values() for bits in found}
    few = min([*widths, *(bits for found in values.values() for bits in found)], default=FEW_BITS) < FEW_BITS
    return FurtherPasses(
        moments=config.requires_moments
        or any(config.metric_of_kernel(bits) == "output" or config.gain_of_kernel(bits) != "none" for bits in widths),
        sequential=config.bias_correction == "sequential" or (config.bias_correction == "auto" and few),
    )
