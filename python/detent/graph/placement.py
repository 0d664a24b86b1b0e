"""Placement: which values of a graph get a grid on a target, and which share one.

Every value has at most one grid. Operations that only move values hand their input's grid on; values inside a fused
operation have none; the rest follows the target's rules (`targets.schema.OpRule`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from torch import fx

from detent.graph.channelwise import obstacle_to_channels
from detent.graph.graph import Graph, GraphNode
from detent.graph.names import PREPARES, RANGE
from detent.graph.patterns import fused_groups
from detent.graph.roles import OpRole
from detent.graph.shapes import is_float, is_tensor
from detent.graph.shifts import SHIFT, UNSIGNED
from detent.targets import ActivationRule, OpRule, Target, WeightRule

__all__ = [
    "ActivationPoint",
    "Placement",
    "WeightPoint",
    "WidthLimit",
    "first_misfit",
    "place",
]

_ANALYTIC: Final = frozenset({"softmax", "sigmoid", "hardsigmoid"})
"""Operations whose whole output range is worth codes: both limits are known and both are approached."""


@dataclass(frozen=True, kw_only=True)
class ActivationPoint:
    """A value that is quantized.

    Args:
        value: its name in the graph.
        op_rule: the rule of the operation that decides its grid: its producer, or a consumer that needs a grid.
        same_as: the value whose grid this one shares.
        members: values whose statistics decide the grid; usually just `value`.
        bounds: analytic limits where these replace the observed range.
        declared: limits the user declared for raw input, of all `members` together.
        constant: the value is a stored tensor, not a computed one.
        holds: a positive number that is to be a level of its grid.
        axis: channel axis along which it may have a step for each channel; None where it has one for all.
        one_step: why it has one for all; empty where it has an `axis`.
    """

    value: str
    op_rule: OpRule
    same_as: str | None = None
    members: tuple[str, ...] = ()
    bounds: tuple[float, float] | None = None
    declared: tuple[float, float] | None = None
    constant: bool = False
    holds: float | None = None
    axis: int | None = None
    one_step: str = ""

    @property
    def rule(self) -> ActivationRule:
        """Kind of grid and widths the target offers here."""
        return self.op_rule.activations


@dataclass(frozen=True, kw_only=True)
class WeightPoint:
    """A stored kernel that is quantized.

    Args:
        layer: name of the first operation that uses it.
        parameter: name of the parameter or buffer in the graph module.
        users: all operations that use it.
        inputs: for each user, the value whose grid its input lives on; None if the input is not quantized.
        rule: kind of grid and widths the target offers.
        axis: its output-channel axis, None for one grid per tensor.
        bias_bits: width of the bias codes of its users, None for float.
    """

    layer: str
    parameter: str
    users: tuple[str, ...]
    inputs: tuple[str | None, ...]
    rule: WeightRule
    axis: int | None
    bias_bits: int | None


@dataclass(frozen=True, kw_only=True)
class WidthLimit:
    """Code widths that an operation reads one of its inputs in.

    Args:
        reader: name of the operation.
        value: the quantized value it reads.
        output: the quantized value it, or the fused operation it is in, computes; None without one.
        widths: the widths it reads; `"output"` for that of its output.
    """

    reader: str
    value: str
    output: str | None
    widths: tuple[int, ...] | Literal["output"]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where grids go, in execution order.

    Args:
        activations: value name to its point.
        weights: layer name to its point.
        fused: value computed inside a fused operation to the value that operation ends in.
        limits: code widths that operations read their inputs in.
        notes: non-fatal facts for the user.
    """

    activations: dict[str, ActivationPoint]
    weights: dict[str, WeightPoint]
    fused: dict[str, str] = field(default_factory=dict)
    limits: tuple[WidthLimit, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class _Draft:
    op_rule: OpRule
    same_as: fx.Node | None = None


@dataclass
class _Planner:
    graph: Graph
    target: Target
    drafts: dict[fx.Node, _Draft] = field(default_factory=dict)
    inside: set[fx.Node] = field(default_factory=set)
    fused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.found = {node.node: node for node in self.graph.nodes()}

    def run(self) -> Placement:
        for group in fused_groups(self.graph, self.target.fusing):
            self.inside.update(member.node for member in group[:-1])
            self.fused.update({member.name: group[-1].name for member in group[:-1]})
        nodes = self.graph.nodes()
        for node in nodes:
            self._place_output(node)
        for node in nodes:
            self._place_inputs(node)
        if self.target.quantize_model_outputs:
            for output in self.graph.outputs():
                root = self._root(output)
                producer = self.found.get(root)
                self._demand(root, self._rule(self._computing(producer).op if producer else None))
        ties = self._ties(nodes)
        activations = self._activations(nodes, ties)
        self._note_float_preparation(nodes)
        return Placement(
            activations=activations,
            weights=self._weights(nodes),
            fused=self.fused,
            limits=tuple(self._limits(nodes, activations)),
            notes=tuple(self.notes),
        )

    def _rule(self, role: OpRole | None) -> OpRule:
        return self.target.defaults if role is None else self.target.rule(role.kind, role.name)

    def _computing(self, node: GraphNode) -> GraphNode:
        """The operator whose rule counts for a value: a shift is part of the one before it."""
        while SHIFT in node.node.meta:
            node = self.found[node.data[0]]
        return node

    def _root(self, node: fx.Node) -> fx.Node:
        """The value whose grid `node` lives on: back through operations that only move values."""
        while True:
            found = self.found.get(node)
            if found is None or not found.preserving or not found.data:
                return node
            node = found.data[0]

    def _place_output(self, node: GraphNode) -> None:
        role = node.op
        if role is None or role.preserving or node.node in self.inside or not node.is_float:
            return
        rule = self._rule(self._computing(node).op)
        if role.kind == "input":
            if self.target.quantize_model_inputs:
                self.drafts[node.node] = _Draft(rule)
        elif rule.output_grid == "own":
            self.drafts[node.node] = _Draft(rule)
        elif rule.output_grid == "input":
            source = self._root(node.data[0])
            self._demand(source, rule)
            if source in self.drafts:
                self.drafts[node.node] = _Draft(rule, same_as=self.drafts[source].same_as or source)

    def _place_inputs(self, node: GraphNode) -> None:
        role = node.op
        if role is None or role.preserving or role.kind == "input":
            return
        rule = self._rule(role)
        if rule.quantize_inputs:
            for operand in node.data:
                self._demand(self._root(operand), rule)

    def _demand(self, value: fx.Node, rule: OpRule) -> None:
        """Give `value` a point unless it has one, is not float, or is computed inside a fused operation."""
        if value not in self.drafts and value not in self.inside and is_tensor(value) and is_float(value):
            self.drafts[value] = _Draft(rule.of_inputs)

    def _ties(self, nodes: Iterable[GraphNode]) -> dict[fx.Node, fx.Node]:
        """Values that must share one grid, each with its representative: the last output that asked for sharing."""
        parent: dict[fx.Node, fx.Node] = {}

        def find(value: fx.Node) -> fx.Node:
            while value in parent:
                value = parent[value]
            return value

        for node in nodes:
            draft = self.drafts.get(node.node)
            if draft is None or not draft.op_rule.inputs_share_output_grid:
                continue
            for operand in node.data:
                source = self._root(operand)
                if source not in self.drafts:
                    continue
                source = self.drafts[source].same_as or source
                if self.drafts[source].op_rule.fixed_outputs:
                    self.notes.append(
                        f"{self._name(source)}: the target prescribes its grid, so {node.name} requantizes it"
                    )
                elif find(source) is not find(node.node):
                    parent[find(source)] = find(node.node)
        return {value: find(value) for value in self.drafts if value in parent or value in parent.values()}

    def _name(self, node: fx.Node) -> str:
        return self.found[node].name if node in self.found else str(node.target)

    def _grid_of(self, node: fx.Node) -> str | None:
        root = self._root(node)
        return self._name(root) if root in self.drafts else None

    def _activations(self, nodes: Iterable[GraphNode], ties: dict[fx.Node, fx.Node]) -> dict[str, ActivationPoint]:
        points = {}
        constants = [node for node in self.drafts if node.op == "get_attr"]
        for node in [*constants, *(found.node for found in nodes)]:
            draft = self.drafts.get(node)
            if draft is None:
                continue
            owner = draft.same_as or node
            owner = ties.get(owner, owner)
            members = [value for value, root in ties.items() if root is node] or [node]
            role = self.found[node].op if node in self.found else None
            alone = owner is node and len(members) == 1
            one_step = self._one_step(node, draft, alone)
            axis = None if one_step else self.found[node].channel_axis
            points[self._name(node)] = ActivationPoint(
                value=self._name(node),
                op_rule=_unsigned(draft.op_rule) if alone and UNSIGNED in node.meta else draft.op_rule,
                same_as=self._name(owner) if owner is not node else None,
                members=tuple(self._name(value) for value in members) if owner is node else (),
                bounds=role.bounds if alone and role is not None and role.name in _ANALYTIC else None,
                declared=_declared(members) if owner is node else None,
                constant=node.op == "get_attr",
                holds=(node.meta.get(UNSIGNED) or None) if alone else None,
                axis=axis,
                one_step=one_step,
            )
        return points

    def _one_step(self, node: fx.Node, draft: _Draft, alone: bool) -> str:
        """Why a value has one step for all channels; empty if it may have one for each."""
        if not draft.op_rule.activations.per_channel:
            return "the target has no other"
        if not alone or any(other.same_as is node for other in self.drafts.values()):
            return "it shares its grid"
        if node not in self.found:
            return "it is stored"
        role = self.found[node].op
        known = RANGE in node.meta or (role is not None and role.name in _ANALYTIC)
        if known or draft.op_rule.fixed_outputs or UNSIGNED in node.meta:
            return "its range is known beforehand"
        return obstacle_to_channels(self.found, self.graph.outputs(), self.found[node]) or ""

    def _note_float_preparation(self, nodes: Iterable[GraphNode]) -> None:
        """Say which of the operators that prepare raw input have no grid."""
        floats: dict[str, list[str]] = {}
        for node in nodes:
            if PREPARES in node.node.meta and self._root(node.node) not in {*self.drafts, *self.inside}:
                floats.setdefault(node.node.meta[PREPARES], []).append(node.name)
        for name, values in floats.items():
            self.notes.append(f"{', '.join(values)}: raw input {name} is prepared in float here on {self.target.name}")

    def _limits(self, nodes: Iterable[GraphNode], activations: Mapping[str, ActivationPoint]) -> Iterator[WidthLimit]:
        for node in nodes:
            # What only moves values (a reshape) reads any width; a pooling or padding is an operation of the target.
            if node.op is None or node.kind in ("input", "preserving"):
                continue
            rule = self._rule(node.op)
            if rule.input_bits is None or not rule.quantize_inputs:
                continue
            output = self.fused.get(node.name, node.name)
            for operand in node.data:
                value = self._grid_of(operand)
                if value is not None:
                    known = output if output in activations else None
                    yield WidthLimit(reader=node.name, value=value, output=known, widths=rule.input_bits)

    def _weights(self, nodes: Iterable[GraphNode]) -> dict[str, WeightPoint]:
        users: dict[str, list[GraphNode]] = {}
        for node in nodes:
            if node.weight_name is not None and self._rule(node.op).weights is not None:
                users.setdefault(node.weight_name, []).append(node)
        points = {}
        for parameter, sharing in users.items():
            first = sharing[0]
            rule = self._rule(first.op)
            assert rule.weights is not None
            axes = {user.weight_axes[0] for user in sharing}
            if len(axes) > 1:
                self.notes.append(f"{first.name}: users of its kernel disagree on the channel axis; one grid for all")
            points[first.name] = WeightPoint(
                layer=first.name,
                parameter=parameter,
                users=tuple(user.name for user in sharing),
                inputs=tuple(self._grid_of(user.data[0]) for user in sharing),
                rule=rule.weights,
                axis=next(iter(axes)) if rule.weights.per_channel and len(axes) == 1 else None,
                bias_bits=rule.bias_bits,
            )
        return points


def _unsigned(rule: OpRule) -> OpRule:
    """The rule with unsigned codes, where it leaves their sign to the data."""
    if rule.activations.signed is not None:
        return rule
    return rule.model_copy(update={"activations": rule.activations.model_copy(update={"signed": False})})


def _declared(members: Iterable[fx.Node]) -> tuple[float, float] | None:
    """The limits of values that share a grid, None unless they are declared for all."""
    ranges = [member.meta.get(RANGE) for member in members]
    known = [limits for limits in ranges if limits is not None]
    if len(known) < len(ranges):
        return None
    return min(low for low, _ in known), max(high for _, high in known)


def first_misfit(placement: Placement, bits_of: Callable[[str], int | None]) -> tuple[WidthLimit, str] | None:
    """The first input in a width that its reader does not take, with the widths it does take in words.

    Args:
        placement: where grids go.
        bits_of: width of a quantized value, None if it is kept in float.
    """
    for limit in placement.limits:
        bits = bits_of(limit.value)
        widths = limit.widths
        if widths == "output":
            of_output = None if limit.output is None else bits_of(limit.output)
            widths = () if of_output is None else (of_output,)
        if bits is not None and widths and bits not in widths:
            reason = ", the width of its output" if limit.widths == "output" else ""
            return limit, f"{', '.join(map(str, sorted(widths)))} bits{reason}"
    return None


def place(graph: Graph, target: Target) -> Placement:
    """Decide which values and kernels of `graph` are quantized on `target`."""
    return _Planner(graph, target).run()
