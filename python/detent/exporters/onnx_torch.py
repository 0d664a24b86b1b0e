"""First half of the ONNX export: torch's own exporter, with quantizers kept as opaque operators.

`detent::fake_quantize` and `detent::dequantize` become nodes of a private ONNX domain that still hold float scales,
int32 zero points and codes in torch's storage types; `onnx_lowering` turns them into `QuantizeLinear` and
`DequantizeLinear` once everything is known. Because the exporter's optimizer does not know these nodes, it cannot fold
integer weights back into float ones.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import fx

from detent.errors import ExportError
from detent.exporters.subject import ExportableModel
from detent.graph.names import NAME, SOURCE
from detent.records.plan import QuantPlan

__all__ = ["DOMAIN", "Quantizer", "Tagged", "least_opset", "tag_quantizers", "translate"]

DOMAIN: Final = "detent"
"""ONNX domain of the opaque quantizers; none is left in a finished file."""

_QUANTIZERS: Final = ("fake_quantize", "dequantize", "lut_fake_quantize", "lut_dequantize")


@dataclass(frozen=True, kw_only=True)
class Quantizer:
    """What the ONNX graph must know of one quantizer besides its tensors.

    Args:
        name: detent's name of the value that is quantized.
        bits: width of the codes where the grid is known; None leaves it to the storage type (biases).
        where: name of the value and the user's source line, for errors.
    """

    name: str
    bits: int | None
    where: str


@dataclass(frozen=True, kw_only=True)
class Tagged:
    """A module whose quantizers each own a scale buffer, and what each of them is, by that buffer's name."""

    module: fx.GraphModule
    quantizers: Mapping[str, Quantizer]


def tag_quantizers(qmodel: ExportableModel) -> Tagged:
    """Give every quantizer a scale buffer of its own, whose name survives the export and identifies it.

    The model is left as it is; tensors other than scales are shared with it.

    Raises:
        ExportError: a quantizer whose scale is computed, or one that ONNX cannot express.
    """
    source = qmodel.graph_module
    # A plain copy has flat inputs and outputs, whatever structure the user's model has.
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    result = graph.graph_copy(source.graph, copies)
    graph.output(result)
    module = fx.GraphModule(source, graph)
    quantizers: dict[str, Quantizer] = {}
    for node in list(graph.nodes):
        if node.op == "call_module" and str(node.target).endswith("_guards_fn"):
            graph.erase_node(node)  # torch.export's input checks; the exported file has its own shapes
        operator = _quantizer_name(node)
        if operator is None:
            continue
        if operator == "lut_fake_quantize":
            raise ExportError(
                "ONNX has no operator for activations on a codebook grid",
                where=_where(node),
                remedy="give this activation a uniform, symmetric or power_of_two grid",
            )
        scale = _argument(node, 1, "scale")
        if not isinstance(scale, fx.Node) or scale.op != "get_attr":
            raise ExportError("the scale of a quantizer is not a stored tensor", where=_where(node))
        buffer = f"quantizer_{len(quantizers)}"
        module.register_buffer(buffer, _attribute(source, str(scale.target)).detach().clone())
        with graph.inserting_before(node):
            own = graph.get_attr(buffer)
        own.meta = dict(scale.meta)
        node.replace_input_with(scale, own)
        quantizers[buffer] = _describe(node, source, qmodel.plan)
    graph.lint()
    module.recompile()
    return Tagged(module=module, quantizers=quantizers)


def _quantizer_name(node: fx.Node) -> str | None:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    namespace, _, name = node.target._schema.name.partition("::")
    return name if namespace == "detent" and name in _QUANTIZERS else None


def _argument(node: fx.Node, position: int, name: str) -> Any:
    return node.args[position] if position < len(node.args) else node.kwargs.get(name)


def _attribute(module: torch.nn.Module, target: str) -> torch.Tensor:
    owner, _, name = target.rpartition(".")
    tensor = getattr(module.get_submodule(owner), name)
    assert isinstance(tensor, torch.Tensor)
    return tensor


def _describe(node: fx.Node, module: fx.GraphModule, plan: QuantPlan) -> Quantizer:
    subject = _argument(node, 0, "x")
    if subject.op != "get_attr":
        name = str(subject.meta.get(NAME, subject.name))
        return Quantizer(name=name, bits=None, where=_where(subject))
    name = re.sub(r"[._]codes$", "", str(subject.target))
    whole = _attribute(module, str(subject.target)).dtype == torch.int32
    return Quantizer(name=name, bits=None if whole else _weight_bits(node, name, plan), where=_where(node, name))


def _weight_bits(node: fx.Node, name: str, plan: QuantPlan) -> int | None:
    """Width of a kernel's codes: its layer's entry in the plan, or that of a stored activation."""
    for user in node.users:
        entry = plan.weights.get(str(user.meta.get(NAME)))
        if entry is not None and entry.grid is not None:
            return entry.grid.bits
    grid = plan.activation_grid(name) if name in plan.activations else None
    return None if grid is None else grid.bits


def _where(node: fx.Node, name: str | None = None) -> str:
    name = name or str(node.meta.get(NAME, node.name))
    lines = [node.meta.get(SOURCE), *(user.meta.get(SOURCE) for user in node.users)]
    line = next((line for line in lines if line), None)
    return name if line is None else f"{name} ({line})"


def least_opset(tagged: Tagged) -> tuple[int, str]:
    """The lowest opset that holds every quantizer of the module, and why."""
    for node in tagged.module.graph.nodes:
        operator = _quantizer_name(node)
        if operator is None:
            continue
        quantizer = tagged.quantizers[str(_argument(node, 1, "scale").target)]
        if operator == "fake_quantize":
            qmin, qmax = _argument(node, 3, "qmin"), _argument(node, 4, "qmax")
            if qmin < -128 or qmax > (127 if qmin < 0 else 255):
                return 21, f"16-bit codes of {quantizer.name!r} came with opset 21"
            continue
        codes = _attribute(tagged.module, str(_argument(node, 0, "codes").target))
        if codes.dtype in (torch.int16, torch.uint16):
            return 21, f"16-bit codes of {quantizer.name!r} came with opset 21"
        if quantizer.bits is not None and quantizer.bits <= 4 and codes.dtype != torch.int32:
            return 21, f"4-bit codes of {quantizer.name!r} came with opset 21"
        if operator == "dequantize" and _argument(node, 4, "group_size") is not None:
            return 21, f"scales per group of {quantizer.name!r} came with opset 21"
    return 18, "torch's exporter writes opset 18 and newer"


def translate(qmodel: ExportableModel, tagged: Tagged, opset: int) -> Any:
    """Export a tagged module and return the `onnx.ModelProto`, quantizers still opaque.

    Raises:
        ExportError: torch cannot export an operator of the model; the error names it and the user's source line.
    """
    batch = torch.export.Dim("batch", min=1)
    shapes = [{spec.batch_axis: batch} if spec.batch_axis is not None else None for spec in qmodel.inputs]
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(
                tagged.module, qmodel.example, dynamic_shapes=tuple(shapes) if qmodel.dynamic_batch else None
            )
            onnx_program = torch.onnx.export(
                program,
                opset_version=opset,
                dynamo=True,
                verbose=False,
                external_data=False,
                custom_translation_table=_translations(),
            )
            assert onnx_program is not None
            return onnx_program.model_proto
    except Exception as error:
        raise _export_error(error, qmodel.graph_module, opset) from error


def _translations() -> dict[Any, Any]:
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset

    domain = Opset(DOMAIN, 1)

    def operator(name: str, inputs: dict[str, str], attributes: tuple[str, ...]) -> Op:
        codes = ["tensor(int8)", "tensor(uint8)", "tensor(int16)", "tensor(uint16)", "tensor(int32)"]
        schema = OpSchema(
            name,
            DOMAIN,
            1,
            inputs=[OpSchema.FormalParameter(key, kind) for key, kind in inputs.items()],
            outputs=[OpSchema.FormalParameter("value", "tensor(float)")],
            type_constraints=[("C", codes, "codes")] if "C" in inputs.values() else [],
            attributes=[OpSchema.Attribute(key, OpSchema.AttrType.INT, "", required=False) for key in attributes],
        )
        return Op(domain, name, schema)

    real, whole = "tensor(float)", "tensor(int32)"
    fake_quantize = operator(
        "FakeQuantize", {"x": real, "scale": real, "zero_point": whole}, ("qmin", "qmax", "axis", "group_size")
    )
    dequantize = operator("Dequantize", {"codes": "C", "scale": real, "zero_point": whole}, ("axis", "group_size"))
    lut_dequantize = operator("LutDequantize", {"codes": "C", "scale": real, "table": real}, ("axis",))

    def on_fake_quantize(
        x: Any, scale: Any, zero_point: Any, qmin: int, qmax: int, axis: Any = None, group_size: Any = None
    ) -> Any:
        return fake_quantize(x, scale, zero_point, qmin=qmin, qmax=qmax, axis=axis, group_size=group_size)

    def on_dequantize(codes: Any, scale: Any, zero_point: Any, axis: Any = None, group_size: Any = None) -> Any:
        return dequantize(codes, scale, zero_point, axis=axis, group_size=group_size)

    def on_lut_dequantize(codes: Any, scale: Any, table: Any, axis: Any = None) -> Any:
        return lut_dequantize(codes, scale, table, axis=axis)

    operators = torch.ops.detent
    return {
        operators.fake_quantize.default: on_fake_quantize,
        operators.dequantize.default: on_dequantize,
        operators.lut_dequantize.default: on_lut_dequantize,
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # The exporter logs about libraries that are not installed and warns about its own internals; what matters to a
    # user comes back as an exception or is checked on the finished file.
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _export_error(error: BaseException, module: fx.GraphModule, opset: int) -> ExportError:
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    text = "\n".join(str(link) for link in chain)
    target = re.search(r"call_function\[target=torch\.ops\.([\w.]+)\]", text)
    if target is None:
        return ExportError(
            f"torch cannot export the model to ONNX opset {opset}: {_first_line(chain[-1])}",
            remedy="check that torch.onnx.export(..., dynamo=True) exports the float model",
        )
    operator = target.group(1)
    node = _culprit(module, operator)
    return ExportError(
        f"the operator {operator} has no ONNX form at opset {opset}: {_first_line(chain[-1])}",
        where=None if node is None else _where(node),
        remedy="ask for a newer opset, update onnxscript, or replace the operator in the model",
    )


def _culprit(module: fx.GraphModule, operator: str) -> fx.Node | None:
    """The node behind an operator that failed after decomposition: `prims.sin` comes from `aten.sin`, for instance."""
    word = operator.split(".")[1]
    calls = [node for node in module.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    names = {node: node.target._schema.name.partition("::")[2] for node in calls}
    exact = [node for node in calls if names[node] == word]
    return next(iter(exact or [node for node in calls if names[node].endswith(word)]), None)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
