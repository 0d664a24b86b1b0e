"""Paths that a positive factor per channel can take: from the layer that makes the channels to those that read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Final

from torch import fx
from torch.utils import _pytree as pytree

from detent.graph.clamps import is_clamp
from detent.graph.graph import Graph, GraphNode
from detent.graph.roles import argument, argument_names, op_name
from detent.graph.shapes import concrete_shape
from detent.transforms.edits import StoredReaders

__all__ = [
    "KERNELS",
    "ChannelPath",
    "Clamp",
    "Reader",
    "channel_paths",
    "layers_of",
    "read_elsewhere",
    "summarize",
]

KERNELS: Final = ("conv", "conv_transposed", "linear")
"""Kinds of layers that can take a factor per channel into their kernel."""

_HOMOGENEOUS: Final = frozenset({"relu", "leaky_relu", "prelu"})
"""Activations with f(s x) = s f(x) for every s > 0."""

_MOVING: Final = frozenset(
    (
        *("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"),
        *("contiguous", "clone", "alias", "detach", "lift_fresh_copy", "to", "_to_copy"),
        *("reshape", "view", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "expand"),
        *("permute", "transpose", "swapaxes", "swapdims", "t", "mT", "slice", "narrow", "select"),
    )
)
"""Operators that keep channels apart and in order, as far as the graph knows where they are afterwards."""


@dataclass(frozen=True)
class Reader:
    """A layer at the end of a path.

    Args:
        layer: convolution or linear layer.
        value: the operand that carries the channels.
        spread: consecutive input columns of the kernel that belong to one channel; above 1 after a flattening.
    """

    layer: GraphNode
    value: fx.Node
    spread: int


@dataclass(frozen=True)
class Clamp:
    """A clamp on a path: its limits take the factors.

    Args:
        item: the clamp.
        axis: its channel axis.
        spread: consecutive entries along `axis` that belong to one channel.
    """

    item: GraphNode
    axis: int
    spread: int


@dataclass(frozen=True)
class ChannelPath:
    """Everything between a value's channels and the layers that read them; nothing else reads them.

    Args:
        source: the layer whose output the channels are.
        channels: their number.
        between: all operators on the way, in order of discovery.
        clamps: those of them with limits.
        readers: the layers at the ends, at least one.
    """

    source: GraphNode
    channels: int
    between: tuple[GraphNode, ...]
    clamps: tuple[Clamp, ...]
    readers: tuple[Reader, ...]


@dataclass(frozen=True)
class _Step:
    item: GraphNode
    axis: int
    spread: int


class _ObstacleError(Exception):
    """Why a path cannot take factors."""


def channel_paths(
    graph: Graph, accepts: Callable[[GraphNode], bool] | None = None
) -> tuple[list[ChannelPath], dict[str, str]]:
    """All paths of a network, in order of execution, and the layers that nearly start one.

    Args:
        graph: the network.
        accepts: which values may be the start of a path; convolutions and linear layers with stored kernels by default.

    Returns:
        the paths, and for each rejected source its name and the reason.
    """
    found: list[ChannelPath] = []
    rejected: dict[str, str] = {}
    walker = _Walker(graph)
    for source in graph.nodes():
        if not (source.kind in KERNELS if accepts is None else accepts(source)):
            continue
        try:
            path = walker.path(source)
        except _ObstacleError as obstacle:
            rejected[source.name] = str(obstacle)
        else:
            if path is not None:
                found.append(path)
    return found, rejected


def summarize(graph: Graph, what: str, rejected: dict[str, str]) -> None:
    """Note which layers were left as they are, one note per reason."""
    layers: dict[str, list[str]] = {}
    for name, reason in rejected.items():
        layers.setdefault(reason, []).append(name)
    for reason, names in layers.items():
        shown = ", ".join(names[:5]) + f" and {len(names) - 5} more" * (len(names) > 5)
        graph.notes.append(f"{what}: {shown}: {reason}")


def read_elsewhere(item: GraphNode, reads: Iterable[fx.Node | None]) -> bool:
    """Whether one of the stored tensors that `reads` read has other readers than `item`."""
    paths = {str(node.target) for node in reads if node is not None}
    nodes = item.node.graph.find_nodes(op="get_attr", sort=False)
    return any(user is not item.node for node in nodes if str(node.target) in paths for user in node.users)


@dataclass
class _Walk:
    """What a walk from one source has met."""

    between: list[GraphNode] = field(default_factory=list)
    clamps: list[Clamp] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    obstacles: list[str] = field(default_factory=list)

    def obstacle(self) -> str | None:
        """Why the source cannot take factors; None if it can, or if nothing that follows could."""
        telling = [reason for reason in self.obstacles if reason != _RETURNED]
        return (telling or self.obstacles)[0] if telling or (self.readers and self.obstacles) else None


class _Walker:
    def __init__(self, graph: Graph) -> None:
        self.readers = StoredReaders(graph)
        self.items = {item.node: item for item in graph.nodes()}

    def path(self, source: GraphNode) -> ChannelPath | None:
        """The path from `source`; None where no layer reads its channels and nothing was close to it."""
        shape, axis = source.shape, source.channel_axis
        if shape is None or axis is None or not source.is_float:
            return None
        walk = self._walk(_Step(source, axis, 1), shape[axis])
        obstacle = walk.obstacle()
        if obstacle is not None:
            raise _ObstacleError(obstacle)
        if not walk.readers:
            return None
        for layer in (source, *(reader.layer for reader in walk.readers)):
            if layer.kind in KERNELS:
                _require_own_tensors(self.readers, layer)
        return ChannelPath(source, shape[axis], tuple(walk.between), tuple(walk.clamps), tuple(walk.readers))

    def _walk(self, start: _Step, channels: int) -> _Walk:
        walk, steps = _Walk(), [start]
        while steps:
            step = steps.pop()
            for user in step.item.node.users:
                try:
                    following = self._follow(step, user, channels)
                except _ObstacleError as obstacle:
                    walk.obstacles.append(str(obstacle))
                    continue
                if isinstance(following, Reader):
                    walk.readers.append(following)
                elif following is not None:
                    walk.between.append(following.item)
                    steps.append(following)
                    if is_clamp(following.item):
                        walk.clamps.append(Clamp(following.item, following.axis, following.spread))
        return walk

    def _follow(self, step: _Step, user: fx.Node, channels: int) -> _Step | Reader | None:
        """What comes after `step` in `user`; None for something that only reads a size."""
        if user.op == "output":
            raise _ObstacleError(_RETURNED)
        item = self.items.get(user)
        if item is None or item.op is None:
            if op_name(user) == "sym_size":
                return None
            raise _ObstacleError(f"{op_name(user)} follows, which has no known role")
        occurrences = sum(leaf is step.item.node for leaf in pytree.tree_leaves((user.args, user.kwargs)))
        if occurrences != 1 or not item.data or item.data[0] is not step.item.node:
            raise _ObstacleError(f"{item.op.name} combines its output with other values")
        if item.kind in KERNELS:
            return _reader(step, item, channels)
        axis, spread = _commuting_axis(step, item)
        if item.shape is None or axis >= len(item.shape) or item.shape[axis] != channels * spread:
            raise _ObstacleError(f"{op_name(user)} follows, which does not keep its channels apart")
        return _Step(item, axis, spread)


_RETURNED: Final = "the network returns its output"


def _reader(step: _Step, item: GraphNode, channels: int) -> Reader:
    if item.weight is None:
        raise _ObstacleError(f"the kernel of {item.name} is computed by the network")
    shape, rank = step.item.shape or (), len(concrete_shape(item.weight))
    axis = len(shape) - 1 if item.kind == "linear" else len(shape) - rank + 1
    if step.axis != axis or shape[axis] != channels * step.spread or (step.spread > 1 and item.kind != "linear"):
        raise _ObstacleError(f"{item.name} sums over another axis than its channels")
    return Reader(item, step.item.node, step.spread)


def _require_own_tensors(readers: StoredReaders, item: GraphNode) -> None:
    if item.weight is None:
        raise _ObstacleError(f"the kernel of {item.name} is computed by the network")
    if item.bias is None and argument(item.node, "bias") is not None:
        raise _ObstacleError(f"the bias of {item.name} is computed by the network")
    if readers.share_kernel(item) or readers.read_elsewhere(item, (item.weight, item.bias)):
        raise _ObstacleError(f"the kernel or bias of {item.name} is used more than once")


def _commuting_axis(step: _Step, item: GraphNode) -> tuple[int, int]:
    """Channel axis and spread after an operator that lets factors pass; an `_ObstacleError` for all others."""
    assert item.op is not None
    name, word, rank = item.op.name, op_name(item.node), len(step.item.shape or ())
    if item.kind == "activation" and (name in _HOMOGENEOUS or is_clamp(item)):
        return step.axis, step.spread
    if item.kind == "preserving" and word in _MOVING:
        return _moved_axis(step, item, word)
    after = rank - 1 - step.axis
    if step.spread == 1 and item.kind == "pad" and item.preserving and len(argument(item.node, "pad")) // 2 <= after:
        return step.axis, 1
    sliding = next((int(digit) for digit in "123" if f"{digit}d" in word), 0)
    if step.spread == 1 and item.kind in ("pool", "resize") and sliding == after and "grid" not in word:
        return step.axis, 1
    if step.spread == 1 and item.kind in ("mean", "sum") and item.channel_axis is not None:
        return item.channel_axis, 1
    if sum(operand.op != "get_attr" for operand in item.data) > 1:
        raise _ObstacleError(f"{name} combines its output with other values")
    raise _ObstacleError(f"{name} follows, which a factor per channel does not pass")


def _moved_axis(step: _Step, item: GraphNode, word: str) -> tuple[int, int]:
    before, after = step.item.shape or (), item.shape or ()
    if word in ("slice", "narrow", "select") and int(argument(item.node, "dim")) % len(before) == step.axis:
        raise _ObstacleError(f"{word} follows, which takes some of its channels")
    same_shape = "dim" not in argument_names(item.node) and "dims" not in argument_names(item.node)
    if same_shape and before == after:
        return step.axis, step.spread
    if step.spread == 1 and item.channel_axis is not None:
        return item.channel_axis, 1
    inner = before[step.axis + 1 :]
    if step.spread == 1 and after == (*before[: step.axis], before[step.axis] * prod(inner)):
        return step.axis, prod(inner)
    raise _ObstacleError(f"{word} follows, which mixes its channels with other axes")


def layers_of(paths: list[ChannelPath]) -> Iterator[GraphNode]:
    """Every layer at either end of the paths, each once."""
    yield from dict.fromkeys(layer for path in paths for layer in (path.source, *(r.layer for r in path.readers)))
