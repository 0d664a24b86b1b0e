"""Graphs as plain data, and back: what is read cannot do more than call ATen's and detent's functional operators.

A node is described by its operator's name, its arguments and what detent wrote into its meta. Shapes and types are not
described: they are found again by running the graph on tensors without data.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

import torch
from torch import fx
from torch._ops import OpOverload
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo

import detent.graph.operators  # noqa: F401  (registers torch.ops.detent)
from detent.errors import FormatError, UnsupportedOpError
from detent.graph.layouts import BATCH, BatchLayout
from detent.graph.names import LAYER, NAME, describe_place
from detent.graph.structures import described_structure, restored_structure

__all__ = ["described_graph", "restored_graph"]

_NAMESPACES: Final = ("aten", "detent")
_NUMBERS: Final = ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "eq", "ne", "lt", "le", "gt", "ge")
_FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    **{f"operator.{name}": getattr(operator, name) for name in (*_NUMBERS, "getitem")},
    **{f"torch.{name}": getattr(torch, name) for name in ("sym_int", "sym_float", "sym_max", "sym_min", "sym_not")},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc")},
}
"""What a graph calls besides operators: arithmetic on sizes, and items of tuples."""

_WORDS: Final[dict[str, type]] = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}
_PATH: Final = re.compile(r"[A-Za-z_]\w*(\.\w+)*", re.ASCII)
_NAME: Final = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def described_graph(module: fx.GraphModule) -> dict[str, Any]:
    """The graph of a module as plain data; the tensors it reads are named only.

    Raises:
        UnsupportedOpError: it calls what a file cannot name: an operator of another package, one that writes into its
            arguments, a branch of `torch.cond`; or it takes or returns objects of other types than tuples, lists and
            dicts. The error names the layer.
    """
    codegen = module.graph._codegen
    signature = None
    if isinstance(codegen, _PyTreeCodeGen):
        info = codegen.pytree_info
        signature = {
            "arguments": list(info.orig_args),
            "takes": described_structure(info.in_spec, "takes"),
            "returns": None if info.out_spec is None else described_structure(info.out_spec, "returns"),
        }
    return {"signature": signature, "nodes": [_described_node(module, node) for node in module.graph.nodes]}


def restored_graph(data: Any, tensors: Mapping[str, torch.Tensor]) -> fx.GraphModule:
    """The module that `described_graph` described.

    Args:
        data: the description.
        tensors: by path, all that the graph reads.

    Raises:
        FormatError: the description is not one, names something else than a functional operator of ATen or detent, or
            a tensor is missing.
    """
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    try:
        if data["signature"] is not None:
            graph.set_codegen(_codegen(data["signature"]))
        for entry in data["nodes"]:
            nodes[entry["name"]] = _restored_node(graph, entry, nodes, tensors)
        graph.lint()
        return fx.GraphModule(dict(tensors), graph)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise FormatError(f"the network is not described completely ({type(error).__name__}: {error})") from None


def _described_node(module: fx.GraphModule, node: fx.Node) -> dict[str, Any]:
    try:
        entry: dict[str, Any] = {"op": node.op, "name": node.name, "target": _described_target(module, node)}
        if node.args:
            entry["args"] = [_described_value(value) for value in node.args]
        if node.kwargs:
            entry["kwargs"] = {name: _described_value(value) for name, value in node.kwargs.items()}
    except UnsupportedOpError as error:
        raise UnsupportedOpError(error.what, where=describe_place(node), remedy=error.remedy) from None
    for key in (NAME, LAYER):
        if key in node.meta:
            entry[key] = node.meta[key]
    if BATCH in node.meta:
        entry[BATCH] = asdict(node.meta[BATCH])
    return entry


def _described_target(module: fx.GraphModule, node: fx.Node) -> str:
    if node.op == "call_function":
        named = next((name for name, function in _FUNCTIONS.items() if function is node.target), str(node.target))
        if _function(named) is not node.target:
            raise UnsupportedOpError(f"{named} cannot be written: only functional operators of ATen are")
        return named
    if node.op == "get_attr" and not isinstance(_attribute(module, str(node.target)), torch.Tensor):
        raise UnsupportedOpError("a branch of the network cannot be written", remedy="write it without torch.cond")
    return str(node.target)


def _attribute(module: fx.GraphModule, path: str) -> Any:
    return operator.attrgetter(path)(module)


def _function(named: str) -> Callable[..., Any] | None:
    """What a node calls, by name; None if it is nothing that a file may call."""
    if named in _FUNCTIONS:
        return _FUNCTIONS[named]
    namespace, _, rest = named.partition(".")
    name, _, overload = rest.partition(".")
    packet = getattr(getattr(torch.ops, namespace), name, None) if namespace in _NAMESPACES else None
    found = None if packet is None else getattr(packet, overload, None)
    if not isinstance(found, OpOverload):
        return None
    schema = found._schema
    files = any("file" in argument.name for argument in schema.arguments)
    return None if schema.is_mutable or files or not schema.returns else found


def _described_value(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, tuple):
        return {"tuple": [_described_value(one) for one in value]}
    if isinstance(value, list):
        return [_described_value(one) for one in value]
    if isinstance(value, slice):
        return {"slice": [_described_value(one) for one in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for word, kind in _WORDS.items():
        if isinstance(value, kind):
            return {word: str(value).removeprefix("torch.")}
    raise UnsupportedOpError(f"an argument of type {type(value).__name__} cannot be written")


def _restored_value(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_restored_value(one, nodes) for one in value]
    if not isinstance(value, dict):
        return value
    ((word, content),) = value.items()
    if word == "node":
        return nodes[content]
    if word == "float":
        return float(content)
    if word == "tuple":
        return tuple(_restored_value(one, nodes) for one in content)
    if word == "slice":
        return slice(*(_restored_value(one, nodes) for one in content))
    if word == "device":
        return torch.device(content)
    found = getattr(torch, content)
    if not isinstance(found, _WORDS[word]):
        raise ValueError(f"torch.{content} is no {word}")
    return found


def _restored_node(
    graph: fx.Graph, entry: Mapping[str, Any], nodes: Mapping[str, fx.Node], tensors: Mapping[str, torch.Tensor]
) -> fx.Node:
    # Names become source code when the module is compiled, so each is checked before it gets there.
    op, name, target = entry["op"], _checked(_NAME, entry["name"]), entry["target"]
    if op == "call_function":
        target = _function(target)
        if target is None:
            raise ValueError(f"torch {torch.__version__} has no functional operator {entry['target']!r}")
    elif op == "get_attr":
        if _checked(_PATH, target) not in tensors:
            raise ValueError(f"the tensor {target!r} is missing")
    elif op == "placeholder":
        _checked(_NAME, target)
    elif op != "output":
        raise ValueError(f"a node cannot be a {op!r}")
    kwargs = {_checked(_NAME, key): _restored_value(value, nodes) for key, value in entry.get("kwargs", {}).items()}
    args = tuple(_restored_value(value, nodes) for value in entry.get("args", ()))
    node = graph.create_node(op, target, args, kwargs, name=name)
    node.meta.update({key: str(entry[key]) for key in (NAME, LAYER) if key in entry})
    if BATCH in entry:
        node.meta[BATCH] = BatchLayout(**entry[BATCH])
    return node


def _checked(pattern: re.Pattern[str], name: Any) -> str:
    if not isinstance(name, str) or not pattern.fullmatch(name):
        raise ValueError(f"{name!r} is no name")
    return name


def _codegen(signature: Mapping[str, Any]) -> _PyTreeCodeGen:
    takes, returns = restored_structure(signature["takes"]), signature["returns"]
    arguments = [_checked(_NAME, name) for name in signature["arguments"]]
    spec = None if returns is None else restored_structure(returns)
    return _PyTreeCodeGen(_PyTreeInfo(arguments, takes, spec))
