"""An ONNX graph that is being rewritten: names, initializers, nodes in order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

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
        self._taken = set(self.inputs) | set(self.initializers) | {name for node in self.nodes for name in node.output}
        self._shared: dict[tuple[int, tuple[int, ...], bytes], str] = {}

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
        for node in self.nodes:
            for place in (node.input, node.output):
                for index, name in enumerate(place):
                    if name in names:
                        place[index] = names[name]
        for values in (self.proto.graph.input, self.proto.graph.output):
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

    def array(self, name: str) -> npt.NDArray[Any] | None:
        """The values of an initializer; None if `name` is computed."""
        from onnx import numpy_helper

        tensor = self.initializers.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def constant(self, stem: str, array: npt.NDArray[Any], *, kind: int | None = None, share: bool = False) -> str:
        """Add an initializer and return its name.

        Args:
            stem: wanted name.
            array: the values; for the 4-bit types, codes in int8 or uint8.
            kind: `TensorProto` data type; None takes that of `array`.
            share: return an earlier shared initializer if it holds the same bytes.
        """
        from onnx import helper

        if kind is None:
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        packed = _pack_nibbles(array) if kind in _nibble_kinds() else np.ascontiguousarray(array)
        data = packed.astype(packed.dtype.newbyteorder("<"), copy=False).tobytes()
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
        if like is not None and like in self._types:
            described = type(self._types[like])()
            described.CopyFrom(self._types[like])
            described.tensor_type.elem_type = kind
            self._types.setdefault(output, described)
        return helper.make_node(operator, list(inputs), [output], **given)

    def drop_unused(self) -> None:
        """Forget initializers no node reads, and free their names."""
        used = {name for node in self.nodes for name in node.input} | set(self.outputs)
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


def _nibble_kinds() -> tuple[int, int]:
    from onnx import TensorProto

    return TensorProto.INT4, TensorProto.UINT4


def _pack_nibbles(codes: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    nibbles = np.zeros(codes.size + codes.size % 2, np.uint8)
    nibbles[: codes.size] = codes.reshape(-1).astype(np.uint8) & np.uint8(0x0F)
    low, high = nibbles[0::2], nibbles[1::2]
    packed: npt.NDArray[np.uint8] = low | np.left_shift(high, np.uint8(4))
    return packed
