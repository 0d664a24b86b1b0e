"""Edits of an fx graph: store a tensor in the module, insert an operator that reads it."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy.typing as npt
import torch
from torch import fx, nn

__all__ = ["GraphEditor", "Stored"]


class Stored(NamedTuple):
    """A tensor of the module, by its path."""

    path: str


class GraphEditor:
    """Adds buffers and operators to one graph module."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module

    def store(self, path: str, array: npt.NDArray[Any]) -> Stored:
        """Keep a copy of `array` as a buffer at a dotted path near `path`; an occupied one gets a number."""
        owner: nn.Module = self.module
        # Value names hold colons and brackets, which attribute names cannot.
        *folders, leaf = [re.sub(r"\W", "_", part) for part in path.split(".")]
        for folder in folders:
            child = getattr(owner, folder, None)
            if not isinstance(child, nn.Module):
                # A parameter may already have the name the folder wants.
                folder = folder if child is None else f"{folder}_"
                if not hasattr(owner, folder):
                    owner.add_module(folder, nn.Module())
                child = getattr(owner, folder)
            owner = child
        name, count = leaf, 0
        while hasattr(owner, name):
            count += 1
            name = f"{leaf}_{count}"
        owner.register_buffer(name, torch.from_numpy(array.copy()))
        path_of = {module: prefix for prefix, module in self.module.named_modules()}
        return Stored(f"{path_of[owner]}.{name}".lstrip("."))

    def call_after(self, anchor: fx.Node, operator: Any, *args: Any) -> fx.Node:
        """Insert `operator(*args)` after `anchor`; a `Stored` argument becomes a read of that tensor."""
        graph, resolved = self.module.graph, []
        for argument in args:
            if isinstance(argument, Stored):
                with graph.inserting_after(anchor):
                    argument = anchor = graph.get_attr(argument.path)
            resolved.append(argument)
        with graph.inserting_after(anchor):
            return graph.call_function(operator, tuple(resolved))
