"""Puts an exported graph into the form the rest of detent reads: functional, without checks, constants folded."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Final

import torch
from torch import fx
from torch._ops import OpOverload

from detent.graph.shapes import value_of
from detent.graph.tensors import add_tensor, free_path, read_tensor

__all__ = [
    "drop_checks",
    "drop_state_updates",
    "fold_constants",
    "has_unsafe_mutation",
    "mutated_argument",
    "restore_batch_norm",
    "swap_in_place",
    "switch_to_evaluation",
]

FOLDED: Final = "_folded_"
"""Prefix of the buffers that hold folded constants."""


def drop_checks(module: fx.GraphModule) -> None:
    """Remove input guards and run-time assertions: detent checks inputs where it takes them."""
    for node in reversed(list(module.graph.nodes)):
        guard = node.op == "call_module" and "guard" in str(node.target)
        check = node.op == "call_function" and str(node.target).startswith(("aten._assert", "aten.sym_constrain"))
        if (guard or check) and not node.users:
            module.graph.erase_node(node)


def mutated_argument(node: fx.Node) -> fx.Node | None:
    """The operand an in-place operator writes into, None for a pure one."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return None
    for index, parameter in enumerate(node.target._schema.arguments):
        if parameter.alias_info is not None and parameter.alias_info.is_write:
            value = node.args[index] if index < len(node.args) else node.kwargs.get(parameter.name)
            return value if isinstance(value, fx.Node) else None
    return None


def has_unsafe_mutation(graph: fx.Graph) -> bool:
    """Whether an in-place operator writes into memory that is read again later through another node.

    Where nothing reads the old value, `relu_` can be replaced by `relu`; a write through a view
    (`x[:, 0] = 0`) cannot, and needs torch's own functionalization.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        target = mutated_argument(node)
        if target is None or _is_state_update(node):
            continue
        if _functional_form(node) is None:
            return True
        for alias in _aliases(target, without=node):
            if any(user is not node and order[user] > order[node] for user in alias.users):
                return True
    return False


def swap_in_place(graph: fx.Graph) -> None:
    """Replace in-place operators by their functional forms; only valid without unsafe mutations."""
    for node in graph.nodes:
        if mutated_argument(node) is not None and not _is_state_update(node):
            functional = _functional_form(node)
            if functional is None:
                raise ValueError(f"{node.target} has no functional form")
            node.target = functional


def drop_state_updates(graph: fx.Graph) -> list[str]:
    """Remove writes into the model's own buffers; returns the names of the buffers that were written."""
    names = []
    for node in reversed(list(graph.nodes)):
        if _is_state_update(node):
            target = mutated_argument(node)
            assert target is not None
            names.append(str(target.target))
            node.replace_all_uses_with(node.args[1])
            graph.erase_node(node)
    return sorted(set(names))


def switch_to_evaluation(graph: fx.Graph) -> bool:
    """Make batch norms use their stored statistics and dropouts pass through; returns whether any did not."""
    changed = False
    for node in graph.nodes:
        name = str(node.target)
        if name == "aten.batch_norm.default" and node.args[3] is not None and node.args[5]:
            node.update_arg(5, False)
            changed = True
        elif name.startswith("aten.") and "dropout" in name and len(node.args) == 3 and node.args[2]:
            node.update_arg(2, False)
            changed = True
    return changed


def restore_batch_norm(graph: fx.Graph) -> None:
    """Rewrite the decomposed inference batch norm, a tuple of three, into `aten.batch_norm`, which is one tensor."""
    decomposed = torch.ops.aten._native_batch_norm_legit_no_training.default
    for node in list(graph.nodes):
        if node.target is not decomposed or any(u.target is not operator.getitem for u in node.users):
            continue
        outputs = [user for user in node.users if user.args[1] == 0]
        if not outputs or any(user.args[1] != 0 and user.users for user in node.users):
            continue
        data, weight, bias, mean, var, momentum, eps = node.args
        with graph.inserting_before(node):
            whole = graph.call_function(
                torch.ops.aten.batch_norm.default, (data, weight, bias, mean, var, False, momentum, eps, False)
            )
        whole.meta = {**node.meta, "val": value_of(outputs[0])}
        for output in outputs:
            output.replace_all_uses_with(whole)
        for user in list(node.users):
            graph.erase_node(user)
        graph.erase_node(node)


def fold_constants(module: fx.GraphModule) -> None:
    """Compute what depends on parameters and constants only (weight norm, `weight.t()`), once, into buffers."""
    constant: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node.op == "get_attr" or (node.op == "call_function" and _is_foldable(node, constant)):
            constant.add(node)
    computed: dict[fx.Node, torch.Tensor] = {}
    for node in module.graph.nodes:
        if node not in constant or node.op != "call_function":
            continue
        computed[node] = _evaluate(module, node, computed)
    for node, value in computed.items():
        if all(user in constant for user in node.users):
            continue
        name = free_path(module, FOLDED + node.name)
        add_tensor(module, name, value)
        with module.graph.inserting_before(node):
            read = module.graph.get_attr(name)
        read.meta["val"] = value_of(node)
        node.replace_all_uses_with(read, delete_user_cb=lambda user: user not in constant)
    module.graph.eliminate_dead_code()


def _is_foldable(node: fx.Node, constant: set[fx.Node]) -> bool:
    if not isinstance(node.target, OpOverload) or not node.all_input_nodes:
        return False
    random = torch.Tag.nondeterministic_seeded in node.target.tags
    single = isinstance(value_of(node), torch.Tensor)
    return single and not random and all(source in constant for source in node.all_input_nodes)


def _evaluate(module: fx.GraphModule, node: fx.Node, computed: dict[fx.Node, torch.Tensor]) -> torch.Tensor:
    def fetch(source: fx.Node) -> torch.Tensor:
        return computed[source] if source in computed else read_tensor(module, str(source.target))

    args = fx.node.map_arg(node.args, fetch)
    kwargs = fx.node.map_arg(node.kwargs, fetch)
    assert isinstance(node.target, OpOverload)
    with torch.no_grad():
        result: torch.Tensor = node.target(*args, **kwargs)
    return result.detach().contiguous()


def _is_state_update(node: fx.Node) -> bool:
    target = mutated_argument(node)
    return target is not None and target.op == "get_attr" and node.target is torch.ops.aten.copy_.default


def _functional_form(node: fx.Node) -> OpOverload | None:
    assert isinstance(node.target, OpOverload)
    name = node.target._schema.name.split("::")[-1]
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
    if not name.endswith("_") or packet is None or node.target._overloadname not in packet.overloads():
        return None
    form = getattr(packet, node.target._overloadname)
    ours = [parameter.name for parameter in node.target._schema.arguments]
    theirs = [parameter.name for parameter in form._schema.arguments]
    return form if theirs[: len(ours)] == ours else None


def _aliases(node: fx.Node, without: fx.Node) -> Iterator[fx.Node]:
    """All nodes whose values may share memory with this one, itself included, but not through `without`.

    The in-place operator's own result is left out: whoever reads that wants the new value.
    """
    seen, pending = {node, without}, [node]
    while pending:
        current = pending.pop()
        yield current
        neighbours = [user for user in current.users if current in _viewed(user)]
        for other in (*neighbours, *_viewed(current)):
            if other not in seen:
                seen.add(other)
                pending.append(other)


def _viewed(node: fx.Node) -> list[fx.Node]:
    """The operands a node's value may be a view of."""
    if node.target is operator.getitem:
        return node.all_input_nodes
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return []
    schema = node.target._schema
    if not any(result.alias_info is not None for result in schema.returns):
        # contiguous() and reshape() have no alias in their schema, yet may return their operand.
        if schema.name not in (
            "aten::contiguous",
            "aten::reshape",
            "aten::flatten",
            "aten::dropout",
            "aten::unflatten",
        ):
            return []
        return node.all_input_nodes[:1]
    viewed = []
    for index, parameter in enumerate(schema.arguments):
        if parameter.alias_info is not None and index < len(node.args):
            value = node.args[index]
            viewed += [m for m in (value if isinstance(value, list | tuple) else [value]) if isinstance(m, fx.Node)]
    return viewed
