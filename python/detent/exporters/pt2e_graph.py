"""A quantized model's graph in the operators of PyTorch 2 Export quantization, `torch.ops.quantized_decomposed`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import fx

from detent.errors import UnsupportedOpError
from detent.exporters.quantizers import (
    code_bits,
    quantizer_argument,
    quantizer_name,
    require_cpu,
    stored_tensor,
    with_stored_codes,
)
from detent.exporters.subject import ExportableModel
from detent.graph.names import describe_place
from detent.graph.roles import argument, first_argument, role_of
from detent.graph.shapes import is_float, is_tensor
from detent.graph.tensors import add_tensor, copy_module, drop_unused_tensors, free_path

__all__ = ["decomposed_module"]

_SIGNED: Final = {8: torch.int8, 16: torch.int16}
_UNSIGNED: Final = {8: torch.uint8, 16: torch.uint16}


@dataclass(frozen=True, kw_only=True)
class _Codes:
    """Arguments that a quantize operator and its dequantize share.

    Args:
        steps: step and zero point, or the nodes of both for each channel, then their axis.
        ends: lowest and highest code, and their type.
    """

    steps: tuple[Any, ...]
    ends: tuple[int, int, torch.dtype]

    @property
    def per_channel(self) -> bool:
        return len(self.steps) > 2


def decomposed_module(qmodel: ExportableModel, *, signed: bool) -> fx.GraphModule:
    """A copy of the model's graph with quantize and dequantize operators; it shares tensors with the model.

    A pair stands behind every value that has a grid, and once more behind every operator that hands its input's grid
    on: backends look for the pair directly before an operator.

    Args:
        qmodel: a `QuantizedModel`.
        signed: write unsigned codes as signed ones of the same values.

    Raises:
        ExportError: the model is not on the CPU.
        UnsupportedOpError: a codebook, or steps for groups that the operators do not take; the error names the layer.
    """
    import torch.ao.quantization.fx._decomposed  # noqa: F401  (registers torch.ops.quantized_decomposed)

    module = copy_module(qmodel.graph_module)
    require_cpu(module)
    writing = _Writing(module, qmodel, signed)
    for node in list(module.graph.nodes):
        if quantizer_name(node) is not None:
            writing.replace(with_stored_codes(module, node))
    for node in list(module.graph.nodes):
        writing.repeat_pair(node)
    module.graph.eliminate_dead_code()
    drop_unused_tensors(module)
    module.graph.lint()
    module.recompile()
    return module


class _Writing:
    def __init__(self, module: fx.GraphModule, qmodel: ExportableModel, signed: bool) -> None:
        self._module = module
        self._plan = qmodel.plan
        self._signed = signed
        self._operators = torch.ops.quantized_decomposed
        self._on_grid: dict[fx.Node, _Codes] = {}

    def replace(self, node: fx.Node) -> None:
        """Put PT2E's operators in place of one of detent's."""
        operator = quantizer_name(node)
        if operator in ("lut_fake_quantize", "lut_dequantize"):
            raise UnsupportedOpError(
                "codebooks have no form in PT2E",
                where=_place(node),
                remedy="give this tensor a uniform, symmetric or power_of_two grid",
            )
        if operator == "fake_quantize":
            new = self._pair(node, quantizer_argument(node, 0, "x"), self._activation_codes(node))
        elif stored_tensor(self._module, quantizer_argument(node, 0, "codes")).dtype == torch.int32:
            new = self._float_bias(node)
        else:
            new = self._kernel(node)
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        self._module.graph.erase_node(node)

    def repeat_pair(self, node: fx.Node) -> None:
        """Quantize what an operator hands on from its input's grid: no value changes."""
        role = role_of(node)
        if node in self._on_grid or role is None or not role.preserving or not is_float(node):
            return
        sources = [argument(node, name) for name in role.data] or [first_argument(node)]
        found = {self._on_grid.get(source) for source in sources}
        codes = found.pop()
        if codes is None or found or codes.per_channel:
            return
        if not is_tensor(node):
            self._on_grid[node] = codes  # a split: its items are quantized
            return
        with self._module.graph.inserting_after(node):
            quantized = self._call("quantize_per_tensor", node, codes)
        with self._module.graph.inserting_after(quantized):
            values = self._call("dequantize_per_tensor", quantized, codes)
        values.meta = dict(node.meta)
        node.replace_all_uses_with(values, delete_user_cb=lambda user: user is not quantized)
        self._on_grid[values] = codes

    def _activation_codes(self, node: fx.Node) -> _Codes:
        arguments: list[Any] = [*node.args, None, None]
        _, scale, zero_point, qmin, qmax, axis, group_size = arguments[:7]
        shift, ends = self._ends(int(qmin), int(qmax))
        if group_size is not None:
            raise _refused_groups(node)
        steps, zeros = stored_tensor(self._module, scale), stored_tensor(self._module, zero_point)
        if axis is None:
            return _Codes(steps=(float(steps), int(zeros) - shift), ends=ends)
        rank = quantizer_argument(node, 0, "x").meta["val"].dim()
        stored = self._store(scale, "per_channel", zeros.to(torch.int64) - shift, node)
        return _Codes(steps=(scale, stored, axis % rank), ends=ends)

    def _kernel(self, node: fx.Node) -> fx.Node:
        """Integers behind a dequantize operator."""
        arguments: list[Any] = [*node.args, None, None]
        codes, scale, zero_point, axis, group_size = arguments[:5]
        kernel = stored_tensor(self._module, codes)
        kind = torch.iinfo(kernel.dtype)
        bits = kind.bits
        if axis is not None and kernel.dim() == 2 and axis % 2 == 0 and kernel.shape[1] % 2 == 0:
            # XNNPACK packs codes that say they have four bits: of convolutions it cannot, and of matrices with an odd
            # number of inputs it computes wrong values. Eight bits hold the same codes.
            bits = code_bits(node, str(codes.target).removesuffix("_codes"), self._plan) or bits
        qmin = -(1 << (bits - 1)) if kind.min < 0 else 0
        shift, ends = self._ends(qmin, qmin + (1 << bits) - 1)
        if shift:
            codes = self._store(codes, "signed", (kernel.to(torch.int32) - shift).to(ends[2]), node)
        zeros = stored_tensor(self._module, zero_point).to(torch.int64) - shift
        if axis is None:
            steps = stored_tensor(self._module, scale)
            return self._insert(node, "dequantize_per_tensor", codes, float(steps), int(zeros), *ends)
        stored = self._store(zero_point, "int64", zeros, node)
        if group_size is None:
            axis = axis % kernel.dim()
            return self._insert(node, "dequantize_per_channel", codes, scale, stored, axis, *ends)
        if kernel.dim() != 2 or axis % 2 != 0:
            raise _refused_groups(node)
        return self._insert(
            node, "dequantize_per_channel_group", codes, scale, stored, *ends, group_size, torch.float32
        )

    def _float_bias(self, node: fx.Node) -> fx.Node:
        """Biases stay float: backends make their codes of them by (input step) x (kernel step), which they are on."""
        parts: list[Any] = [
            stored_tensor(self._module, part) if isinstance(part, fx.Node) else part for part in node.args
        ]
        codes = quantizer_argument(node, 0, "codes")
        return self._store(codes, "values", torch.ops.detent.dequantize(*parts), node)

    def _ends(self, qmin: int, qmax: int) -> tuple[int, tuple[int, int, torch.dtype]]:
        """What is taken off the codes, and their ends and type after that."""
        width = 8 if qmax - qmin < 256 else 16
        if qmin < 0:
            return 0, (qmin, qmax, _SIGNED[width])
        if not self._signed:
            return 0, (qmin, qmax, _UNSIGNED[width])
        shift = (qmax + 1) // 2
        return shift, (qmin - shift, qmax - shift, _SIGNED[width])

    def _pair(self, anchor: fx.Node, value: fx.Node, codes: _Codes) -> fx.Node:
        per = "per_channel" if codes.per_channel else "per_tensor"
        with self._module.graph.inserting_before(anchor):
            quantized = self._call(f"quantize_{per}", value, codes)
            values = self._call(f"dequantize_{per}", quantized, codes)
        self._on_grid[values] = codes
        return values

    def _call(self, name: str, value: fx.Node, codes: _Codes) -> fx.Node:
        operator = getattr(self._operators, name).default
        return self._module.graph.call_function(operator, (value, *codes.steps, *codes.ends))

    def _insert(self, anchor: fx.Node, name: str, *arguments: Any) -> fx.Node:
        with self._module.graph.inserting_before(anchor):
            return self._module.graph.call_function(getattr(self._operators, name).default, arguments)

    def _store(self, read: fx.Node, word: str, tensor: torch.Tensor, anchor: fx.Node) -> fx.Node:
        """Keep a tensor beside the one that `read` reads, and read it before `anchor`."""
        path = free_path(self._module, f"{read.target}_{word}")
        add_tensor(self._module, path, tensor)
        with self._module.graph.inserting_before(anchor):
            return self._module.graph.get_attr(path)


def _refused_groups(node: fx.Node) -> UnsupportedOpError:
    return UnsupportedOpError(
        "PT2E has steps for groups of inputs in linear layers only",
        where=_place(node),
        remedy="remove `group_size` from this entry of the plan",
    )


def _place(node: fx.Node) -> str:
    """The value or stored tensor that a quantizer is for, with the user's source line."""
    subject = quantizer_argument(node, 0, "x")
    stored = subject.op == "get_attr"
    return describe_place(node, str(subject.target).removesuffix("_codes") if stored else None)
