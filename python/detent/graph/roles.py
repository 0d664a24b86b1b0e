"""Op roles: what quantization needs to know about each operator, one registry entry per operator.

An operator is found by its ATen name without the overload (`conv2d`); an entry for one overload (`conv2d.padding`)
takes precedence. In-place variants (`relu_`) share the entry of the functional form. Where arguments decide what an
operator is (`hardtanh(0, 6)` is ReLU6, `pad` with a non-zero value leaves the grid), the entry has a `refine` rule.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Final, Literal

from torch import fx
from torch._ops import OpOverload

from detent._registry import Registry

__all__ = ["OPS", "OpRole", "argument", "argument_names", "first_argument", "op_name", "register", "role_of"]

Bounds = tuple[float, float]
ChannelRule = Literal["same", "moved", "reduced", "spatial"]


@dataclass(frozen=True, kw_only=True)
class OpRole:
    """The part an operator plays in a quantized network.

    Args:
        name: the specific operation, e.g. `conv2d`, `relu6`, `upsample_nearest2d`.
        kind: its family, e.g. `conv`, `activation`, `resize`; targets and fusing patterns may use either word.
        data: schema names of the activation operands; empty means the first argument.
        weight: schema name of the kernel, None if the operator has none.
        bias: schema name of the bias added to the output, if any.
        weight_out_axis: axis of the kernel that holds output channels (within a group for transposed convolutions).
        weight_in_axis: axis of the kernel that is summed over.
        channel_axis: axis of the output that holds channels: an index, or a rule that starts from the first operand's
            (`"same"`, `"moved"` as the operator moves axes, `"reduced"` by its `dim`), or `"spatial"`, the axis before
            those the kernel slides along; None if there is none.
        macs: multiply-accumulates of the whole value described by a node; None means zero. Only operators with a kernel
            or two multiplied operands count, as is the custom in the field.
        preserving: every output element is an input element or zero, so the output lives on the input's grid.
        bounds: real limits no output can leave, whatever the input.
        refine: decides the role from the node's arguments; returns None if the node has no role as it stands.
    """

    name: str
    kind: str
    data: tuple[str, ...] = ()
    weight: str | None = None
    bias: str | None = None
    weight_out_axis: int = 0
    weight_in_axis: int = 1
    channel_axis: int | ChannelRule | None = "same"
    macs: Callable[[fx.Node], int] | None = None
    preserving: bool = False
    bounds: Bounds = (-inf, inf)
    refine: Callable[[fx.Node, OpRole], OpRole | None] | None = None

    def answers_to(self, word: str) -> bool:
        """Whether a target's word, a kind or a name, means this role."""
        return word in (self.name, self.kind)


OPS: Final[Registry[OpRole]] = Registry("operator")
"""ATen name (without overload, or with it where overloads differ) to role."""

GETITEM: Final = OpRole(name="getitem", kind="preserving", preserving=True)
INPUT: Final = OpRole(name="input", kind="input")


def register(aten_name: str, role: OpRole) -> OpRole:
    """Give an operator its role; `aten_name` is `conv2d` or, for a single overload, `conv2d.padding`.

    Raises:
        ConfigError: the operator has a role already.
    """
    return OPS.add(aten_name, role)


def op_name(node: fx.Node) -> str:
    """Name of the node's operator without namespace, overload and in-place mark: `conv2d`, `add`, `getitem`."""
    if isinstance(node.target, OpOverload):
        name = node.target._schema.name.split("::")[-1]
        # `__and__` and the like are not in-place forms.
        return name[:-1] if name.endswith("_") and not name.endswith("__") else name
    return getattr(node.target, "__name__", str(node.target))


def role_of(node: fx.Node) -> OpRole | None:
    """The role of an fx node, resolved from its arguments; None for an operator without one."""
    if node.op == "placeholder":
        return INPUT
    if node.op != "call_function":
        return None
    if node.target is operator.getitem:
        source = node.args[0]
        parent = role_of(source) if isinstance(source, fx.Node) else None
        # An item of a tuple is on its parent's grid only if the parent's are: chunks are, the cell of an LSTM is not.
        return GETITEM if parent is not None and parent.preserving else None
    if not isinstance(node.target, OpOverload) or node.target.namespace != "aten":
        return None
    name = op_name(node)
    exact = f"{name}.{node.target._overloadname}"
    known = next((key for key in (exact, name) if key in OPS), None)
    if known is None:
        return None
    role = OPS[known]
    if role.refine is None:
        return role
    refined = role.refine(node, role)
    return None if refined is None else replace(refined, refine=None)


def argument(node: fx.Node, name: str) -> Any:
    """The value of a schema argument of an ATen call, its default if it is not given.

    Raises:
        KeyError: the operator has no argument of that name.
    """
    if name in node.kwargs:
        return node.kwargs[name]
    assert isinstance(node.target, OpOverload)
    for index, parameter in enumerate(node.target._schema.arguments):
        if parameter.name == name:
            return node.args[index] if index < len(node.args) else parameter.default_value
    raise KeyError(f"{node.target} has no argument {name!r}")


def argument_names(node: fx.Node) -> list[str]:
    """Names of the schema arguments of an ATen call."""
    assert isinstance(node.target, OpOverload)
    return [parameter.name for parameter in node.target._schema.arguments]


def first_argument(node: fx.Node) -> Any:
    """The first argument of a call, however it is given."""
    return node.args[0] if node.args else next(iter(node.kwargs.values()), None)
