"""What the converter for the IMX500 takes: grids, and places of quantizers.

It refuses most of what it does not take, but rounds activation thresholds up to powers of two without a word. All of it
is refused here, with the name of the value and the user's source line.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import fx
from torch.utils import _pytree as pytree

from detent.errors import ExportError
from detent.exporters.onnx_tagging import TAGGED, Quantizer, Tagged
from detent.graph.names import describe_place
from detent.graph.roles import OpRole, argument, first_argument, op_name, role_of
from detent.graph.shapes import is_float
from detent.graph.shifts import SHIFT
from detent.targets import load_target

__all__ = ["check_grids", "check_places", "moved_from"]

_WEIGHT_BITS: Final = (8, 4, 2)
_REMEDY: Final = "quantize for the target imx500"


def check_grids(tagged: Tagged) -> None:
    """Make sure that the converter computes with every grid as it is.

    Raises:
        ExportError: it does not; the error names the value.
    """
    rules = {"fake_quantize": _check_activation, "dequantize": _check_weight, "lut_dequantize": _check_codebook}
    for node in tagged.module.graph.nodes:
        if _is_quantizer(node):
            rules[op_name(node)](tagged.module, node, tagged.quantizers[int(node.kwargs["tag"])])


def check_places(tagged: Tagged) -> None:
    """Make sure that quantizers are where the converter wants them, and nowhere else.

    Raises:
        ExportError: one is missing or too many; the error names the value.
    """
    pairs = {pair for chain in load_target("imx500").fusing for pair in pairwise(chain)}
    for node in tagged.module.graph.nodes:
        if _is_quantizer(node):
            _check_not_inside(node, pairs)
            _check_readers(node)
        elif node.op == "call_function" and is_float(node):
            _check_no_shift(node)
            _check_kernel(tagged.module, node)
            _check_operands(node, pairs)
        elif node.op == "placeholder":
            _check_input(node)
        elif node.op == "output":
            for leaf in pytree.tree_leaves(node.args[0]):
                _require_quantizer(leaf, "an output of the network")


def moved_from(node: fx.Node) -> fx.Node:
    """The value that `node` has entries of: back through operators that only move values."""
    while not _is_quantizer(node):
        role = role_of(node)
        source = first_argument(node)
        if role is None or not role.preserving or not isinstance(source, fx.Node):
            break
        node = source
    return node


def _is_quantizer(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target in TAGGED.values()


def _check_activation(module: fx.GraphModule, node: fx.Node, quantizer: Quantizer) -> None:
    scale, zero_point = _tensor(module, node.args[1]), _tensor(module, node.args[2])
    low, high = node.args[3], node.args[4]
    assert isinstance(low, int)
    assert isinstance(high, int)
    bits = (high - low).bit_length()
    where = quantizer.where
    if len(scale) > 1:
        raise ExportError(
            "the converter takes one step for an activation, and this one has a step for each channel",
            where=where,
            remedy="give it a power_of_two grid per tensor",
        )
    if np.any(zero_point != 0):
        raise ExportError(
            f"the converter has no zero points, and this activation has {int(zero_point[0])}",
            where=where,
            remedy=f"give it a power_of_two grid, or {_REMEDY}",
        )
    if (low, high) != ((-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if low < 0 else (0, (1 << bits) - 1)):
        raise ExportError(
            f"the converter uses all codes of {bits} bits, and this activation has {low}..{high}",
            where=where,
            remedy="give it a grid without narrow_range",
        )
    if bits != 8 and (bits, low < 0) != (16, True):
        raise ExportError(
            f"the converter takes activations of 8 bits, or of signed 16, and this one has "
            f"{'signed' if low < 0 else 'unsigned'} {bits}",
            where=where,
            remedy="give it 8 bits",
        )
    if np.frexp(scale[0])[0] != 0.5:
        threshold = float(scale[0]) * (-low if low < 0 else high + 1)
        raise ExportError(
            f"the threshold {threshold:g} of this activation is no power of two; the converter would round it up "
            f"without a word",
            where=where,
            remedy=f"give it a power_of_two grid, or {_REMEDY}",
        )


def _check_weight(module: fx.GraphModule, node: fx.Node, quantizer: Quantizer) -> None:
    codes, zero_point = _tensor(module, node.args[0]), _tensor(module, node.args[2])
    if codes.dtype == np.int32:
        return  # a bias, which is written as its real values
    _check_no_groups(node, quantizer)
    if np.any(zero_point != 0) or codes.dtype not in (np.int8, np.int16):
        raise ExportError(
            "the converter takes signed weights around zero, and these have a uniform grid",
            where=quantizer.where,
            remedy="give this layer a symmetric or power_of_two grid",
        )
    if quantizer.bits not in _WEIGHT_BITS or codes.dtype != np.int8:
        raise _wrong_bits(quantizer)


def _check_codebook(module: fx.GraphModule, node: fx.Node, quantizer: Quantizer) -> None:
    table = _tensor(module, node.args[2])
    _check_no_groups(node, quantizer)
    if table.ndim > 1:
        raise ExportError(
            "the converter takes one codebook for a kernel, and this one has one for each channel",
            where=quantizer.where,
            remedy="give this layer one codebook, or a symmetric grid",
        )
    if np.any(np.rint(table) != table) or table.min() < -128 or table.max() > 127:
        raise ExportError(
            "the converter takes codebooks of the whole numbers -128..127, in 128ths of the threshold",
            where=quantizer.where,
            remedy="round the codebook, or give this layer a symmetric grid",
        )
    if not np.any(table == 0):
        raise ExportError(
            "the converter takes codebooks with a zero among their values, and this one has none",
            where=quantizer.where,
            remedy="put a zero into the codebook, or give this layer a symmetric grid",
        )


def _check_no_groups(node: fx.Node, quantizer: Quantizer) -> None:
    if len(node.args) > 4 and node.args[4] is not None:
        raise ExportError(
            "the converter takes one threshold for each output channel, and this kernel has one per group",
            where=quantizer.where,
            remedy="give this layer a grid without group_size",
        )


def _wrong_bits(quantizer: Quantizer) -> ExportError:
    width = "an unknown number of" if quantizer.bits is None else quantizer.bits
    return ExportError(
        f"the converter takes weights of 8, 4 and 2 bits, and these have {width}",
        where=quantizer.where,
        remedy="choose among these widths",
    )


def _check_not_inside(node: fx.Node, pairs: set[tuple[str, str]]) -> None:
    source = node.args[0]
    readers = list(node.users)
    if not isinstance(source, fx.Node) or len(source.users) != 1 or len(readers) != 1:
        return
    if _fuse(source, readers[0], pairs):
        raise ExportError(
            f"a quantizer lies between this operation and the {op_name(readers[0])} behind it, which the converter "
            f"computes as one",
            where=describe_place(source),
            remedy=f"keep this value in float, or {_REMEDY}",
        )


def _check_readers(node: fx.Node) -> None:
    if op_name(node) != "fake_quantize" or node.args[4] != (1 << 15) - 1:
        return
    for reader in _readers(node):
        role = role_of(reader)
        if reader.op != "output" and (role is None or role.kind != "add"):
            raise ExportError(
                f"the converter takes 16 bits only where a sum reads them or the network ends, and "
                f"{describe_place(reader)} reads this value",
                where=describe_place(node),
                remedy="give it 8 bits",
            )


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """What computes with a value, behind operators that only move it."""
    for user in node.users:
        role = role_of(user)
        if role is not None and role.preserving:
            yield from _readers(user)
        else:
            yield user


def _check_no_shift(node: fx.Node) -> None:
    if SHIFT in node.meta:
        raise ExportError(
            "the converter does not see a shift as part of the function before it, and wants a quantizer in between",
            where=describe_place(node),
            remedy="quantize with shift_negative=False",
        )


def _check_kernel(module: fx.GraphModule, node: fx.Node) -> None:
    role = role_of(node)
    read = argument(node, role.weight) if role is not None and role.weight is not None else None
    if role is None or not isinstance(read, fx.Node):
        return
    kernel = moved_from(read)
    if _is_quantizer(kernel) and kernel is read and op_name(kernel) != "fake_quantize":
        axis = kernel.args[3]
        rank = _tensor(module, kernel.args[0]).ndim
        if isinstance(axis, int) and axis % rank != role.weight_out_axis % rank:
            raise ExportError(
                f"the converter takes one threshold for each output channel, and this kernel has one along axis {axis}",
                where=describe_place(node),
                remedy=f"give this layer a grid along axis {role.weight_out_axis % rank}",
            )
    if kernel.op == "get_attr":
        raise ExportError(
            "this kernel is in float, and the converter would quantize it on its own without a word",
            where=describe_place(node),
            remedy="give this layer weights of 8, 4 or 2 bits",
        )


def _check_operands(node: fx.Node, pairs: set[tuple[str, str]]) -> None:
    role = role_of(node)
    if role is not None and role.preserving:
        return
    for operand in _operands(node, role):
        if operand.op == "call_function" and len(operand.users) == 1 and _fuse(operand, node, pairs):
            continue
        _require_quantizer(operand, f"read by {describe_place(node)}")


def _operands(node: fx.Node, role: OpRole | None) -> Iterator[fx.Node]:
    """The computed values an operator reads; kernels, biases and other stored tensors are not among them."""
    given = [argument(node, name) for name in role.data] if role is not None and role.data else None
    leaves = pytree.tree_leaves(given) if given is not None else node.all_input_nodes
    yield from (leaf for leaf in leaves if isinstance(leaf, fx.Node) and leaf.op != "get_attr" and is_float(leaf))


def _check_input(node: fx.Node) -> None:
    for user in node.users:
        if is_float(node) and not _is_quantizer(user):
            raise ExportError(
                f"the converter wants a quantizer right behind an input, and {op_name(user)} reads this one in float",
                where=describe_place(node),
                remedy=f"give it a power_of_two grid, or {_REMEDY}",
            )


def _require_quantizer(node: fx.Node, what: str) -> None:
    source = moved_from(node)
    if not _is_quantizer(source):
        raise ExportError(
            f"the converter wants a quantizer here, and this value has none; it is {what}",
            where=describe_place(source),
            remedy=f"give it a power_of_two grid, or {_REMEDY}",
        )


def _fuse(first: fx.Node, second: fx.Node, pairs: set[tuple[str, str]]) -> bool:
    one, other = role_of(first), role_of(second)
    if one is None or other is None:
        return False
    return any(one.answers_to(a) and other.answers_to(b) for a, b in pairs)


def _tensor(module: fx.GraphModule, read: Any) -> npt.NDArray[Any]:
    tensor = module.get_buffer(str(read.target)).detach()
    return (tensor.to(torch.int32) if tensor.dtype == torch.uint16 else tensor).numpy()
