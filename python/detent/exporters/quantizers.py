"""The quantizers of a model's graph, as every exporter reads them."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import fx

import detent.graph.operators  # noqa: F401  (registers torch.ops.detent)
from detent.errors import ExportError
from detent.graph.names import NAME
from detent.graph.tensors import read_tensor
from detent.kernels.quantize import lut_quantize, quantize
from detent.records.plan import QuantPlan

__all__ = [
    "code_bits",
    "quantizer_argument",
    "quantizer_name",
    "require_cpu",
    "stored_tensor",
    "with_stored_codes",
]

_QUANTIZERS: Final = ("fake_quantize", "dequantize", "lut_fake_quantize", "lut_dequantize")


def quantizer_name(node: fx.Node) -> str | None:
    """Name of the quantizer a node calls, tagged or not; None if it calls none."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    namespace, _, name = node.target._schema.name.partition("::")
    return name if namespace in ("detent", "detent_export") and name in _QUANTIZERS else None


def quantizer_argument(node: fx.Node, position: int, name: str) -> Any:
    """An argument of a quantizer, None if it is not given."""
    return node.args[position] if position < len(node.args) else node.kwargs.get(name)


def stored_tensor(module: torch.nn.Module, read: fx.Node) -> torch.Tensor:
    """The tensor that a `get_attr` node reads."""
    return read_tensor(module, str(read.target)).detach()


def require_cpu(module: torch.nn.Module) -> None:
    """Make sure that all tensors lie in memory.

    Raises:
        ExportError: one does not.
    """
    for name, tensor in module.state_dict().items():
        if tensor.device.type != "cpu":
            raise ExportError(f"a tensor lies on {tensor.device}", where=name, remedy="export qmodel.cpu()")


def with_stored_codes(module: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The quantizer itself, or, for a float kernel that training moves, its `dequantize` of present codes."""
    kernel = quantizer_argument(node, 0, "x")
    operator = quantizer_name(node)
    if operator not in ("fake_quantize", "lut_fake_quantize") or kernel.op != "get_attr":
        return node
    values = np.ascontiguousarray(stored_tensor(module, kernel).numpy())
    arguments: list[Any] = list(node.args)
    _, scale, levels, *rest = arguments
    tensors = stored_tensor(module, scale).numpy(), stored_tensor(module, levels).numpy()
    if operator == "fake_quantize":
        qmin, qmax, axis, group_size = (*rest, None, None)[:4]
        dtype = ("int" if qmin < 0 else "uint") + ("8" if qmax - qmin < 256 else "16")
        codes = quantize(values, *tensors, qmin, qmax, dtype=dtype, axis=axis, group_size=group_size)
        expand, settings = torch.ops.detent.dequantize.default, [axis, group_size]
    else:
        axis, group_size = (*rest, None, None)[:2]
        codes = lut_quantize(values, *tensors, axis=axis, group_size=group_size)
        expand, settings = torch.ops.detent.lut_dequantize.default, [axis, group_size]
    owner, _, leaf = str(kernel.target).rpartition(".")
    module.get_submodule(owner).register_buffer(f"{leaf}_codes", torch.from_numpy(codes))
    with module.graph.inserting_before(node):
        stored = module.graph.get_attr(f"{kernel.target}_codes")
        expanded = module.graph.call_function(expand, (stored, scale, levels, *settings))
    expanded.meta = dict(node.meta)
    node.replace_all_uses_with(expanded)
    module.graph.erase_node(node)
    return expanded


def code_bits(node: fx.Node, name: str, plan: QuantPlan) -> int | None:
    """Width of the codes that a node expands: of its layer's entry in the plan, or that of a stored activation.

    None if the plan has neither.
    """
    for user in node.users:
        entry = plan.weights.get(str(user.meta.get(NAME)))
        if entry is not None and entry.grid is not None:
            return entry.grid.bits
    grid = plan.activation_grid(name) if name in plan.activations else None
    return None if grid is None else grid.bits
