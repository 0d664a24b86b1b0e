"""Where a constant added to a value goes, and the edits that add it and take it back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import fx

from detent.graph.graph import Graph, GraphNode
from detent.graph.layouts import BATCH
from detent.graph.names import LAYER, NAME, SOURCE
from detent.graph.roles import argument, argument_names, first_argument, op_name
from detent.graph.shapes import concrete_shape, value_of
from detent.graph.shifts import COMPENSATED, FILL, SHIFT, UNSIGNED
from detent.transforms.channel_factors import grouped_kernel
from detent.transforms.channel_paths import KERNELS
from detent.transforms.edits import is_pointwise, pads, parameter_path, per_axis, read_kernel, store_tensor

__all__ = ["ObstacleError", "ShiftPath", "find_shift_path", "shift_path"]

_KEPT_META: Final = ("nn_module_stack", "stack_trace", LAYER, SOURCE, BATCH)

_ZEROS_INSIDE: Final = frozenset({"im2col", "masked_fill", "where"})
"""Movements that put zeros beside the values."""

_RETURNS_PLACES: Final = frozenset({"max", "min"})
"""Selections that may also return where they found the value, which rounding can change."""


class ObstacleError(Exception):
    """Why a value cannot be shifted."""


@dataclass
class ShiftPath:
    """All that reads a value plus a constant, up to where the constant is taken back.

    Args:
        source: the value.
        carriers: values with a grid of their own that carry the constant too, such as averages.
        pads: paddings with zeros, which must become paddings with the constant.
        averages: average pools that count the zeros they pad with.
        readers: layers whose bias takes the constant back.
        sums: additions and subtractions, each with the factor that the constant arrives with.
    """

    source: GraphNode
    carriers: list[GraphNode] = field(default_factory=list)
    pads: list[GraphNode] = field(default_factory=list)
    averages: list[GraphNode] = field(default_factory=list)
    readers: list[GraphNode] = field(default_factory=list)
    sums: list[tuple[GraphNode, float]] = field(default_factory=list)


def find_shift_path(graph: Graph, source: GraphNode) -> ShiftPath:
    """Follow a constant added to every element of `source` to the operators that can take it back.

    Raises:
        ObstacleError: one of its readers can neither hand the constant on nor take it back.
    """
    path, carried = ShiftPath(source), {source.node}
    for item in graph.nodes():
        met = [node for node in item.node.all_input_nodes if node in carried]
        if met and _follow(path, item, carried):
            carried.add(item.node)
    strangers = {user for node in carried for user in node.users} - {item.node for item in graph.nodes()}
    for user in strangers:
        if user.op == "output":
            raise ObstacleError("the network returns its output")
        if op_name(user) != "sym_size":
            raise ObstacleError(f"{op_name(user)} follows, which has no known role")
    if not path.readers:
        # Sums alone gain nothing: they take the constant back without a kernel that profits from the finer grid.
        raise ObstacleError("no convolution or linear layer reads it")
    return path


def _follow(path: ShiftPath, item: GraphNode, carried: set[fx.Node]) -> bool:
    """Put a reader where it belongs on the path; whether its output carries the constant on."""
    if item.op is None:
        raise ObstacleError(f"{op_name(item.node)} follows, which has no known role")
    if item.kind in ("add", "sub"):
        amount = _factor(item, carried)
        if amount:
            path.sums.append((item, amount))
        return False
    if sum(node in carried for node in _operands(item.node)) > 1 or not set(item.data[:1]) & carried:
        raise ObstacleError(f"{item.op.name} combines its output with other values")
    if item.kind in KERNELS:
        _require_bias(item)
        path.readers.append(item)
        return False
    if not _hands_on(path, item):
        raise ObstacleError(f"{item.op.name} follows, which a constant does not pass")
    return True


def _operands(node: fx.Node) -> list[fx.Node]:
    """Every occurrence of a node among the arguments."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), lambda operand: found.append(operand))
    return found


def _factor(item: GraphNode, carried: set[fx.Node]) -> float:
    """The multiple of the constant that a sum or difference holds."""
    left, right = (argument(item.node, name) in carried for name in ("self", "other"))
    alpha = float(argument(item.node, "alpha")) if "alpha" in argument_names(item.node) else 1.0
    word = op_name(item.node)
    if word == "rsub":  # other - alpha * self
        return right - alpha * left
    return left + (alpha if word == "add" else -alpha) * right


def _require_bias(item: GraphNode) -> None:
    if item.weight is None:
        raise ObstacleError(f"the kernel of {item.name} is computed by the network")
    if item.bias is None and argument(item.node, "bias") is not None:
        raise ObstacleError(f"the bias of {item.name} is computed by the network")
    if item.kind == "conv_transposed":
        strides = (*per_axis(item, "stride"), *(size + 1 for size in per_axis(item, "output_padding")))
        if not is_pointwise(item) or pads(item) or set(strides) != {1}:
            raise ObstacleError(f"{item.name} is a transposed convolution, which adds up fewer products at its border")


def _hands_on(path: ShiftPath, item: GraphNode) -> bool:
    """Whether f(x + s) = f(x) + s, perhaps after an edit that is noted on the path."""
    assert item.op is not None
    name, word = item.op.name, op_name(item.node)
    if item.kind == "preserving":
        return word not in _ZEROS_INSIDE | _RETURNS_PLACES
    if item.kind == "pad":
        if word in ("pad", "constant_pad_nd") and (word != "pad" or argument(item.node, "mode") == "constant"):
            path.pads.append(item)
        return item.preserving
    if name == "max_pool":
        return not word.endswith("with_indices")
    if name == "avg_pool" and not _averages_evenly(path, item):
        return False
    if name == "avg_pool" or item.kind == "mean" or (item.kind == "resize" and not word.startswith("grid")):
        if not item.preserving:
            path.carriers.append(item)
        return True
    return False


def _averages_evenly(path: ShiftPath, item: GraphNode) -> bool:
    names = argument_names(item.node)
    if "divisor_override" in names and argument(item.node, "divisor_override") is not None:
        return False
    if "padding" not in names or not argument(item.node, "count_include_pad") or not any(_padding(item)):
        return True
    path.averages.append(item)
    # With `ceil_mode` the number of windows depends on where the padding is.
    return not argument(item.node, "ceil_mode")


def _padding(item: GraphNode) -> list[int]:
    value = argument(item.node, "padding")
    values = list(value) if isinstance(value, list | tuple) else [value]
    axes = int(next(digit for digit in op_name(item.node) if digit.isdigit()))
    return [int(size) for size in (values * axes if len(values) == 1 else values)]


def shift_path(graph: Graph, path: ShiftPath, amount: float) -> None:
    """Add `amount` to the source of a path, and take it back in the layers and sums that read it; then `finish`."""
    editor = _Editor(graph)
    editor.add_constant(path.source, amount)
    for item in path.carriers:
        item.node.meta[UNSIGNED] = amount
    for item in path.pads:
        _set_argument(item.node, "value", amount)
        item.node.meta[FILL] = True
    for item in path.averages:
        editor.pad_before(item, [size for size in reversed(_padding(item)) for _ in "lr"], amount)
    for item in path.readers:
        if item.kind == "conv" and pads(item):
            editor.pad_before(item, _conv_padding(item), amount)
        editor.compensate_bias(item, amount)
    for item, factor in path.sums:
        editor.take_back(item, -factor * amount)


def _conv_padding(item: GraphNode) -> list[int]:
    """Entries added before and after each axis, last axis first, as `constant_pad_nd` takes them."""
    assert item.weight is not None
    sizes: list[tuple[int, int]] = []
    if argument(item.node, "padding") == "same":
        for size, dilation in zip(concrete_shape(item.weight)[2:], per_axis(item, "dilation"), strict=True):
            total = dilation * (size - 1)
            # The odd one is added at the end, as torch does.
            sizes.append((total // 2, total - total // 2))
    else:
        sizes = [(size, size) for size in per_axis(item, "padding")]
    return [size for pair in reversed(sizes) for size in pair]


class _Editor:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.taken = {str(node.meta[NAME]) for node in graph.module.graph.nodes if NAME in node.meta}
        self.padded: dict[tuple[fx.Node, tuple[int, ...]], fx.Node] = {}

    def add_constant(self, item: GraphNode, amount: float) -> None:
        """Everything that reads `item` reads `item + amount` from now on; the sum is a value of its own."""
        shifted = self._shift(item, amount)
        shifted.meta[NAME] = self._free(f"{item.name}.shifted")
        shifted.meta[UNSIGNED] = amount

    def take_back(self, item: GraphNode, amount: float) -> None:
        """Add `amount` to a sum. The result is what the sum was, so it takes over the name, and statistics hold."""
        users = list(item.node.users)
        if len(users) == 1 and SHIFT in users[0].meta and item.node not in self.graph.outputs():
            # Two shifted values in one sum: one constant for both.
            users[0].update_arg(1, float(argument(users[0], "other")) + amount)
            return
        result = self._shift(item, amount)
        result.meta[NAME] = item.name
        item.node.meta[NAME] = self._free(f"{item.name}.before_shift")

    def pad_before(self, item: GraphNode, sizes: Sequence[int], amount: float) -> None:
        """Pad the input of a convolution or pool with `amount` instead of zeros inside the operator."""
        source = first_argument(item.node)  # not `item.data`, which remembers what came before the shift
        key = source, tuple(sizes)
        if key not in self.padded:
            self.padded[key] = self._pad(item, source, list(sizes), amount)
        item.node.replace_input_with(source, self.padded[key])
        if getattr(item.node.target, "_overloadname", "") == "padding":  # the one that takes words
            item.node.target = getattr(torch.ops.aten, op_name(item.node)).default
        _set_argument(item.node, "padding", [0] * (len(sizes) // 2))

    def compensate_bias(self, item: GraphNode, amount: float) -> None:
        """b <- b - amount * sum of the kernel over its inputs and positions, in float64 and rounded once."""
        assert item.weight is not None
        kernel = self.graph.tensor(item.weight)
        old = 0.0 if item.bias is None else self.graph.tensor(item.bias).detach().double()
        values = old - amount * grouped_kernel(kernel, item).sum((2, 3)).flatten()
        # A bias of its own: the old one may belong to other layers, too.
        bias = store_tensor(
            self.graph,
            parameter_path(item, "bias"),
            values.to(kernel.dtype),
            like=kernel if item.bias is None else self.graph.tensor(item.bias),
            before=item.node,
        )
        read_kernel(item.node, item.weight, bias)
        item.node.meta[COMPENSATED] = amount

    def _shift(self, item: GraphNode, amount: float) -> fx.Node:
        users = list(item.node.users)
        with self.graph.module.graph.inserting_after(item.node):
            result = self.graph.module.graph.call_function(torch.ops.aten.add.Tensor, (item.node, amount))
        result.meta = self._meta(item.node)
        result.meta["val"] = value_of(item.node)
        result.meta[SHIFT] = True
        for user in users:
            user.replace_input_with(item.node, result)
        return result

    def _pad(self, item: GraphNode, source: fx.Node, sizes: list[int], amount: float) -> fx.Node:
        operator: Any = torch.ops.aten.constant_pad_nd.default
        with self.graph.module.graph.inserting_before(item.node):
            node = self.graph.module.graph.call_function(operator, (source, sizes, amount))
        # The layout is the input's, the layer the operator's that padded.
        node.meta = {**self._meta(item.node), **{key: source.meta[key] for key in (BATCH,) if key in source.meta}}
        node.meta[NAME] = self._free(f"{item.layer}.pad" if item.layer else "pad")
        node.meta[FILL] = True
        with value_of(source).fake_mode:
            node.meta["val"] = operator(value_of(source), sizes, amount)
        return node

    def _meta(self, node: fx.Node) -> dict[str, Any]:
        return {key: node.meta[key] for key in _KEPT_META if key in node.meta}

    def _free(self, base: str) -> str:
        name, count = base, 0
        while name in self.taken:
            count += 1
            name = f"{base}:{count}"
        self.taken.add(name)
        return name


def _set_argument(node: fx.Node, name: str, value: Any) -> None:
    index = argument_names(node).index(name)
    if index < len(node.args):
        node.args = (*node.args[:index], value, *node.args[index + 1 :])
    else:
        node.kwargs = {**node.kwargs, name: value}
