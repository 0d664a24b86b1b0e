"""`capture`: from a PyTorch model to a `Graph`, by `torch.export`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from detent.errors import CaptureError
from detent.graph import functional, role_table  # noqa: F401  (importing the table fills the registry of roles)
from detent.graph.archive import load_program
from detent.graph.diagnosis import explain_failure, first_line, run_failure
from detent.graph.example import Example, bind_example
from detent.graph.graph import Graph
from detent.graph.layouts import BATCH, mark_layouts
from detent.graph.names import NAME, assign_names, layer_path, user_line
from detent.graph.quiet import quiet_torch
from detent.graph.roles import op_name, role_of
from detent.graph.shapes import concrete_shape, is_float, is_tensor, value_of
from detent.graph.signature import read_signature

__all__ = ["capture"]


def capture(
    model: nn.Module | ExportedProgram | str | os.PathLike[str],
    example_inputs: Any = None,
    *,
    dynamic_batch: bool = True,
) -> Graph:
    """Capture a model as a graph of ATen operators that runs, with layer names, roles and the user's source lines.

    The user's module is left as it is: it is traced in evaluation mode and its training flags are put back; the graph
    shares its parameters until a transform replaces them.

    Args:
        model: a module, an `ExportedProgram`, or the path of a `.pt2` file. A file is read without unpickling anything
            but plain tensors; archives that need more are refused.
        example_inputs: a tensor, array, tuple, list or dict the model can be called with, samples along axis 0. A batch
            of one is repeated for tracing. Not used for an exported program, which has its own.
        dynamic_batch: let the graph run any number of samples. If the model cannot be exported so, the batch is
            fixed to the example's, and a note says why. Exported programs keep the batch they were exported with.

    Raises:
        CaptureError: the model cannot be traced, or the example does not fit it.
        FormatError: the `.pt2` file is missing, damaged, or would need unpickling.
    """
    notes: list[str] = []
    if isinstance(model, str | os.PathLike):
        model = load_program(model)
    if isinstance(model, ExportedProgram):
        graph = _graph_of(model, notes, given=True)
        _mark(graph, model, None)
    elif isinstance(model, nn.Module):
        if example_inputs is None:
            raise CaptureError("capturing a module needs example inputs", remedy="pass one batch as `example_inputs`")
        example = bind_example(model.forward, example_inputs)
        notes += example.notes
        if any(module.training for module in model.modules()):
            notes.append("the model was in training mode: it was captured as in evaluation mode (model.eval())")
        with _evaluating(model):
            program = _export(model, example, dynamic_batch, notes)
            graph = _graph_of(program, notes, given=False)
            _mark(graph, program, partial(run_failure, model, example))
    else:
        raise CaptureError(
            f"cannot capture a {type(model).__name__}",
            remedy="give a torch.nn.Module, a torch.export.ExportedProgram or the path of a .pt2 file",
        )
    graph.notes += _float_notes(graph.module.graph)
    return graph


def _export(model: nn.Module, example: Example, dynamic_batch: bool, notes: list[str]) -> ExportedProgram:
    if dynamic_batch:
        try:
            traced = example.repeated() if example.batch == 1 else example
            return _trace(model, traced, _batch_dims(model, traced))
        except Exception as error:  # noqa: BLE001  (torch.export raises whatever the user's code raises)
            reason = first_line(error)
    try:
        program = _trace(model, example, None)
    except Exception as error:
        raise explain_failure(model, example, error) from error
    if dynamic_batch:
        notes.append(f"the batch is fixed to {example.batch}: exporting with a dynamic batch failed ({reason})")
    return program


def _trace(model: nn.Module, example: Example, dynamic_shapes: Any) -> ExportedProgram:
    with quiet_torch():
        return torch.export.export(model, example.args, example.kwargs, dynamic_shapes=dynamic_shapes, strict=False)


def _batch_dims(model: nn.Module, example: Example) -> Any:
    batch = Dim("batch", min=1)
    bound = inspect.signature(model.forward).bind(*example.args, **example.kwargs).arguments
    return pytree.tree_map(lambda leaf: {0: batch} if example.is_batched(leaf) else None, dict(bound))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every module's own flag outside."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def _graph_of(program: ExportedProgram, notes: list[str], *, given: bool) -> Graph:
    with quiet_torch():
        exported = _plain_module(program)
        if functional.has_unsafe_mutation(exported.graph):
            exported = _plain_module(program.run_decompositions({}))
    if given and functional.switch_to_evaluation(exported.graph):
        notes.append("the program was exported in training mode: it was captured as in evaluation mode")
    written = functional.drop_state_updates(exported.graph)
    if written:
        notes.append(f"the model writes to its buffers {', '.join(written)}: the graph keeps their present values")
    functional.swap_in_place(exported.graph)
    functional.restore_batch_norm(exported.graph)
    functional.fold_constants(exported)
    exported.graph.eliminate_dead_code()
    module = fx.GraphModule(exported, exported.graph)
    assign_names(module.graph)
    _refuse_unknown_sizes(module.graph)
    inputs, batch = read_signature(module.graph)
    return Graph(module, inputs=inputs, batch=batch, notes=notes)


def _refuse_unknown_sizes(graph: fx.Graph) -> None:
    for node in graph.nodes:
        try:
            if is_tensor(node):
                concrete_shape(node)
        except ValueError as error:
            raise CaptureError(
                f"the shape of a value depends on the values of a tensor: {value_of(node).shape} in {node.target}",
                where=user_line(node.meta.get("stack_trace")),
                remedy="compute with masks (torch.where) instead of selecting elements by condition",
            ) from error


def _plain_module(program: ExportedProgram) -> fx.GraphModule:
    try:
        module = program.module(check_guards=False)
    except TypeError:  # before torch 2.9 there are no guards to leave out
        module = program.module()
    assert isinstance(module, fx.GraphModule)
    functional.drop_checks(module)
    return module


def _mark(graph: Graph, program: ExportedProgram, check: Callable[[], CaptureError | None] | None) -> None:
    """Find the batch in every value by trial runs, and note what they show."""
    leaves = pytree.tree_leaves(program.example_inputs) if program.example_inputs is not None else []
    nodes = graph.module.graph.nodes
    placeholders = [str(node.target) for node in nodes if node.op == "placeholder"]
    example: dict[str, torch.Tensor] = {}
    if len(leaves) == len(placeholders):
        pairs = zip(placeholders, leaves, strict=True)
        example = {name: leaf for name, leaf in pairs if isinstance(leaf, torch.Tensor)}
    try:
        mark_layouts(graph.module, graph.batch.symbol, graph.batch.size, example)
    except Exception as error:
        # Tracing sees shapes only; a wrong element type, for one, shows when numbers are computed.
        failure = check() if check is not None else None
        if failure is not None:
            raise failure from error
        for node in nodes:
            node.meta.pop(BATCH, None)
        graph.notes.append(f"where samples lie in each value is not known, a trial run failed: {first_line(error)}")
        return
    mixed = [node for node in nodes if BATCH in node.meta and node.meta[BATCH].outer is None and is_float(node)]
    if mixed:
        more = f" and {len(mixed) - 1} more values" * (len(mixed) > 1)
        graph.notes.append(f"{mixed[0].meta[NAME]}{more}: each entry depends on several samples of the batch")


def _float_notes(graph: fx.Graph) -> list[str]:
    where: dict[str, list[str]] = {}
    for node in graph.nodes:
        # What makes values from nothing (zeros, arange) has nothing to quantize, and getitem goes with its parent.
        computes = any(source.op != "get_attr" and is_float(source) for source in node.all_input_nodes)
        if node.op != "call_function" or op_name(node) == "getitem" or not computes:
            continue
        if role_of(node) is None and is_float(node):
            layers = where.setdefault(str(node.target), [])
            layer = layer_path(node) or "the model's forward"
            if layer not in layers:
                layers.append(layer)
    return [f"{op} in {', '.join(layers)} has no role and stays in float" for op, layers in where.items()]
