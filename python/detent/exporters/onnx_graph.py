"""An ONNX graph that is being rewritten: names, initializers, nodes in order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from detent.kernels.quantize import pack_int4

__all__ = ["OnnxGraph"]


class OnnxGraph:
    """A mutable view of `proto.graph` that keeps names unique and shares equal constants.

    Args:
        proto: an `onnx.ModelProto`; changed in place by `rename` and `write_back`.
    """

    def __init__(self, proto: Any) -> None:
        self.proto = proto
        self.nodes: list[Any] = list(proto.graph.node)
        self.initializers: dict[str, Any] = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.inputs: list[str] = [value.name for value in proto.graph.input]
        self.outputs: list[str] = [value.name for value in proto.graph.output]
        self._types: dict[str, Any] = {
            value.name: value.type
            for values in (proto.graph.input, proto.graph.value_info, proto.graph.output)
            for value in values
        }
        self._taken = {*self.inputs, *self.initializers, *(name for node in self.all_nodes() for name in node.output)}
        self._shared: dict[tuple[int, tuple[int, ...], bytes], str] = {}

    def all_nodes(self) -> Iterator[Any]:
        """Every node, with those inside the bodies of `If`, `Loop` and the like, which read values from outside."""
        for node in self.nodes:
            yield from _with_bodies(node)

    def fresh(self, stem: str) -> str:
        """A name nothing has yet: `stem`, or `stem` with a number; it is taken from then on."""
        name, number = stem, 0
        while name in self._taken:
            number += 1
            name = f"{stem}_{number}"
        self._taken.add(name)
        return name

    def rename(self, names: Mapping[str, str]) -> None:
        """Rename values everywhere at once; `names` maps old names to new ones, and the new ones must be unique."""
        for node in self.all_nodes():
            for place in (node.input, node.output):
                for index, name in enumerate(place):
                    if name in names:
                        place[index] = names[name]
        bodies = [body for node in self.all_nodes() for body in _bodies(node)]
        for values in (self.proto.graph.input, *(graph.output for graph in (self.proto.graph, *bodies))):
            for value in values:
                value.name = names.get(value.name, value.name)
        for tensor in self.initializers.values():
            tensor.name = names.get(tensor.name, tensor.name)
        self.initializers = {tensor.name: tensor for tensor in self.initializers.values()}
        self.inputs = [names.get(name, name) for name in self.inputs]
        self.outputs = [names.get(name, name) for name in self.outputs]
        self._types = {names.get(name, name): kind for name, kind in self._types.items()}
        self._taken = {names.get(name, name) for name in self._taken}
        self._shared = {content: names.get(name, name) for content, name in self._shared.items()}

    def rank(self, name: str) -> int | None:
        """Number of dimensions of a value, None if it is not known."""
        kind = self._types.get(name)
        return None if kind is None else len(kind.tensor_type.shape.dim)

    def shape(self, name: str) -> list[int | None] | None:
        """Sizes of a value, None for one that is not fixed; None if nothing is known of it."""
        kind = self._types.get(name)
        if kind is None:
            return None
        return [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.tensor_type.shape.dim]

    def dtype(self, name: str) -> str:
        """Element type of an initializer or of a value of known type, e.g. `"uint8"`."""
        from onnx import TensorProto

        tensor = self.initializers.get(name)
        kind = self._types[name].tensor_type.elem_type if tensor is None else tensor.data_type
        return str(TensorProto.DataType.Name(kind)).lower()

    @staticmethod
    def kind_of(dtype: str) -> int:
        """The `TensorProto` data type of that name."""
        from onnx import TensorProto

        return int(getattr(TensorProto, dtype.upper()))

    def array(self, name: str) -> npt.NDArray[Any] | None:
        """The values of an initializer; None if `name` is computed."""
        from onnx import numpy_helper

        tensor = self.initializers.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def constant(self, stem: str, array: npt.NDArray[Any], *, kind: int | None = None, share: bool = False) -> str:
        """Add an initializer and return its name.

        Args:
            stem: wanted name.
            array: the values; for the 4-bit types, codes in bytes.
            kind: `TensorProto` data type; None takes that of `array`.
            share: return an earlier shared initializer if it holds the same bytes.
        """
        from onnx import TensorProto, helper

        if kind is None:
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        dense = np.ascontiguousarray(array)
        if kind in (TensorProto.INT4, TensorProto.UINT4):
            dense = pack_int4(dense)
        data = dense.astype(dense.dtype.newbyteorder("<"), copy=False).tobytes()
        key = (kind, array.shape, hashlib.sha256(data).digest())
        if share and key in self._shared:
            return self._shared[key]
        name = self.fresh(stem)
        self.initializers[name] = helper.make_tensor(name, kind, array.shape, data, raw=True)
        if share:
            self._shared[key] = name
        return name

    def node(
        self,
        operator: str,
        inputs: Iterable[str],
        output: str,
        *,
        kind: int,
        like: str | None = None,
        **attributes: Any,
    ) -> Any:
        """Make a node with one output of `TensorProto` type `kind`, shaped as value `like`; place it yourself."""
        from onnx import helper

        given = {name: value for name, value in attributes.items() if value is not None}
        if like is not None:
            self.describe(output, like=like, kind=kind)
        return helper.make_node(operator, list(inputs), [output], **given)

    def describe(self, name: str, *, like: str, kind: int) -> None:
        """Say of a value that nothing is known of that it has the shape of `like`, if that is known, and a type."""
        if like in self._types:
            described = type(self._types[like])()
            described.CopyFrom(self._types[like])
            described.tensor_type.elem_type = kind
            self._types.setdefault(name, described)

    def retype(self, name: str, dtype: str) -> None:
        """Give an input or output of the graph another element type, a NumPy name."""
        from onnx import helper

        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        for value in (*self.proto.graph.input, *self.proto.graph.output):
            if value.name == name:
                value.type.tensor_type.elem_type = kind
                self._types[name] = value.type

    def replace_output(self, old: str, new: str) -> None:
        """Let another value of the same shape be an output in place of `old`."""
        self.outputs = [new if name == old else name for name in self.outputs]
        if old in self._types:
            # The output keeps the object, which may get another element type; what was the output keeps its own.
            kept = type(self._types[old])()
            kept.CopyFrom(self._types[old])
            self._types[old] = kept
        for value in self.proto.graph.output:
            value.name = new if value.name == old else value.name
        self._taken.add(new)

    def drop_unread_nodes(self) -> None:
        """Remove nodes whose values neither another node nor an output reads."""
        read, kept = set(self.outputs), []
        for node in reversed(self.nodes):
            if any(name in read for name in node.output):
                kept.append(node)
                read.update(name for inner in _with_bodies(node) for name in inner.input)
        self.nodes = kept[::-1]

    def drop_unused(self) -> None:
        """Forget initializers no node reads, and free their names."""
        used = {*self.outputs, *(name for node in self.all_nodes() for name in node.input)}
        self._taken -= self.initializers.keys() - used
        self.initializers = {name: tensor for name, tensor in self.initializers.items() if name in used}

    def write_back(self) -> None:
        """Put nodes and the initializers in use into the model, with the type of every value that is known."""
        from onnx import helper

        graph = self.proto.graph
        self.drop_unused()
        del graph.node[:]
        graph.node.extend(self.nodes)
        del graph.initializer[:]
        graph.initializer.extend(self.initializers.values())
        del graph.value_info[:]
        ends = {*self.inputs, *self.outputs}
        for node in self.nodes:
            for name in node.output:
                if name and name not in ends and name in self._types:
                    graph.value_info.append(helper.make_value_info(name, self._types[name]))


def _with_bodies(node: Any) -> Iterator[Any]:
    """A node, and every node in its bodies and theirs."""
    pending = [node]
    while pending:
        inner = pending.pop()
        yield inner
        pending.extend(below for body in _bodies(inner) for below in body.node)


def _bodies(node: Any) -> list[Any]:
    from onnx import AttributeProto

    return [attribute.g for attribute in node.attribute if attribute.type == AttributeProto.GRAPH]
