"""Makes a network take raw input: what was done to it before becomes part of the first layers, or of the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from detent.config import Preprocessing, assign_records, resolve_preprocessing
from detent.errors import ConfigError
from detent.graph.graph import Graph
from detent.graph.layouts import BATCH
from detent.graph.names import PREPARES, RANGE
from detent.graph.shapes import is_tensor
from detent.graph.signature import InputSpec
from detent.transforms.affine import Affine
from detent.transforms.edits import finish
from detent.transforms.first_layers import fold_into_reader
from detent.transforms.insertion import Inserter

__all__ = ["attach_preprocessing"]


def attach_preprocessing(
    graph: Graph, preprocessing: Preprocessing | Mapping[str, Preprocessing | Mapping[str, Any]]
) -> Graph:
    """A new graph that takes raw input, with the function the old one has of the prepared input.

    `x * scale` and `(x - mean) / std` are one gain s and shift t per channel. A convolution or linear layer that reads
    the input takes them in: `W[o, i] s[i]` and `b[o] + sum_i W[o, i] t[i]`, in float64 and rounded once. Where it pads,
    the zeros it added to the prepared input become the raw value that stands for zero, mean / scale, in a padding of
    its own in front. What cannot be folded is written into the graph as operators, and so are the mean and standard
    deviation of each sample. Notes say which. Readers of the input are treated one by one.

    Args:
        graph: any captured network, norms folded.
        preprocessing: a record for the only input, or records by input name.

    Raises:
        ConfigError: an input that the network does not have or that is not float; channels that are not the input's; a
            network that is preprocessed already.
    """
    prepared = graph.copy()
    specs = {spec.name: spec for spec in graph.inputs}
    for name, record in assign_records(resolve_preprocessing(preprocessing), _names(specs)).items():
        _check(record, specs[name])
        specs[name] = replace(specs[name], preprocessing=record)
        _Attachment(prepared, specs[name], record).run()
    prepared.inputs = tuple(specs.values())
    return finish(prepared)


def _names(specs: Mapping[str, InputSpec]) -> dict[str, str]:
    """What inputs are called, by name and by dict key."""
    keys = {spec.key: name for name, spec in specs.items() if spec.key is not None}
    return {**keys, **{name: name for name in specs}}


def _check(record: Preprocessing, spec: InputSpec) -> None:
    where = f"input {spec.name!r} of shape {list(spec.shape)}"
    if spec.preprocessing is not None:
        raise ConfigError("this input is preprocessed already", where=where, remedy="capture the model again")
    if not spec.dtype.is_floating_point:
        raise ConfigError(f"an input of type {spec.dtype} cannot be normalized", where=where)
    if spec.batch_axis is None:
        raise ConfigError("an input without a batch axis cannot be preprocessed", where=where)
    if record.samplewise != "none" and len(spec.shape) < 2:
        raise ConfigError("a sample of one number has no mean and deviation of its own", where=where)
    if record.layout is not None and len(record.layout) != len(spec.shape):
        raise ConfigError(
            f"layout {record.layout!r} has {len(record.layout)} axes, the input {len(spec.shape)}", where=where
        )
    axis = record.channel_axis
    size = spec.shape[axis] if axis < len(spec.shape) else 1
    if record.channels not in (1, size):
        raise ConfigError(
            f"`mean` and `std` have {record.channels} channels, the input has {size} on axis {axis}",
            where=where,
            remedy="give one number, or one for each channel; `layout` says which axis holds channels",
        )


class _Attachment:
    """One input of a graph under edit, and how its raw values reach those who read it."""

    def __init__(self, graph: Graph, spec: InputSpec, record: Preprocessing) -> None:
        self.graph, self.spec, self.record = graph, spec, record
        inputs = [node for node in graph.module.graph.nodes if node.op == "placeholder"]
        self.input = next(node for node in inputs if str(node.target) == spec.name)
        self.layout = self.input.meta.get(BATCH)
        self.insert = Inserter(graph, inputs[-1].next, self.input)
        self.added: list[fx.Node] = []

    def run(self) -> None:
        if self.record.limits is not None:
            self.input.meta[RANGE] = self.record.limits
        readers = [reader for reader in self.input.users if reader.op == "output" or is_tensor(reader)]
        source, affine = self._normalized_by_sample()
        if not _is_identity(affine):
            readers = self._fold(affine, readers)
            source = self._written_out(affine) if readers else source
        for reader in readers:
            reader.replace_input_with(self.input, source)
        if self.added:
            names = ", ".join(self.graph.name_of(node) for node in self.added)
            spread = ", the standard deviation in float on every target" * ("std" in self.record.samplewise)
            self.graph.notes.append(f"raw input {self.spec.name} is prepared in the graph: {names}{spread}")

    def _normalized_by_sample(self) -> tuple[fx.Node, Affine]:
        """The value after what is taken from each sample, and what is left to do to it."""
        record, aten = self.record, torch.ops.aten
        gain, shift = torch.from_numpy(record.gain), torch.from_numpy(record.shift)
        if record.samplewise == "none":
            same = bool((gain == gain[0]).all() and (shift == shift[0]).all())
            gain, shift = (t[:1] if same else t.expand(record.channels) for t in (gain, shift))
            return self.input, Affine(self.input, None if same else record.channel_axis, gain, shift)
        value, axes = self.input, list(range(1, len(self.spec.shape)))
        if "mean" in record.samplewise:
            value = self._add("sub", aten.sub.Tensor, value, self._add("mean", aten.mean.dim, self.input, axes, True))
        if "std" in record.samplewise:
            spread = self._add("std", aten.std.correction, self.input, axes, correction=0, keepdim=True)
            # The factor is the same above and below; what is left of it is in epsilon. A reciprocal that leaves its
            # grid is clipped: of a blank sample, zero times a finite number remains.
            spread = self._add("add", aten.add.Tensor, spread, record.epsilon / record.scale)
            value = self._add("mul", aten.mul.Tensor, value, self._add("reciprocal", aten.reciprocal.default, spread))
            gain = torch.ones_like(gain)
        return value, Affine(value, None, gain, shift)

    def _fold(self, affine: Affine, readers: list[fx.Node]) -> list[fx.Node]:
        """Take gain and shift into the layers that read the input; the readers that are left."""
        left, done = [], []
        for reader in readers:
            found = fold_into_reader(self.graph, self.spec.name, self.input, affine, reader)
            if found.reason is None:
                reader.replace_input_with(self.input, affine.source)
                done.append(found.layer + found.padding)
            else:
                left.append(reader)
                self.graph.notes.append(f"normalization of raw input {self.spec.name} is not folded: {found.reason}")
        if done:
            self.graph.notes.append(f"normalization of raw input {self.spec.name} is folded into {', '.join(done)}")
        return left

    def _written_out(self, affine: Affine) -> fx.Node:
        value = affine.source
        if not bool((affine.gain == 1).all()):
            value = self._add("mul", torch.ops.aten.mul.Tensor, value, self._operand("gain", affine.gain, affine.axis))
        if affine.shift.any():
            operand = self._operand("shift", affine.shift, affine.axis)
            value = self._add("add", torch.ops.aten.add.Tensor, value, operand)
        return value

    def _operand(self, word: str, values: torch.Tensor, axis: int | None) -> fx.Node | float:
        """A number, or a stored tensor along the axis of channels."""
        if bool((values == values[0]).all()):
            return float(values[0])
        shape = [-1 if dim == axis else 1 for dim in range(len(self.spec.shape))]
        return self.insert.store(word, values.reshape(shape).to(self.spec.dtype))

    def _add(self, word: str, operator: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = self.insert.call(word, operator, *args, layout=self.layout, **kwargs)
        node.meta[PREPARES] = self.spec.name
        self.added.append(node)
        return node


def _is_identity(affine: Affine) -> bool:
    return bool((affine.gain == 1).all()) and not bool(affine.shift.any())
