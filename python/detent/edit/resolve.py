"""From rules to choices: which tensors each rule means, what that makes of them, and whether the target offers it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from detent.config import QuantizationConfig
from detent.edit.offered import Offers
from detent.edit.operations import operations_of
from detent.errors import ConfigError
from detent.graph import Graph
from detent.graph.placement import Placement
from detent.records.choice import TensorChoice
from detent.records.choices import Choices
from detent.records.filters import Operation
from detent.records.plan import QuantPlan, TensorPlan, metric_of
from detent.records.rules import Rule
from detent.targets import Target

__all__ = ["resolve_changes", "resolve_rules"]


@dataclass
class _Asked:
    """What some rules ask for one grid, and of which of the tensors that share it."""

    choice: TensorChoice
    members: set[str]
    rule: Rule


@dataclass
class _Table:
    """Everything asked so far for the grids of one kind of tensor; keys are the owners of grids."""

    asked: dict[str, list[_Asked]] = field(default_factory=dict)

    def ask(self, owner: str, choice: TensorChoice, members: set[str], rule: Rule) -> None:
        """Add what a rule asks. It wins over earlier rules that mean one of its own tensors too.

        Raises:
            ConfigError: an earlier rule asks something else for other tensors on the same grid.
        """
        kept = []
        for earlier in self.asked.get(owner, []):
            merged = _overlaid(earlier.choice, choice, rule, owner)
            if earlier.members & members:
                choice, members = merged, members | earlier.members
                continue
            lost = [name for name in earlier.choice.options() if getattr(merged, name) != getattr(earlier.choice, name)]
            if lost:
                raise ConfigError(
                    f"{rule!r} and {earlier.rule!r} ask for different things, but {sorted(earlier.members)[0]} and "
                    f"{sorted(members)[0]} share one grid",
                    where=owner,
                    remedy="ask the same for both, or let the later rule match both",
                )
            kept.append(earlier)
        self.asked[owner] = [*kept, _Asked(choice, members, rule)]

    def choices(self) -> dict[str, tuple[TensorChoice, Rule]]:
        """For every grid what is asked, and the last rule that asks."""
        found = {}
        for owner, entries in self.asked.items():
            choice = entries[0].choice
            for entry in entries[1:]:
                choice = _overlaid(choice, entry.choice, entry.rule, owner)
            found[owner] = (choice, entries[-1].rule)
        return found


def resolve_rules(
    graph: Graph,
    placement: Placement,
    target: Target,
    config: QuantizationConfig,
    rules: Sequence[Rule],
    earlier: QuantPlan | None = None,
) -> Choices:
    """What rules ask for each tensor; later rules win. Frozen entries of an earlier plan are taken over.

    Raises:
        ConfigError: a rule that matches nothing, or asks for what the tensors do not have or the target does not offer,
            rules that contradict each other on a shared grid, or one that asks another thing for a frozen tensor.
    """
    activations, weights = _read(graph, placement, rules)
    frozen: tuple[dict[str, TensorPlan], dict[str, TensorPlan]] = ({}, {})
    if earlier is not None:
        frozen = _frozen(earlier.activations, placement.activations), _frozen(earlier.weights, placement.weights)
    for asked, kept in zip((activations, weights), frozen, strict=True):
        for name in set(asked) & set(kept):
            _check_frozen(name, *asked[name], kept[name])
    return _checked(graph, placement, target, config, (activations, weights), frozen)


def resolve_changes(
    graph: Graph,
    placement: Placement,
    target: Target,
    config: QuantizationConfig,
    plan: QuantPlan,
    rules: Sequence[Rule],
) -> Choices:
    """What rules ask for the tensors of a plan that exists; entries of tensors that none of them means are kept.

    What the plan's own rules asked for a tensor still holds where the new ones leave it open.

    Raises:
        ConfigError: as `resolve_rules`.
    """
    meant = _read(graph, placement, rules)
    everything = _read(graph, placement, (*plan.rules, *rules))
    kept: list[dict[str, TensorPlan]] = []
    asked: list[dict[str, tuple[TensorChoice, Rule]]] = []
    for entries, new, full in zip((plan.activations, plan.weights), meant, everything, strict=True):
        for name in new:
            if entries[name].frozen:
                _check_frozen(name, *new[name], entries[name])
        asked.append({name: full[name] for name in new})
        kept.append({name: entry for name, entry in entries.items() if name not in new or entry.frozen})
    return _checked(graph, placement, target, config, (asked[0], asked[1]), (kept[0], kept[1]))


_Asks = Mapping[str, tuple[TensorChoice, Rule]]


def _read(graph: Graph, placement: Placement, rules: Sequence[Rule]) -> tuple[_Asks, _Asks]:
    """What rules ask for the owners of grids among activations, and for kernels."""
    operations = operations_of(graph, placement) if rules else []
    kernels = {user: layer for layer, point in placement.weights.items() for user in point.users}
    activations, weights = _Table(), _Table()
    for rule in rules:
        matched = [operation for operation in operations if rule.where.matches(operation)]
        if not matched:
            raise ConfigError(
                f"{rule!r} matches nothing",
                remedy=f"print the graph for names; {len(operations)} operations: {_some(operations)}",
            )
        if rule.activations is not None:
            for owner, members in _values(placement, matched, rule).items():
                activations.ask(owner, rule.activations, members, rule)
        if rule.weights is not None:
            layers: dict[str, set[str]] = {}
            for operation in matched:
                if operation.name in kernels:
                    layers.setdefault(kernels[operation.name], set()).add(operation.name)
            if not layers:
                raise ConfigError(
                    f"{rule!r} is about weights, and nothing it matches has weights that the target quantizes",
                    where=_some(matched),
                    remedy=f"layers with such weights: {', '.join(list(kernels)[:8])}",
                )
            for layer, members in layers.items():
                weights.ask(layer, rule.weights, members, rule)
    return activations.choices(), weights.choices()


def _values(placement: Placement, matched: Sequence[Operation], rule: Rule) -> dict[str, set[str]]:
    """The owners of the grids that the outputs of operations are on, each with those of them it serves.

    The output of an operation inside a fused one is that of the fused one: nothing else is quantized there.
    """
    found: dict[str, set[str]] = {}
    for operation in matched:
        value = placement.fused.get(operation.name, operation.name)
        point = placement.activations.get(value)
        if point is not None:
            found.setdefault(point.same_as or value, set()).add(value)
    if not found:
        raise ConfigError(
            f"{rule!r} is about activations, and nothing it matches has an output that the target quantizes",
            where=_some(matched),
            remedy="operations that only move values are on the grid of their input: name the operation that computes "
            f"it, one of {', '.join(list(placement.activations)[:8])}",
        )
    return found


def _some(operations: Sequence[Operation]) -> str:
    names = [operation.name for operation in operations]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _overlaid(earlier: TensorChoice, later: TensorChoice, rule: Rule, where: str) -> TensorChoice:
    try:
        return earlier.overlaid(later)
    except ConfigError as error:
        raise ConfigError(f"{rule!r} does not go with earlier rules: {error.what}", where=where) from None


def _frozen(entries: Mapping[str, TensorPlan], placed: Mapping[str, object]) -> dict[str, TensorPlan]:
    return {name: entry for name, entry in entries.items() if entry.frozen and name in placed}


def _check_frozen(name: str, choice: TensorChoice, rule: Rule, entry: TensorPlan) -> None:
    """A frozen entry stays as it is; a rule may only ask for what it already is."""
    grid = entry.grid
    if choice.keep_float or grid is None:
        agrees = grid is None and not choice.options() - {"keep_float", "freeze"}
    elif choice.grid is not None:
        agrees = choice.grid == grid
    else:
        kind = "lut" if choice.kind == "lut_power_of_two" else choice.kind
        agrees = choice.bits in (None, grid.bits) and kind in (None, grid.kind)
        agrees = agrees and choice.group_size in (None, grid.group_size)
        agrees = agrees and choice.metric in (None, metric_of(entry)) and not choice.limits_by_hand
    if not agrees or choice.freeze is False:
        raise ConfigError(
            f"{rule!r} asks for a change of a tensor that is frozen in the plan",
            where=name,
            remedy='remove "frozen" from its entry in the plan, or leave it out of the rule',
        )


def _checked(
    graph: Graph,
    placement: Placement,
    target: Target,
    config: QuantizationConfig,
    asked: tuple[_Asks, _Asks],
    kept: tuple[Mapping[str, TensorPlan], Mapping[str, TensorPlan]],
) -> Choices:
    offers = Offers(graph, placement, target, config)
    free = [
        {name: asks[name] for name in asks if name not in entries} for asks, entries in zip(asked, kept, strict=True)
    ]
    for value, (choice, rule) in free[0].items():
        offers.check_activation(value, choice, rule)
    for layer, (choice, rule) in free[1].items():
        offers.check_weights(layer, choice, rule)
    offers.check_widths(free[0], kept[0])
    return Choices(
        activations={name: choice for name, (choice, _) in free[0].items()},
        weights={name: choice for name, (choice, _) in free[1].items()},
        kept_activations=dict(kept[0]),
        kept_weights=dict(kept[1]),
    )
