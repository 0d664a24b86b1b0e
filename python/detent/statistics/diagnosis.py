"""Finds where a NaN or an infinity came from, and says so in the user's terms."""

from __future__ import annotations

import torch
from torch import fx

from detent.errors import CalibrationError
from detent.graph import Graph
from detent.graph.executor import Executor
from detent.graph.tensors import read_attribute
from detent.statistics.batches import Batch
from detent.statistics.observation import Observation

__all__ = ["check_weights", "describe_node", "nonfinite_error"]


def describe_node(graph: Graph, node: fx.Node) -> str:
    """The value's name and the user's source line."""
    for value in graph.nodes():
        if value.node is node:
            return f"{value.name} ({value.source})" if value.source else value.name
    return node.name


def check_weights(graph: Graph) -> None:
    """Refuse parameters with NaN or infinity, or on another device.

    Raises:
        CalibrationError: names the parameter and the layer.
    """
    for value in graph.nodes():
        for node in value.node.all_input_nodes:
            if node.op != "get_attr":
                continue
            tensor = read_attribute(graph.module, str(node.target))
            if not isinstance(tensor, torch.Tensor):  # a branch of torch.cond
                continue
            if tensor.device.type != "cpu":
                raise CalibrationError(
                    f"{node.target} is on {tensor.device}, calibration runs on the CPU",
                    where=describe_node(graph, value.node),
                    remedy="capture the model after model.cpu()",
                )
            # A mask that is added to scores may hold -inf; a kernel or a norm's statistics may not.
            used = node in (value.weight, value.bias) or value.kind == "norm"
            trained = used or isinstance(tensor, torch.nn.Parameter)
            found = _nonfinite_kind(tensor)
            if found == "NaN" or (found and trained):
                raise CalibrationError(
                    f"{node.target} contains {found}",
                    where=describe_node(graph, value.node),
                    remedy="the float model itself is damaged; load a good checkpoint",
                )


def nonfinite_error(graph: Graph, observation: Observation, batch: Batch, first_sample: int) -> CalibrationError:
    """The error for a value that turned NaN or infinite, with the sample that did it.

    Args:
        graph: the captured model.
        observation: the first value, in the order of the graph, that is not finite.
        batch: the batch it happened in.
        first_sample: number of the batch's first sample in the data.
    """
    kinds: list[str] = []
    rows_found: list[int] = []

    def locate(_: int, value: torch.Tensor) -> None:
        rows = observation.samples_first(value)
        bad = ~torch.isfinite(rows).reshape(len(rows), -1).all(dim=1)
        if bool(bad.any()):
            kinds.append(_nonfinite_kind(value) or "NaN")
            rows_found.append(int(bad.nonzero()[0]))

    node = observation.value.node
    executor = Executor(graph.module, [node], lambda failed: describe_node(graph, failed))
    executor.show_constants(locate)
    executor.run(batch, locate)
    kind = kinds[0] if kinds else "NaN or infinity"
    if observation.attributed and rows_found:
        sample = f"sample {first_sample + rows_found[0]}"
    else:
        sample = f"the batch that starts at sample {first_sample}"
    if node.op == "placeholder":
        what = f"the calibration data contain {kind}, first in {sample}"
        remedy = "clean the data; check the normalization for a division by zero"
    else:
        what = f"{observation.name} computes {kind}, first for {sample}"
        remedy = (
            "run the float model on this sample: an overflow or a division by zero has to be repaired in the layer"
            " (in masks use a large negative number, not -inf)"
        )
    return CalibrationError(what, where=describe_node(graph, node), remedy=remedy)


def _nonfinite_kind(tensor: torch.Tensor) -> str | None:
    if not tensor.is_floating_point():
        return None
    # One read: a float64 sum of float32 numbers cannot overflow, and NaN and infinity survive it.
    total = tensor.detach().sum(dtype=torch.float64)
    if bool(torch.isfinite(total)):
        return None
    return "NaN" if bool(tensor.isnan().any()) else "infinity"
