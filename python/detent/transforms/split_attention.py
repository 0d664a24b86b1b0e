"""Writes fused attention as two matrix products with a softmax between; the float function stays the same."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import fx

from detent.graph.graph import Graph, GraphNode
from detent.graph.layouts import BATCH
from detent.graph.names import LAYER, NAME, SOURCE
from detent.graph.role_table import BLOCKING
from detent.graph.roles import argument, argument_names
from detent.graph.shapes import value_of
from detent.graph.tensors import add_tensor, free_path
from detent.transforms.edits import finish

__all__ = ["split_attention"]

_KEPT_META: Final = ("nn_module_stack", "stack_trace", LAYER, SOURCE)


def split_attention(graph: Graph) -> Graph:
    """A new graph in which `scaled_dot_product_attention` is `softmax(scale * Q K^T + mask) V`, operator by operator.

    So both products, the scores and the probabilities get grids (Vaswani et al. 2017, arXiv:1706.03762, equation 1).
    All heads stay in one `[..., heads, positions, width]` tensor. Blocked positions - of a causal or boolean mask, or
    minus infinity in a stored one - are not added to the scores, where they would take up a grid's whole range:
    `where` puts the least finite number in their place, which no grid takes in. Rows without any position give
    zeros, as the fused operator does. What is not split, because of dropout, grouped queries or a length that varies,
    stays, and a note says why.

    Args:
        graph: any captured network.
    """
    split = graph.copy()
    done: list[str] = []
    for item in split.nodes():
        if item.op is None or item.op.name != "scaled_dot_product_attention":
            continue
        reason = _obstacle(split, item)
        if reason is None:
            _Splitter(split, item).run()
            done.append(item.name)
        else:
            split.notes.append(f"the attention {item.name} is not split into products: {reason}")
    if done:
        split.notes.append(f"split {len(done)} attention{'s' * (len(done) > 1)} into products: {', '.join(done)}")
    return finish(split)


def _obstacle(graph: Graph, item: GraphNode) -> str | None:
    if argument(item.node, "dropout_p"):
        return "it drops probabilities at random"
    if "enable_gqa" in argument_names(item.node) and argument(item.node, "enable_gqa"):
        return "several query heads share one head of keys"
    operands = [argument(item.node, name) for name in ("query", "key", "value")]
    if item.shape is None or any(not isinstance(value_of(node), torch.Tensor) for node in operands):
        return "the shapes of its operands are not known"
    for node in (item.node, *operands):
        layout = node.meta.get(BATCH)
        if layout is not None and layout.axis >= value_of(node).dim() - 2:
            return "samples lie along its positions"
    lengths = [*value_of(operands[0]).shape[-2:], value_of(operands[1]).shape[-2]]
    if any(not isinstance(length, int) for length in lengths):
        return "its length varies"
    if argument(item.node, "is_causal") and argument(item.node, "attn_mask") is not None:
        return "it has a causal and another mask"
    return None


class _Splitter:
    """Writes the operators of one attention in front of it, and removes it."""

    def __init__(self, graph: Graph, item: GraphNode) -> None:
        self.graph, self.item, self.call = graph, item, item.node
        self.layout = item.node.meta.get(BATCH)
        self.mode = value_of(item.node).fake_mode
        self.taken = {str(node.meta[NAME]) for node in graph.module.graph.nodes if NAME in node.meta}

    def run(self) -> None:
        aten = torch.ops.aten
        query, key, value = (argument(self.call, name) for name in ("query", "key", "value"))
        scale = argument(self.call, "scale")
        scale = 1 / math.sqrt(value_of(query).shape[-1]) if scale is None else float(scale)
        swapped = self._add("transpose", aten.transpose.int, key, -2, -1, layout=key.meta.get(BATCH))
        scores = self._add("matmul", aten.matmul.default, query, swapped)
        if scale != 1:
            scores = self._add("mul", aten.mul.Tensor, scores, scale)
        added, allowed, empty_rows = self._mask()
        if added is not None:
            scores = self._add("add", aten.add.Tensor, scores, added)
        if allowed is not None:
            least = torch.finfo(value_of(scores).dtype).min
            scores = self._add("where", aten.where.ScalarOther, allowed, scores, least)
        chances = self._add("softmax", aten.softmax.int, scores, -1)
        if empty_rows:
            chances = self._add("where", aten.where.ScalarOther, allowed, chances, 0.0)
        result = self._add("matmul", aten.matmul.default, chances, value)
        self.call.replace_all_uses_with(result)
        self.graph.module.graph.erase_node(self.call)

    def _mask(self) -> tuple[fx.Node | None, fx.Node | None, bool]:
        """What is added to the scores, which positions are allowed, and whether a row may have none."""
        query, key, mask = (argument(self.call, name) for name in ("query", "key", "attn_mask"))
        if argument(self.call, "is_causal"):
            rows, columns = value_of(query).shape[-2], value_of(key).shape[-2]
            return None, self._store("causal", torch.ones(rows, columns, dtype=torch.bool).tril()), False
        if mask is None:
            return None, None, False
        boolean = value_of(mask).dtype == torch.bool
        if mask.op != "get_attr":
            return (None, mask, True) if boolean else (mask, None, False)
        stored = self.graph.tensor(mask).detach()
        allowed = stored if boolean else stored > BLOCKING
        if not boolean and not allowed.any(-1).all():
            # In a row of finite numbers only, however low, the differences count.
            allowed = ~torch.isneginf(stored)
        rest = torch.zeros(()) if boolean else torch.where(allowed, stored, 0.0)
        return (
            self._store("mask", rest) if rest.any() else None,
            None if allowed.all() else self._store("allowed", allowed),
            not bool(allowed.any(-1).all()),
        )

    def _store(self, word: str, tensor: torch.Tensor) -> fx.Node:
        path = free_path(self.graph.module, f"{word}_{self.call.name}")
        add_tensor(self.graph.module, path, tensor.contiguous())
        with self.graph.module.graph.inserting_before(self.call):
            node = self.graph.module.graph.get_attr(path)
        node.meta["val"] = self.mode.from_tensor(tensor)
        return node

    def _add(self, word: str, target: Any, *args: Any, layout: Any = None) -> fx.Node:
        with self.graph.module.graph.inserting_before(self.call):
            node = self.graph.module.graph.call_function(target, args)
        node.meta = {key: self.call.meta[key] for key in _KEPT_META if key in self.call.meta}
        base = f"{self.item.layer}.{word}" if self.item.layer else word
        names = (base if not count else f"{base}:{count}" for count in range(len(self.taken) + 1))
        node.meta[NAME] = next(name for name in names if name not in self.taken)
        self.taken.add(node.meta[NAME])
        with self.mode:
            node.meta["val"] = target(*fx.node.map_arg(args, self._fake))
        layout = layout if word == "transpose" else self.layout
        if layout is not None:
            node.meta[BATCH] = layout
        return node

    def _fake(self, node: fx.Node) -> Any:
        """What tracing recorded, in the mode of the attention's own value."""
        value = value_of(node)
        known = isinstance(value, torch.Tensor) and getattr(value, "fake_mode", None) is self.mode
        return value if known else self.mode.from_tensor(self.graph.tensor(node))
