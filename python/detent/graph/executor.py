"""Runs a captured graph node by node, shows the watched values, and frees every value after its last use."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import fx
from torch._ops import OpOverload

from detent.errors import CalibrationError, UnsupportedOpError
from detent.graph.roles import argument, argument_names

__all__ = ["Executor", "Observer", "for_any_layout", "prefers_channels_last"]

Observer = Callable[[int, torch.Tensor], None]
"""Sees the value of a watched node, given by its place in the list, for one batch; must not keep or change it."""

aten: Final = torch.ops.aten

_ANY_LAYOUT: Final[dict[Any, Callable[..., Any]]] = {
    # A view exists for the memory layout seen at capture only; reshape gives the same values for every layout.
    aten.view.default: aten.reshape.default,
    aten._unsafe_view.default: aten.reshape.default,
}
_CHANNELS_LAST_OPS: Final = {aten.conv2d.default, aten.conv2d.padding, aten.conv_transpose2d.input}
_LAYOUT_BOUND_OPS: Final = {aten.as_strided.default}
"""Operators that read memory by address: with them the layout of capture must stay."""


@dataclass(frozen=True, slots=True)
class _Slot:
    """Stands in an argument for the value of a node."""

    index: int


@dataclass(frozen=True, slots=True)
class _Step:
    node: fx.Node
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: int
    watched: int | None
    release: tuple[int, ...]


class Executor:
    """A graph made ready to run many batches, several at the same time if need be.

    Two-dimensional convolutions run in channels-last layout, which is faster on CPUs; the weights are converted once,
    in a copy. What does not depend on the inputs is computed once, what no watched node depends on not at all.

    Args:
        module: the captured graph.
        watched: the nodes whose values are shown.
        describe: names a node for errors: layer and source line.
        gradients: record what gradients need; parameters get none. Otherwise nothing is recorded.
        anew: nodes to compute, and show, in each run even if they do not depend on the inputs.
        given: nodes whose values each run is given; what only they need is not computed.
        functions: what computes some nodes in place of their operators, from the same arguments.

    Raises:
        UnsupportedOpError: the graph changes its own parameters or buffers while it runs.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        watched: Sequence[fx.Node],
        describe: Callable[[fx.Node], str],
        *,
        gradients: bool = False,
        anew: Collection[fx.Node] = (),
        given: Sequence[fx.Node] = (),
        functions: Mapping[fx.Node, Callable[..., Any]] | None = None,
    ) -> None:
        self._mode: Callable[[], AbstractContextManager[None]] = (
            torch.enable_grad if gradients else torch.inference_mode
        )
        self._module = module
        self._describe = describe
        self._nodes = list(module.graph.nodes)
        self._slots = {node: index for index, node in enumerate(self._nodes)}
        self._watched = {node: index for index, node in enumerate(watched)}
        self._given = [self._slots[node] for node in given]
        self._functions = dict(functions or {})
        self._placeholders = [node for node in self._nodes if node.op == "placeholder"]
        self._channels_last = prefers_channels_last(module)
        needed = _ancestors(watched, given)
        varying = _depending_on_inputs(module, [*anew, *given])
        self._constants: list[Any] = [None] * len(self._nodes)
        # What is recorded for gradients must not have been made in inference mode.
        with torch.no_grad() if gradients else torch.inference_mode():
            for node in self._nodes:
                if node in needed and node not in varying:
                    self._constants[self._slots[node]] = self._compute_constant(node)
        steps = self._compile(
            [node for node in self._nodes if node in needed and node in varying and node not in given]
        )
        self._parts = _parts(steps)

    @property
    def draws_random_numbers(self) -> bool:
        """Whether an operator reads torch's random state, so that the order of the batches matters."""
        return any(_draws(step.node) for part in self._parts for step in part)

    def show_constants(self, observer: Observer) -> None:
        """Show the watched values that do not depend on the inputs."""
        for node, index in self._watched.items():
            value = self._constants[self._slots[node]]
            if value is not None:
                observer(index, value)

    def run(self, inputs: Sequence[torch.Tensor], observer: Observer) -> None:
        """Run one batch, showing the watched values that depend on the inputs as they appear. Safe in several threads.

        Args:
            inputs: one tensor per placeholder, in order. The model may write into them.
            observer: sees the values.

        Raises:
            CalibrationError: an operator failed; names the layer.
        """
        for index, value in self.walk(inputs):
            with self._mode():
                observer(index, value)
            del value

    def walk(
        self, inputs: Sequence[torch.Tensor], given: Sequence[torch.Tensor] = ()
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Run one batch and stop at each watched value that depends on the inputs.

        What is computed later sees the changes that the caller makes to the value in place meanwhile. Each part of the
        walk may run in another thread.

        Args:
            inputs: one tensor per placeholder, in order. The model may write into them. Not read where it is given.
            given: values of the nodes that are given, in their order.

        Yields:
            The place of a watched node in the list, and its value.

        Raises:
            CalibrationError: an operator failed; names the layer.
        """
        values = list(self._constants)
        for node, tensor in zip(self._placeholders, inputs, strict=True):
            values[self._slots[node]] = self._laid_out(tensor)
        for slot, tensor in zip(self._given, given, strict=True):
            values[slot] = self._laid_out(tensor)
        for part in self._parts:
            # Entered anew in each part: the mode is the thread's, and the caller may go on in another one.
            with self._mode():
                for step in part:
                    value = self._execute(step, values)
                    if step.watched is None:
                        _release(step, values)
            if step.watched is not None:
                yield step.watched, value
                _release(step, values)

    def _execute(self, step: _Step, values: list[Any]) -> Any:
        args, kwargs = _fill(step.args, values), _fill(step.kwargs, values)
        try:
            value = values[step.out] = step.function(*args, **kwargs)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            raise CalibrationError(
                f"the model failed on a calibration batch: {error}",
                where=self._describe(step.node),
                remedy="run the model itself on this batch; the data may not be what it was captured with",
            ) from error
        return value

    def _compile(self, nodes: Sequence[fx.Node]) -> list[_Step]:
        last_use = {source: node for node in nodes for source in [node, *node.all_input_nodes]}
        releases: dict[fx.Node, list[int]] = {}
        for source, user in last_use.items():
            releases.setdefault(user, []).append(self._slots[source])
        steps = []
        for node in nodes:
            if node.op == "placeholder":
                function, args, kwargs = _same, (_Slot(self._slots[node]),), {}
            else:
                self._check_writes(node)
                function, args, kwargs = self._callable(node), self._slotted(node.args), self._slotted(node.kwargs)
            release = tuple(releases.get(node, ()))
            steps.append(_Step(node, function, args, kwargs, self._slots[node], self._watched.get(node), release))
        return steps

    def _callable(self, node: fx.Node) -> Callable[..., Any]:
        if node in self._functions:
            return self._functions[node]
        if node.op == "call_function":
            return for_any_layout(node.target)  # type: ignore[arg-type]
        if node.op == "call_module":
            return self._module.get_submodule(str(node.target))
        if node.op == "call_method":
            return getattr(torch.Tensor, str(node.target))  # type: ignore[no-any-return]
        raise UnsupportedOpError(f"cannot run a graph node of kind {node.op!r}", where=self._describe(node))

    def _slotted(self, arguments: Any) -> Any:
        return fx.node.map_arg(arguments, lambda node: _Slot(self._slots[node]))  # type: ignore[arg-type, return-value]

    def _compute_constant(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            value: Any = self._module
            for part in str(node.target).split("."):
                value = getattr(value, part)
            value = value.detach() if isinstance(value, torch.Tensor) else value
        else:
            args, kwargs = _fill(self._slotted(node.args), self._constants), self._slotted(node.kwargs)
            value = self._callable(node)(*args, **_fill(kwargs, self._constants))
        if isinstance(value, torch.Tensor) and any(_is_kernel(node, user) for user in node.users):
            return self._laid_out(value)
        return value

    def _laid_out(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._channels_last and tensor.ndim == 4:
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    def _check_writes(self, node: fx.Node) -> None:
        """A model that writes into its own state would make the statistics depend on the order of the samples."""
        if not isinstance(node.target, OpOverload) or not node.target._schema.is_mutable:
            return
        for source, parameter in zip(node.args, node.target._schema.arguments, strict=False):
            written = parameter.alias_info is not None and parameter.alias_info.is_write
            if written and isinstance(source, fx.Node) and self._constants[self._slots[source]] is not None:
                raise UnsupportedOpError(
                    f"the model changes its own state {source.name!r} while it runs ({node.target})",
                    where=self._describe(node),
                    remedy="put the model in evaluation mode, or keep the state outside of forward",
                )


def _parts(steps: Sequence[_Step]) -> list[list[_Step]]:
    """The steps cut behind each that is watched."""
    parts: list[list[_Step]] = [[]]
    for step in steps:
        parts[-1].append(step)
        if step.watched is not None:
            parts.append([])
    return [part for part in parts if part]


def _release(step: _Step, values: list[Any]) -> None:
    for slot in step.release:
        values[slot] = None


def _depending_on_inputs(module: fx.GraphModule, others: Collection[fx.Node]) -> set[fx.Node]:
    """The nodes whose value an input, or one of some other nodes, can change; these as well."""
    found = set(others)
    for node in module.graph.nodes:
        if node.op == "placeholder" or any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def prefers_channels_last(module: fx.GraphModule) -> bool:
    """Whether the graph runs in channels-last layout: a fixed rule, since layouts round differently."""
    targets = {node.target for node in module.graph.nodes}
    return bool(targets & _CHANNELS_LAST_OPS) and not targets & _LAYOUT_BOUND_OPS


def _ancestors(nodes: Collection[fx.Node], given: Collection[fx.Node] = ()) -> set[fx.Node]:
    """Some nodes and all that they are computed from, as far as that is not given."""
    found: set[fx.Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(() if node in given else node.all_input_nodes)
    return found


def _is_kernel(weight: fx.Node, user: fx.Node) -> bool:
    return user.target in _CHANNELS_LAST_OPS and len(user.args) > 1 and user.args[1] is weight


def for_any_layout(function: Callable[..., Any]) -> Callable[..., Any]:
    """What gives the same values as an operator whatever the memory layout of its arguments."""
    return _ANY_LAYOUT.get(function, function)


def _draws(node: fx.Node) -> bool:
    """Whether an operator reads torch's random state; dropout that is switched off does not."""
    if not isinstance(node.target, OpOverload) or torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    switches = {"train", "training"}.intersection(argument_names(node))
    return all(argument(node, switch) for switch in switches)


def _same(value: torch.Tensor) -> torch.Tensor:
    return value


def _fill(template: Any, values: Sequence[Any]) -> Any:
    kind = type(template)
    if kind is _Slot:
        return values[template.index]
    if kind is tuple:
        return tuple([_fill(item, values) for item in template])
    if kind is list or kind is fx.immutable_collections.immutable_list:
        return [_fill(item, values) for item in template]
    if kind is dict or kind is fx.immutable_collections.immutable_dict:
        return {key: _fill(item, values) for key, item in template.items()}
    return template
