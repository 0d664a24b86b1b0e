"""From a quantized model to its integer program: every value on a grid becomes one operation on codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import frexp, inf
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import fx
from torch.utils import _pytree as pytree

from detent.errors import ConfigError, UnsupportedOpError
from detent.graph.names import NAME, describe_place
from detent.graph.roles import argument, first_argument, op_name, role_of
from detent.graph.shapes import is_tensor
from detent.graph.tensors import read_tensor
from detent.integer import layers, moves, pools, tables
from detent.integer.arithmetic import RUNTIMES, Arithmetic
from detent.integer.code_grid import CodeGrid
from detent.integer.fixed_functions import SIGMOID_GRID
from detent.integer.operations import Concatenate, Move, Operation, Product, QuantizeInput, Sum, SumRule
from detent.integer.program import IntegerProgram, Overflow
from detent.records.plan import QuantPlan
from detent.targets import Target, load_target

__all__ = ["LowerableModel", "lower"]

_SMALLEST_RATIO: Final = 2.0**-20
_CLAMPS: Final = {"relu": (0.0, inf), "relu6": (0.0, 6.0)}


class LowerableModel(Protocol):
    """What lowering reads of a quantized model."""

    @property
    def graph_module(self) -> fx.GraphModule: ...

    @property
    def plan(self) -> QuantPlan: ...

    @property
    def output_names(self) -> Sequence[str]: ...


def lower(
    qmodel: LowerableModel,
    target: str | Path | Target | None = None,
    *,
    runtime: str | None = None,
    buffer_bits: int = 32,
    overflow: Overflow = "error",
) -> IntegerProgram:
    """The integer program of a quantized model: integer weights, biases and codes, with the factors between them.

    The program computes what the runtime's integer kernels compute on the exported file.

    Args:
        qmodel: a `QuantizedModel` whose values are all on grids.
        target: whose runtime rounds; None takes the one the model was quantized for.
        runtime: `"onnxruntime"`, `"xnnpack"`, `"tflite_micro"`, `"litert"`, `"litert_reference"` or `"akida"`, in
            place of the target's.
        buffer_bits: of the device's accumulators for 8-bit codes, 2 to 32. What they can reach is bounded by the
            weights, whatever the input.
        overflow: `"error"` refuses a layer whose accumulators could leave them, `"note"` keeps it; the notes of the
            program then name it, and those of a run what did leave them.

    Raises:
        ConfigError: this is no quantized model, target or runtime are unknown, or accumulators of a layer could leave
            the buffers.
        UnsupportedOpError: an operator or a grid has no integer form; the error names the layer.
    """
    if not hasattr(qmodel, "graph_module"):
        raise ConfigError(
            f"`qmodel` must be a quantized model, got a {type(qmodel).__name__}",
            remedy="quantize the model first: detent.quantize(model, data, target=...)",
        )
    if runtime is None:
        runtime = load_target(qmodel.plan.target if target is None else target).runtime
    buffers: dict[str, Any] = {"buffer_bits": buffer_bits, "overflow": overflow}
    lowering = _Lowering(qmodel.graph_module, qmodel.plan, RUNTIMES[runtime])
    for node in qmodel.graph_module.graph.nodes:
        try:
            lowering.visit(node)
        except UnsupportedOpError as error:
            raise UnsupportedOpError(
                error.what, where=error.where or describe_place(node), remedy=error.remedy
            ) from None
    return lowering.program(tuple(qmodel.output_names), runtime=runtime, **buffers)


def _refusal(node: fx.Node, what: str) -> UnsupportedOpError:
    return UnsupportedOpError(what, where=describe_place(node))


class _Lowering:
    def __init__(self, module: fx.GraphModule, plan: QuantPlan, arithmetic: Arithmetic) -> None:
        self._module = module
        self._plan = plan
        self._arithmetic = arithmetic
        self._taken = {str(node.meta.get(NAME, node.name)) for node in module.graph.nodes}
        self._operations: list[Operation] = []
        self._inputs: list[str] = []
        self._outputs: list[fx.Node] = []
        # Nodes whose values are on a grid, by what holds their codes.
        self._codes: dict[fx.Node, str] = {}
        self._grids: dict[str, CodeGrid] = {}
        self._rearranged: set[str] = set()

    def visit(self, node: fx.Node) -> None:
        """Take the next node of the network."""
        if node.op == "placeholder":
            self._inputs.append(str(node.meta.get(NAME, node.name)))
        elif node.op == "output":
            self._outputs = [leaf for leaf in pytree.tree_leaves(node.args[0]) if isinstance(leaf, fx.Node)]
        elif node.target is torch.ops.detent.fake_quantize.default:
            self._settle(node)
        elif node.target is torch.ops.detent.lut_fake_quantize.default:
            raise UnsupportedOpError("activations on a codebook have no integer form")
        elif node.op == "call_function" and self._reads_codes(node):
            self._move(node)

    def program(self, outputs: tuple[str, ...], **settings: Any) -> IntegerProgram:
        """The finished program."""
        ends = []
        for leaf, name in zip(self._outputs, outputs, strict=True):
            if leaf not in self._codes:
                raise UnsupportedOpError(
                    "an output is not on a grid, so it has no codes",
                    where=name,
                    remedy="quantize for a target whose outputs are on grids, onnxruntime or tflite for instance",
                )
            ends.append(self._codes[leaf])
        return IntegerProgram(
            operations=tuple(self._operations),
            inputs=tuple(self._inputs),
            outputs=tuple(ends),
            output_names=outputs,
            **settings,
        )

    def _reads_codes(self, node: fx.Node) -> bool:
        """Whether it hands the grid of its input on."""
        role = role_of(node)
        if role is None or not role.preserving:
            return False
        sources = [argument(node, name) for name in role.data] or [first_argument(node)]
        return all(source in self._codes for source in sources if isinstance(source, fx.Node))

    def _add(self, node: fx.Node, operation: Operation) -> None:
        self._operations.append(operation)
        self._codes[node] = operation.output
        self._grids[operation.output] = operation.grid

    def _fresh(self, name: str) -> str:
        """A name for a tensor that the network has no name for."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def _move(self, node: fx.Node) -> None:
        source = self._codes[first_argument(node)]
        if not is_tensor(node):
            self._codes[node] = source  # a split: its items are moves
            return
        ends: dict[str, Any] = {
            "inputs": (source,),
            "output": str(node.meta.get(NAME, node.name)),
            "grid": self._grids[source],
        }
        if op_name(node).startswith("max_pool"):
            self._add(node, pools.maximum(node, **ends))
            return
        places, shape = moves.places_of(node)
        if places is not None:
            self._rearranged.add(ends["output"])
        self._add(node, Move(places=places, shape=shape, **ends))

    def _settle(self, node: fx.Node) -> None:
        """A value that passes a grid: the operation it is computed by, with what is fused behind it."""
        name = str(node.meta.get(NAME, node.name))
        grid = self._grid_of(node)
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if source.op == "placeholder":
            away = self._arithmetic.ties_away
            self._add(
                node, QuantizeInput(inputs=(name,), output=self._fresh(f"{name}_codes"), grid=grid, ties_away=away)
            )
            return
        for lower, upper, before in self._clamps(source):
            grid, source = grid.clamped(lower, upper), before
        self._add(node, self._computed(source, name, grid))

    def _clamps(self, node: fx.Node) -> Iterator[tuple[float, float, fx.Node]]:
        """Limits of the clamps a value passes behind the operation that computes it, the last one first."""
        while True:
            role = role_of(node)
            before = first_argument(node) if node.op == "call_function" else None
            if role is None or not isinstance(before, fx.Node) or before in self._codes:
                return
            if role.name in _CLAMPS:
                lower, upper = _CLAMPS[role.name]
            elif role.name == "hardtanh" and op_name(node) in ("hardtanh", "clamp"):
                names = ("min_val", "max_val") if op_name(node) == "hardtanh" else ("min", "max")
                given = [argument(node, one) for one in names]
                if any(isinstance(one, fx.Node) for one in given):
                    raise UnsupportedOpError("clamps of single channels have no integer form yet")
                lower, upper = (end if one is None else float(one) for end, one in zip((-inf, inf), given, strict=True))
            else:
                return
            yield lower, upper, before
            node = before

    def _computed(self, node: fx.Node, name: str, grid: CodeGrid) -> Operation:
        role = role_of(node)
        kind = "" if role is None else role.kind
        operands = [one for one in node.all_input_nodes if not self._is_stored(one)]
        missing = [one for one in operands if one not in self._codes]
        if role is None or missing or not operands:
            what = op_name(node) if node.op == "call_function" else node.op
            raise _refusal(node, f"{what} has no integer form: it does not read codes")
        if self._arithmetic.kinds is not None and kind not in self._arithmetic.kinds:
            raise _refusal(node, f"this runtime has no {op_name(node)}")
        inputs = tuple(self._codes[one] for one in operands)
        sources = tuple(self._grids[one] for one in inputs)
        ends: dict[str, Any] = {"inputs": inputs, "output": name, "grid": grid}
        if kind in ("add", "sub", "mul") and len(operands) == 2:
            return self._of_two(node, kind, sources, ends)
        if kind == "cat":
            return self._concatenated(node, ends)
        if len(operands) == 1 and kind in ("conv", "conv_transposed", "linear", "matmul"):
            ends["bits"] = self._kernel_bits(node)
        if len(operands) == 1 and kind in _BUILDERS:
            return _BUILDERS[kind](node, sources[0], self._stored, self._arithmetic, ends)
        if len(operands) == 1 and role.name == "silu" and self._arithmetic.functions == "fixed_point":
            return self._gated(inputs[0], ends)
        if len(operands) == 1 and kind in _SINGLE_VALUES:
            return tables.table(node, operands[0], sources[0], self._stored, self._arithmetic, ends)
        raise _refusal(node, f"{op_name(node)} has no integer form yet")

    def _of_two(self, node: fx.Node, kind: str, sources: tuple[CodeGrid, ...], ends: dict[str, Any]) -> Operation:
        shapes = {moves.sample_shape(one) for one in node.all_input_nodes}
        if len({len(shape) for shape in shapes}) > 1:
            raise UnsupportedOpError(f"{op_name(node)} of tensors of different ranks has no integer form yet")
        if kind == "mul":
            return Product(sources=sources, fixed_point=self._arithmetic.fixed_point, **ends)
        if argument(node, "alpha") != 1:
            raise UnsupportedOpError(f"{op_name(node)} with alpha has no integer form yet")
        operands = [argument(node, one) for one in ("self", "other")]
        if op_name(node) == "rsub":
            operands.reverse()
        names = tuple(self._codes[one] for one in operands)
        ratios = [self._grids[name].scale / ends["grid"].scale for name in names]
        if not all(_SMALLEST_RATIO <= ratio <= 1 / _SMALLEST_RATIO for ratio in ratios):
            raise UnsupportedOpError("steps of its inputs and its output differ by more than 2^20")
        rule = self._rule_of_sum(names, negative=kind == "sub")
        scales = [*(self._grids[name].scale for name in names), ends["grid"].scale]
        if rule == "aligned" and any(frexp(scale)[0] != 0.5 for scale in scales):
            raise UnsupportedOpError(
                "this runtime aligns what it adds by powers of two, and steps here are none",
                remedy="give these values power_of_two grids",
            )
        return Sum(
            sources=(self._grids[names[0]], self._grids[names[1]]),
            negative=kind == "sub",
            rule=rule,
            **{**ends, "inputs": names},
        )

    def _rule_of_sum(self, names: tuple[str, ...], *, negative: bool) -> SumRule:
        rule = self._arithmetic.sums
        if rule == "fused_float" and (negative or any(name in self._rearranged for name in names)):
            return "float"
        return rule

    def _gated(self, source: str, ends: dict[str, Any]) -> Operation:
        """SiLU where there is no operator for it: a product with the sigmoid, which has the grid it always has."""
        gate = {"inputs": (source,), "output": self._fresh(f"{ends['output']}_gate"), "grid": SIGMOID_GRID}
        self._operations.append(tables.fixed("sigmoid", self._grids[source], gate))
        sources = (self._grids[source], SIGMOID_GRID)
        return Product(sources=sources, fixed_point=True, **{**ends, "inputs": (source, gate["output"])})

    def _kernel_bits(self, node: fx.Node) -> int:
        """Width of the codes of a layer's kernel, which several layers may share."""
        role = role_of(node)
        read = argument(node, role.weight) if role is not None and role.weight is not None else None
        for user in read.users if isinstance(read, fx.Node) else ():
            entry = self._plan.weights.get(str(user.meta.get(NAME)))
            if entry is not None and entry.grid is not None:
                return entry.grid.bits
        raise UnsupportedOpError("its kernel is not on a grid, so it has no codes")

    def _concatenated(self, node: fx.Node, ends: dict[str, Any]) -> Operation:
        if op_name(node) not in ("cat", "concat", "concatenate"):
            raise UnsupportedOpError(f"{op_name(node)} has no integer form yet")
        parts = [self._codes[one] for one in argument(node, "tensors")]
        axis = int(argument(node, "dim")) % (1 + len(moves.sample_shape(node)))
        if axis == 0:
            raise UnsupportedOpError("samples side by side have no integer form")
        grid: CodeGrid = ends["grid"]
        names = []
        for place, part in enumerate(parts):
            if self._grids[part].is_within(grid):
                names.append(part)
                continue
            output = self._fresh(f"{ends['output']}_part_{place}")
            between: dict[str, Any] = {"inputs": (part,), "output": output, "grid": grid}
            self._operations.append(tables.requantizing(self._grids[part], self._arithmetic, between))
            names.append(output)
        return Concatenate(axis=axis, **{**ends, "inputs": tuple(names)})

    def _grid_of(self, node: fx.Node) -> CodeGrid:
        scale, zero_point = (read_tensor(self._module, str(one.target)) for one in node.args[1:3])  # type: ignore[union-attr]
        if scale.numel() > 1:
            raise UnsupportedOpError(
                "activations with a step for each channel have no integer form",
                remedy="plan with activation_per_channel=False",
            )
        lowest, highest = (int(argument(node, name)) for name in ("qmin", "qmax"))
        return CodeGrid.of(float(scale), int(zero_point), lowest, highest)

    def _is_stored(self, node: fx.Node) -> bool:
        targets = (torch.ops.detent.dequantize.default, torch.ops.detent.lut_dequantize.default)
        return node.op == "get_attr" or node.target in targets

    def _stored(self, node: fx.Node) -> tuple[torch.Tensor, ...]:
        """A stored tensor; or codes with what they are expanded by."""
        if node.op == "get_attr":
            return (read_tensor(self._module, str(node.target)).detach().cpu(),)
        return tuple(
            read_tensor(self._module, str(one.target)).detach().cpu() for one in node.args if isinstance(one, fx.Node)
        )


_SINGLE_VALUES: Final = frozenset({"activation", "elementwise", "add", "sub", "mul", "div"})
_BUILDERS: Final[dict[str, Callable[..., Operation]]] = {
    "conv": layers.convolution,
    "conv_transposed": layers.transposed_convolution,
    "linear": layers.linear,
    "matmul": layers.linear,
    "pool": pools.average,
    "mean": pools.mean,
}
