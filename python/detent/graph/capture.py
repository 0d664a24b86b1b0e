"""`capture`: from a PyTorch model to a `Graph`, by `torch.export`."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from detent.errors import CaptureError
from detent.graph import functional, role_table  # noqa: F401  (importing the table fills the registry of roles)
from detent.graph.archive import load_program
from detent.graph.diagnosis import explain_failure, first_line
from detent.graph.example import Example, bind_example
from detent.graph.graph import BatchSpec, Graph, InputSpec
from detent.graph.names import assign_names, layer_path
from detent.graph.roles import op_name, role_of
from detent.graph.shapes import concrete_shape, is_float, is_tensor, value_of

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
            of one is repeated for tracing. Not needed for an exported program.
        dynamic_batch: let the graph run any number of samples. If the model cannot be exported so, the batch is
            fixed to the example's, and a note says why.

    Raises:
        CaptureError: the model cannot be traced, or the example does not fit it.
        FormatError: the `.pt2` file is missing, damaged, or would need unpickling.
    """
    notes: list[str] = []
    if isinstance(model, str | os.PathLike):
        model = load_program(model)
    if isinstance(model, ExportedProgram):
        program = model
    elif isinstance(model, nn.Module):
        program = _export(model, example_inputs, dynamic_batch, notes)
    else:
        raise CaptureError(
            f"cannot capture a {type(model).__name__}",
            remedy="give a torch.nn.Module, a torch.export.ExportedProgram or the path of a .pt2 file",
        )
    return _graph_of(program, notes)


def _export(model: nn.Module, example_inputs: Any, dynamic_batch: bool, notes: list[str]) -> ExportedProgram:
    if example_inputs is None:
        raise CaptureError("capturing a module needs example inputs", remedy="pass one batch as `example_inputs`")
    example = bind_example(model.forward, example_inputs)
    notes += example.notes
    if any(module.training for module in model.modules()):
        notes.append("the model was in training mode: it was captured as in evaluation mode (model.eval())")
    with _evaluating(model):
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
    with _quiet():
        return torch.export.export(model, example.args, example.kwargs, dynamic_shapes=dynamic_shapes, strict=False)


def _batch_dims(model: nn.Module, example: Example) -> Any:
    batch = Dim("batch", min=1)
    bound = inspect.signature(model.forward).bind(*example.args, **example.kwargs).arguments
    shapes = pytree.tree_map(lambda leaf: {0: batch} if example.is_batched(leaf) else None, dict(bound))
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD and name in shapes:
            shapes.update(shapes.pop(name))
    return shapes


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


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide warnings that torch's exporter raises about its own code."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\.|copyreg")
        yield


def _graph_of(program: ExportedProgram, notes: list[str]) -> Graph:
    with _quiet():
        exported = _plain_module(program)
        if functional.has_unsafe_mutation(exported.graph):
            exported = _plain_module(program.run_decompositions({}))
    written = functional.drop_state_updates(exported.graph)
    if written:
        notes.append(f"the model writes to its buffers {', '.join(written)}: the graph keeps their present values")
    functional.swap_in_place(exported.graph)
    functional.restore_batch_norm(exported.graph)
    functional.fold_constants(exported)
    exported.graph.eliminate_dead_code()
    module = fx.GraphModule(exported, exported.graph)
    assign_names(module.graph)
    inputs, batch = _inputs_of(module.graph)
    return Graph(module, inputs=inputs, batch=batch, notes=[*notes, *_float_notes(module.graph)])


def _plain_module(program: ExportedProgram) -> fx.GraphModule:
    try:
        module = program.module(check_guards=False)
    except TypeError:  # before torch 2.9 there are no guards to leave out
        module = program.module()
    assert isinstance(module, fx.GraphModule)
    functional.drop_checks(module)
    return module


def _inputs_of(graph: fx.Graph) -> tuple[tuple[InputSpec, ...], BatchSpec]:
    placeholders = [node for node in graph.nodes if node.op == "placeholder" and is_tensor(node)]
    if not placeholders:
        raise CaptureError("the captured model takes no tensor", remedy="capture a module that has tensor inputs")
    symbols = [_leading_symbol(node) for node in placeholders]
    symbol = next((s for s in symbols if s is not None), None)
    first = next((n for n, s in zip(placeholders, symbols, strict=True) if s == symbol and value_of(n).dim()), None)
    size = concrete_shape(first)[0] if first is not None else 1
    specs = []
    for node, own in zip(placeholders, symbols, strict=True):
        shape = concrete_shape(node)
        batched = own == symbol if symbol is not None else bool(shape) and shape[0] == size
        specs.append(
            InputSpec(
                name=str(node.target),
                key=_key_of(node),
                shape=shape,
                dtype=value_of(node).dtype,
                batch_axis=0 if batched else None,
            )
        )
    return tuple(specs), BatchSpec(size=size, symbol=symbol)


def _leading_symbol(node: fx.Node) -> str | None:
    shape = value_of(node).shape
    size = shape[0] if len(shape) else None
    return str(size) if isinstance(size, torch.SymInt) else None


def _key_of(node: fx.Node) -> str | None:
    # Export joins the path of a nested input with underscores; the codegen's input spec knows the true keys.
    graph = node.graph
    info = getattr(graph._codegen, "pytree_info", None)
    if info is None:
        return None
    order = [n for n in graph.nodes if n.op == "placeholder"]
    paths = pytree.tree_flatten_with_path(pytree.tree_unflatten(list(range(len(order))), info.in_spec))[0]
    path, _ = paths[order.index(node)]
    return str(path[-1].key) if isinstance(path[-1], pytree.MappingKey) else None


def _float_notes(graph: fx.Graph) -> list[str]:
    where: dict[str, list[str]] = {}
    for node in graph.nodes:
        if node.op == "call_function" and role_of(node) is None and is_float(node) and op_name(node) != "getitem":
            layers = where.setdefault(str(node.target), [])
            layer = layer_path(node) or "the model's forward"
            if layer not in layers:
                layers.append(layer)
    return [f"{op} in {', '.join(layers)} has no role and stays in float" for op, layers in where.items()]
