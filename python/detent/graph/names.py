"""Readable, unique names for the values of a captured graph, and the user's source line of each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import torch
from torch import fx

from detent.graph.roles import op_name, role_of
from detent.graph.shapes import value_of

__all__ = ["LAYER", "NAME", "PREPARES", "RANGE", "SOURCE", "assign_names", "describe_place", "layer_path", "user_line"]

NAME: Final = "detent_name"
LAYER: Final = "detent_layer"
SOURCE: Final = "detent_source"
"""Keys of `fx.Node.meta`: they travel with copies of a graph."""

RANGE: Final = "detent_range"
"""Key of `fx.Node.meta`: lowest and highest entry, as the user declared them for raw input."""
PREPARES: Final = "detent_prepares"
"""Key of `fx.Node.meta`: name of the raw input that an operator, not the user's model's own, prepares."""

_TORCH: Final = str(Path(torch.__file__).parent)
_FRAME: Final = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>[^\n]+)\n(?P<code>[^\n]*)')


def assign_names(graph: fx.Graph) -> None:
    """Write name, layer and source line into the meta of every node that has a value of its own.

    A layer of `torch.nn` gives its module path to its operator (`features.0.2`); an operator written as a function call
    is named after the module that calls it (`layer1.0.add`). Second and later ones of the same name get `:1`, `:2`,
    in order of execution: the second call of a reused module `relu` is `relu:1`.
    """
    taken: set[str] = set()
    owners = _owners(graph)
    for node in graph.nodes:
        if node.op not in ("placeholder", "call_function") or not _has_tensor(node):
            continue
        node.meta[LAYER] = layer_path(node)
        node.meta[SOURCE] = user_line(node.meta.get("stack_trace"))
        if node.op == "placeholder":
            base = str(node.target)
        elif op_name(node) == "getitem" and isinstance(node.args[0], fx.Node):
            base = f"{node.args[0].meta.get(NAME, node.args[0].name)}[{node.args[1]}]"
        elif node in owners:
            base = node.meta[LAYER]
        else:
            role = role_of(node)
            word = op_name(node) if role is None or role.kind == "preserving" else role.name
            base = f"{node.meta[LAYER]}.{word}" if node.meta[LAYER] else word
        node.meta[NAME] = _unique(base, taken)


def layer_path(node: fx.Node) -> str:
    """Path of the innermost module whose forward ran the node, `""` for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    path = str(list(stack.values())[-1][0]) if stack else ""
    # Second and later calls of one module are marked path@1, path@2 by some versions of torch.
    path = re.sub(r"@\d+", "", path)
    return "" if path == "_empty_nn_module_stack_from_metadata_hook" else path


def describe_place(node: fx.Node, name: str | None = None) -> str:
    """Name of a value with the user's source line, for errors."""
    name = name or str(node.meta.get(NAME, node.name))
    lines = [node.meta.get(SOURCE), *(user.meta.get(SOURCE) for user in node.users)]
    line = next((line for line in lines if line), None)
    return name if line is None else f"{name} ({line})"


def user_line(stack_trace: str | None) -> str | None:
    """The innermost line of a recorded stack that is not torch's own: `net.py:11, in forward: x = self.conv(x)`."""
    frames = [m for m in _FRAME.finditer(stack_trace or "") if not m["file"].startswith(_TORCH)]
    if not frames:
        return None
    last = frames[-1]
    return f"{last['file']}:{last['line']}, in {last['function']}: {last['code'].strip()}"


def _owners(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that stand for their whole layer and so bear its bare path."""
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        if node.op == "call_function" and stack and _has_tensor(node):
            key, (path, kind) = list(stack.items())[-1]
            kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
            if path and kind.startswith("torch.nn."):
                calls.setdefault(str(key), []).append(node)
    owners: set[fx.Node] = set()
    for nodes in calls.values():
        kernels = [n for n in nodes if any(a.op == "get_attr" for a in n.all_input_nodes)]
        if len(nodes) == 1:
            owners.add(nodes[0])
        elif len(kernels) == 1:
            owners.add(kernels[0])
    return owners


def _has_tensor(node: fx.Node) -> bool:
    value = value_of(node)
    members = value if isinstance(value, tuple | list) else (value,)
    return any(isinstance(member, torch.Tensor) for member in members)


def _unique(base: str, taken: set[str]) -> str:
    name, count = base, 0
    while name in taken:
        count += 1
        name = f"{base}:{count}"
    taken.add(name)
    return name
