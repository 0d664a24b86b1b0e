"""Stored tensors of a captured module: read, add, move and drop them by their dotted paths."""

from __future__ import annotations

from functools import reduce

import torch
from torch import fx, nn

__all__ = [
    "add_tensor",
    "clone_module",
    "copy_graph",
    "copy_module",
    "drop_unused_tensors",
    "free_path",
    "move_tensor",
    "read_attribute",
    "read_tensor",
]


def read_attribute(module: nn.Module, path: str) -> object:
    """What is at a dotted path: a tensor, or a submodule such as the branch of a `torch.cond`."""
    # Not `get_submodule`, which looks every step of the way up twice.
    return reduce(getattr, path.split("."), module)


def read_tensor(module: nn.Module, path: str) -> torch.Tensor:
    """The tensor at a dotted path.

    Raises:
        AttributeError: nothing is there.
        TypeError: what is there is not a tensor.
    """
    value = read_attribute(module, path)
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{path} is not a tensor")
    return value


def add_tensor(module: nn.Module, path: str, tensor: torch.Tensor, *, like: torch.Tensor | None = None) -> None:
    """Put a tensor at a dotted path, in place of what was there, as a parameter if `like` is one, else as a buffer."""
    owner_path, _, leaf = path.rpartition(".")
    owner = module
    for part in owner_path.split(".") if owner_path else ():
        if not isinstance(getattr(owner, part, None), nn.Module):
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    if hasattr(owner, leaf):
        delattr(owner, leaf)
    if isinstance(like, nn.Parameter):
        owner.register_parameter(leaf, nn.Parameter(tensor, requires_grad=like.requires_grad))
    else:
        owner.register_buffer(leaf, tensor)


def copy_graph(module: fx.GraphModule) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A graph with nodes of its own, and the copy of each node."""
    graph = fx.Graph()
    # The codegen is shared: it is never edited, and it says how the user's arguments become placeholders.
    graph.set_codegen(module.graph._codegen)
    renamed: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        renamed[node] = graph.node_copy(node, renamed.__getitem__)
    return graph, renamed


def copy_module(module: fx.GraphModule) -> fx.GraphModule:
    """A graph module with nodes of its own that shares all tensors with `module`."""
    return fx.GraphModule(module, copy_graph(module)[0])


def clone_module(module: fx.GraphModule) -> fx.GraphModule:
    """A graph module that shares nothing with `module`; tied tensors stay tied."""
    twin = copy_module(module)
    cloned: dict[int, torch.Tensor] = {}
    named = [*twin.named_parameters(remove_duplicate=False), *twin.named_buffers(remove_duplicate=False)]
    for path, tensor in named:
        if id(tensor) not in cloned:
            cloned[id(tensor)] = tensor.detach().clone()
        add_tensor(twin, path, cloned[id(tensor)], like=tensor)
    return twin


def move_tensor(module: fx.GraphModule, source: str, path: str) -> None:
    """Give a stored tensor another path, and its readers too."""
    tensor = read_tensor(module, source)
    add_tensor(module, path, tensor, like=tensor)
    for node in module.graph.nodes:
        if node.op == "get_attr" and node.target == source:
            node.target = path
    _delete(module, source)


def drop_unused_tensors(module: fx.GraphModule) -> None:
    """Delete parameters and buffers that no node reads, so that they are neither saved nor moved about."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for path, _ in named:
        if path not in used:
            _delete(module, path)


def free_path(module: nn.Module, path: str) -> str:
    """`path`, or the first of `path_1`, `path_2`, ... that is not taken."""
    owner_path, _, leaf = path.rpartition(".")
    try:
        owner = module.get_submodule(owner_path)
    except AttributeError:
        return path
    count, free = 0, leaf
    while hasattr(owner, free):
        count += 1
        free = f"{leaf}_{count}"
    return f"{owner_path}.{free}" if owner_path else free


def _delete(module: nn.Module, path: str) -> None:
    owner, _, leaf = path.rpartition(".")
    delattr(module.get_submodule(owner), leaf)
