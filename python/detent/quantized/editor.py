"""Edits of an fx graph: keep a tensor, insert an operator that reads it."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy.typing as npt
import torch
from torch import fx, nn

from detent.graph.tensors import copy_graph, read_attribute

__all__ = ["GraphEditor", "Stored"]


class Stored(NamedTuple):
    """A tensor of the edited module, by its path."""

    path: str


class GraphEditor:
    """A copy of a module's graph under edit, and the tensors it will read. `module` is not changed.

    Attributes:
        graph: the copy.
        copies: node of the original graph to its copy.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.graph, self.copies = copy_graph(module)
        self._module = module
        self._tensors: dict[str, torch.Tensor] = {}
        # Paths and the folders above them: a buffer cannot be called what a folder is called.
        self._taken = {name for name, _ in module.named_modules() if name}
        self._taken.update(name for name, _ in module.named_parameters(remove_duplicate=False))
        self._taken.update(name for name, _ in module.named_buffers(remove_duplicate=False))
        self._leaves = {name for name in self._taken if isinstance(read_attribute(module, name), torch.Tensor)}

    def store(self, path: str, array: npt.NDArray[Any], *, trainable: bool = False) -> Stored:
        """Keep a copy of `array`, a parameter if `trainable`, near a dotted `path`; an occupied one gets a number."""
        # Value names hold colons and brackets, which attribute names cannot.
        *folders, leaf = [re.sub(r"\W", "_", part) for part in path.split(".")]
        owner = ""
        for folder in folders:
            owner = f"{owner}.{folder}".lstrip(".")
            while owner in self._leaves:
                owner += "_"
            self._taken.add(owner)
        name, count = f"{owner}.{leaf}".lstrip("."), 0
        free = name
        while free in self._taken:
            count += 1
            free = f"{name}_{count}"
        self._taken.add(free)
        self._leaves.add(free)
        tensor = torch.from_numpy(array.copy())
        self._tensors[free] = nn.Parameter(tensor) if trainable else tensor
        return Stored(free)

    def call_after(self, anchor: fx.Node, operator: Any, *args: Any) -> fx.Node:
        """Insert `operator(*args)` after `anchor`; a `Stored` argument becomes a read of that tensor."""
        resolved = []
        for argument in args:
            if isinstance(argument, Stored):
                argument = anchor = self.read_after(anchor, argument)
            resolved.append(argument)
        with self.graph.inserting_after(anchor):
            return self.graph.call_function(operator, tuple(resolved))

    def read_after(self, anchor: fx.Node, stored: Stored) -> fx.Node:
        """Insert a read of a kept tensor after `anchor`."""
        with self.graph.inserting_after(anchor):
            return self.graph.create_node("get_attr", stored.path)

    def finish(self) -> fx.GraphModule:
        """The edited graph as a module that holds only the tensors it reads, all of them its own."""
        self.graph.eliminate_dead_code()
        self.graph.lint()
        paths = {str(node.target) for node in self.graph.nodes if node.op == "get_attr"}
        # Moving, casting or training the result must not reach the captured graph, which shares the user's parameters.
        clones: dict[int, Any] = {}
        root = {path: self._tensors[path] if path in self._tensors else self._clone(path, clones) for path in paths}
        return fx.GraphModule(root, self.graph)

    def _clone(self, path: str, clones: dict[int, Any]) -> Any:
        """What is at `path`, copied if it is a tensor; tied tensors stay tied."""
        original = read_attribute(self._module, path)
        if not isinstance(original, torch.Tensor):
            return original
        if id(original) not in clones:
            copied = original.detach().clone()
            trained = isinstance(original, nn.Parameter)
            clones[id(original)] = nn.Parameter(copied, requires_grad=original.requires_grad) if trained else copied
        return clones[id(original)]
