"""`Graph`: a captured network that runs, with a name, a role and a batch layout for every value."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from detent._registry import unknown_name
from detent.errors import CaptureError
from detent.graph.axes import channel_axes
from detent.graph.layouts import BATCH, BatchLayout
from detent.graph.names import LAYER, NAME, SOURCE
from detent.graph.roles import OpRole, argument, first_argument, op_name, role_of
from detent.graph.shapes import concrete_shape, is_float, is_tensor, value_of
from detent.graph.signature import BatchSpec, InputSpec, with_network_types
from detent.graph.tensors import clone_module, copy_module, drop_unused_tensors, read_attribute, read_tensor

__all__ = ["Graph", "GraphNode"]


@dataclass(frozen=True, eq=False)
class GraphNode:
    """One value of the network and the operator that makes it.

    Args:
        node: the fx node.
        name: unique, readable key of the value in statistics and plans.
        layer: path of the module that ran the operator.
        source: the user's source line, where known.
        op: the operator's role, None if it has none and stays in float.
        batch: where the samples lie, None if the value does not depend on the batch.
        channel_axis: axis of channels, None if there is none.
        samples: samples in the captured example.
    """

    node: fx.Node
    name: str
    layer: str
    source: str | None
    op: OpRole | None
    batch: BatchLayout | None
    channel_axis: int | None
    samples: int = field(repr=False)

    @property
    def kind(self) -> str | None:
        """Family of the operator, None without a role."""
        return None if self.op is None else self.op.kind

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape with the example's batch; None for a tuple of tensors."""
        return concrete_shape(self.node) if is_tensor(self.node) else None

    @property
    def dtype(self) -> torch.dtype | None:
        """Element type; None for a tuple of tensors."""
        return value_of(self.node).dtype if is_tensor(self.node) else None

    @property
    def is_float(self) -> bool:
        """Whether the value is one floating-point tensor, the only kind that can be quantized."""
        dtype = self.dtype
        return dtype is not None and dtype.is_floating_point

    @property
    def preserving(self) -> bool:
        """Whether the value lives on its operand's grid."""
        return self.op is not None and self.op.preserving

    @cached_property
    def data(self) -> tuple[fx.Node, ...]:
        """The activation operands in order, as fx nodes; stored tensors are included, see `constants`."""
        if self.op is None:
            return tuple(n for n in self.node.all_input_nodes if n.op != "get_attr" and is_tensor(n))
        if self.node.op != "call_function":
            return ()
        values = [argument(self.node, name) for name in self.op.data] or [first_argument(self.node)]
        flat = [m for v in values for m in (v if isinstance(v, list | tuple) else (v,))]
        if self.op.weight is not None and self.weight is None:
            # A kernel computed by the network itself is an activation like any other.
            flat.append(argument(self.node, self.op.weight))
        return tuple(m for m in flat if isinstance(m, fx.Node))

    @property
    def constants(self) -> tuple[fx.Node, ...]:
        """Those of `data` that are stored tensors, e.g. a position embedding that is added."""
        return tuple(n for n in self.data if n.op == "get_attr")

    @cached_property
    def weight(self) -> fx.Node | None:
        """The `get_attr` node of the kernel; None without a stored kernel."""
        return self._stored("weight")

    @cached_property
    def bias(self) -> fx.Node | None:
        """The `get_attr` node of the bias; None without one."""
        return self._stored("bias")

    @property
    def weight_name(self) -> str | None:
        """Path of the kernel in the module; shared by layers with tied weights."""
        return None if self.weight is None else str(self.weight.target)

    @property
    def weight_axes(self) -> tuple[int, int]:
        """Non-negative (output, input) axes of the kernel.

        Raises:
            ValueError: the node has no stored kernel.
        """
        if self.op is None or self.weight is None:
            raise ValueError(f"{self.name} has no stored kernel")
        rank = len(concrete_shape(self.weight))
        return self.op.weight_out_axis % rank, self.op.weight_in_axis % rank

    @property
    def groups(self) -> int:
        """Groups of a convolution, 1 for everything else."""
        return int(argument(self.node, "groups")) if self.kind in ("conv", "conv_transposed") else 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates per sample."""
        return 0 if self.op is None or self.op.macs is None else self.op.macs(self.node) // self.samples

    def _stored(self, role: str) -> fx.Node | None:
        name = None if self.op is None else getattr(self.op, role)
        value = None if name is None else argument(self.node, name)
        return value if isinstance(value, fx.Node) and value.op == "get_attr" else None


class Graph:
    """A captured network: an executable ATen-level `fx.GraphModule` and what detent knows about it.

    Values are addressed by name everywhere. A graph is not edited in place by other rooms: they take `copy()`, which
    shares tensors, replace tensors instead of writing into them, and call `refresh()`.

    Args:
        module: functional ATen graph whose parameters and buffers are `get_attr` nodes.
        inputs: the tensors it takes, in placeholder order.
        batch: number of samples per call.
        notes: non-fatal facts for the user.
    """

    def __init__(
        self, module: fx.GraphModule, *, inputs: tuple[InputSpec, ...], batch: BatchSpec, notes: list[str] | None = None
    ) -> None:
        self.module = module
        self.inputs = inputs
        self.batch = batch
        self.notes = list(notes or [])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network with the inputs the user's model takes, raw ones where it preprocesses them."""
        args, kwargs = with_network_types(self.inputs, (args, kwargs))
        return self.module(*args, **kwargs)

    def nodes(self) -> tuple[GraphNode, ...]:
        """Every value of the network in order of execution: inputs first, then one per operator."""
        return self._nodes

    def find(self, name: str) -> GraphNode:
        """The node of a value's name.

        Raises:
            ConfigError: no value has that name.
        """
        try:
            return self._by_name[name]
        except KeyError:
            raise unknown_name("layer", name, self._by_name) from None

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def name_of(self, node: fx.Node) -> str:
        """Name of an fx node's value; for a `get_attr` node, which has no value of its own, its fx name."""
        return str(node.meta.get(NAME, node.name))

    def tensor(self, node: fx.Node) -> torch.Tensor:
        """The tensor a `get_attr` node reads."""
        return read_tensor(self.module, str(node.target))

    def outputs(self) -> tuple[fx.Node, ...]:
        """The nodes whose values the network returns, flattened."""
        (output,) = (node for node in self.module.graph.nodes if node.op == "output")
        leaves = pytree.tree_leaves(output.args[0])
        return tuple(leaf for leaf in leaves if isinstance(leaf, fx.Node))

    def float_outputs(self) -> tuple[GraphNode, ...]:
        """Those of the values returned that are floating-point and depend on the inputs, each once."""
        reached: set[fx.Node] = set()
        for node in self.module.graph.nodes:
            if node.op == "placeholder" or any(source in reached for source in node.all_input_nodes):
                reached.add(node)
        found = [self.find(self.name_of(node)) for node in dict.fromkeys(self.outputs()) if node in reached]
        return tuple(item for item in found if item.is_float)

    def flatten(self, batch: Any) -> list[torch.Tensor]:
        """A batch in any form the model takes, as the list of its tensors in placeholder order.

        Raises:
            CaptureError: the number or names of the inputs do not match.
        """
        if isinstance(batch, Mapping):
            leaves = self._by_key(batch)
        else:
            leaves = [leaf for leaf in pytree.tree_leaves(batch) if leaf is not None]
        if len(leaves) != len(self.inputs):
            names = ", ".join(spec.name for spec in self.inputs)
            raise CaptureError(
                f"the model takes {len(self.inputs)} input tensors ({names}), the batch has {len(leaves)}",
                remedy="give a tensor, a tuple in the order of the model's arguments, or a dict by their names",
            )
        return leaves

    def _by_key(self, batch: Mapping[str, Any]) -> list[torch.Tensor]:
        if any(isinstance(value, Mapping | tuple | list) for value in batch.values()):
            return pytree.tree_leaves(dict(batch))
        leaves = []
        for spec in self.inputs:
            found = [key for key in (spec.name, spec.key) if key is not None and key in batch]
            if not found:
                raise CaptureError(
                    f"the batch has no entry for the model's input {spec.name!r}",
                    where=f"batch with keys {sorted(map(str, batch))}",
                    remedy=f"name one of its entries {spec.key or spec.name!r}",
                )
            leaves.append(batch[found[0]])
        return leaves

    def copy(self) -> Graph:
        """A graph with its own nodes and notes that shares all tensors with this one."""
        return Graph(copy_module(self.module), inputs=self.inputs, batch=self.batch, notes=self.notes)

    def with_notes(self, notes: list[str]) -> Graph:
        """This very network with more notes: for a rewrite that found nothing to do."""
        if not notes:
            return self
        noted = Graph(self.module, inputs=self.inputs, batch=self.batch, notes=[*self.notes, *notes])
        noted.__dict__.update({name: self.__dict__[name] for name in ("_nodes", "_by_name") if name in self.__dict__})
        return noted

    def __deepcopy__(self, memo: dict[int, Any]) -> Graph:
        return Graph(clone_module(self.module), inputs=self.inputs, batch=self.batch, notes=self.notes)

    def refresh(self) -> None:
        """After an edit of `module.graph`: remove what nothing uses, recompile, forget what was derived."""
        self.module.graph.eliminate_dead_code()
        drop_unused_tensors(self.module)
        self.module.graph.lint()
        self.module.recompile()
        for name in ("_nodes", "_by_name"):
            self.__dict__.pop(name, None)

    def fingerprint(self) -> str:
        """SHA-256 over operators, arguments, value names, shapes and the bytes of all parameters, in hexadecimal.

        Statistics and plans carry it, so that they are not applied to another network by mistake.
        """
        digest = hashlib.sha256()
        index = {node: i for i, node in enumerate(self.module.graph.nodes)}
        for node in self.module.graph.nodes:
            args = fx.node.map_arg((node.args, node.kwargs), lambda n: f"%{index[n]}")
            value = value_of(node)
            shape = tuple(value.shape[1:]) if isinstance(value, torch.Tensor) else None
            digest.update(repr((node.op, str(node.target), args, node.meta.get(NAME), str(shape))).encode())
            if node.op != "get_attr":
                continue
            stored = read_attribute(self.module, str(node.target))
            if isinstance(stored, fx.GraphModule):  # a branch of torch.cond; its tensors are operands of the cond
                digest.update(stored.code.encode())
            else:
                tensor = self.tensor(node).detach().cpu().contiguous()
                digest.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
                digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole network per sample."""
        return sum(node.macs for node in self._nodes)

    @cached_property
    def _nodes(self) -> tuple[GraphNode, ...]:
        graph = self.module.graph
        layouts = {node: node.meta[BATCH] for node in graph.nodes if BATCH in node.meta}
        channels = channel_axes(graph, {node: layout.axis for node, layout in layouts.items()})
        return tuple(
            GraphNode(
                node=node,
                name=node.meta[NAME],
                layer=node.meta.get(LAYER, ""),
                source=node.meta.get(SOURCE),
                op=role_of(node),
                batch=layouts.get(node),
                channel_axis=channels.get(node),
                samples=self.batch.size,
            )
            for node in graph.nodes
            if NAME in node.meta and node.op in ("placeholder", "call_function")
        )

    @cached_property
    def _by_name(self) -> dict[str, GraphNode]:
        return {node.name: node for node in self._nodes}

    def __str__(self) -> str:
        size = "dynamic" if self.batch.dynamic else str(self.batch.size)
        rows = [("name", "op", "shape", "kernel", "MACs")]
        for node in self._nodes:
            op = node.op.name if node.op else op_name(node.node) + " (float)" * is_float(node.node)
            shape = "" if node.shape is None else "x".join(map(str, node.shape))
            kernel = "" if node.weight is None else "x".join(map(str, concrete_shape(node.weight)))
            rows.append((node.name, op, shape, kernel, f"{node.macs:,}" if node.macs else ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        head = f"Graph: {len(self._nodes)} values, batch {size}, {self.macs:,} MACs per sample"
        return "\n".join([head, *lines, *(f"note: {note}" for note in self.notes)])

    def __repr__(self) -> str:
        return (
            f"Graph({len(self._nodes)} values, inputs {[spec.name for spec in self.inputs]}, notes {len(self.notes)})"
        )
