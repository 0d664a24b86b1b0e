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
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import fx

from detent.errors import ExportError
from detent.exporters.onnx_tagging import TAGGED, Tagged
from detent.exporters.subject import ExportableModel
from detent.graph.names import describe_place

__all__ = ["DOMAIN", "translate"]

DOMAIN: Final = "detent"
"""ONNX domain of the opaque quantizers; none is left in a finished file."""


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

    def operator(name: str, inputs: dict[str, str], numbers: tuple[str, ...]) -> Op:
        codes = ["tensor(int8)", "tensor(uint8)", "tensor(int16)", "tensor(uint16)", "tensor(int32)"]
        schema = OpSchema(
            name,
            DOMAIN,
            1,
            inputs=[OpSchema.FormalParameter(key, kind) for key, kind in inputs.items()],
            outputs=[OpSchema.FormalParameter("value", real)],
            type_constraints=[("C", codes, "codes")] if "C" in inputs.values() else [],
            attributes=[OpSchema.Attribute(key, OpSchema.AttrType.INT, "", required=False) for key in numbers],
        )
        return Op(domain, name, schema)

    real, whole = "tensor(float)", "tensor(int32)"
    layout = ("axis", "group_size", "tag")
    fake_quantize = operator("FakeQuantize", {"x": real, "scale": real, "zero_point": whole}, ("qmin", "qmax", *layout))
    dequantize = operator("Dequantize", {"codes": "C", "scale": real, "zero_point": whole}, layout)
    lut_dequantize = operator("LutDequantize", {"codes": "C", "scale": real, "table": real}, layout)

    # The exporter reads parameter names and defaults off these functions.
    def on_fake_quantize(  # type: ignore[no-untyped-def]
        x, scale, zero_point, qmin, qmax, axis=None, group_size=None, tag=0
    ) -> Any:
        numbers = {"qmin": qmin, "qmax": qmax, "axis": axis, "group_size": group_size, "tag": tag}
        return fake_quantize(x, scale, zero_point, **numbers)

    def on_dequantize(codes, scale, zero_point, axis=None, group_size=None, tag=0) -> Any:  # type: ignore[no-untyped-def]
        return dequantize(codes, scale, zero_point, axis=axis, group_size=group_size, tag=tag)

    def on_lut_dequantize(codes, scale, table, axis=None, group_size=None, tag=0) -> Any:  # type: ignore[no-untyped-def]
        return lut_dequantize(codes, scale, table, axis=axis, group_size=group_size, tag=tag)

    return {
        TAGGED["fake_quantize"]: on_fake_quantize,
        TAGGED["dequantize"]: on_dequantize,
        TAGGED["lut_dequantize"]: on_lut_dequantize,
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
        where=None if node is None else describe_place(node),
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
