"""Kernels rounded on data, behind a plan: the step between planning and applying."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detent._arguments import check_plan_is_of, expect
from detent.config import GptqConfig
from detent.correcting import samples_held
from detent.errors import CalibrationError
from detent.graph import Graph, GraphNode
from detent.graph.biases import correctable_layers
from detent.graph.patches import has_rows, kernel_rows
from detent.graph.placement import Placement, WeightPoint, place
from detent.graph.shifts import missing_from_bias
from detent.quantized import assemble
from detent.records.codes import KernelCodes
from detent.records.correction import BiasCorrection
from detent.records.plan import QuantPlan, TensorPlan
from detent.rounding import KernelRows, Objective, Rounded, Settled, Swept, round_kernel, sweep
from detent.statistics import first_samples, progress_bar
from detent.targets import load_target
from detent.thresholds import avoid_ties

__all__ = ["round_kernels"]

_LONGEST: Final = 4608
"""Longest patch with a Hessian: 512 channels of a 3 x 3 kernel, 170 MB."""

Floats = npt.NDArray[np.float32]


def round_kernels(
    graph: Graph,
    plan: QuantPlan,
    data: Any,
    *,
    options: GptqConfig | Mapping[str, Any] | None = None,
    progress: bool = True,
) -> QuantPlan:
    """A plan whose kernels are rounded for the least error at their layers' outputs, one layer after the other.

    GPTQ (Frantar et al. 2022, arXiv:2210.17323) on the inputs that the quantized layers before give, towards what the
    float layer makes of its own inputs; then coordinate descent, or the exact search where rows are short, in turn with
    steps fitted to the codes. Gains are dropped, since rounding makes up for what they do. The last quarter of the
    samples judges: a kernel that does not gain there keeps its former rounding, and a note names it. Biases take up the
    means, unless the plan's options say that they are not to be corrected. Frozen kernels stay as they are, kernels of
    several layers too.

    Args:
        graph: the captured network.
        plan: made for it.
        data: calibration batches in any form `calibrate` takes.
        options: a `GptqConfig`, or a mapping of its fields.
        progress: show a progress bar, if the error output is a terminal.

    Raises:
        CalibrationError: there are fewer than two samples, they do not fit the model, or a value is not finite.
        ConfigError: the plan is not for this graph, or an option is wrong.
    """
    expect(graph, Graph, "graph", "detent.capture")
    check_plan_is_of(plan, graph.fingerprint(), "plan")
    settings = GptqConfig.of(options, "options")
    batches = first_samples(graph, data, min(settings.samples, samples_held(graph)), parts=4)
    if len(batches) < 2:
        raise CalibrationError(
            "the samples make one batch, which cannot be split into some to round for and some to judge by",
            remedy="give more samples",
        )
    placement = place(graph, load_target(plan.target))
    rounding = _Rounding(graph, plan, placement, settings)
    quantized = assemble(graph, plan).graph_module if settings.inputs == "quantized" else None
    with progress_bar("rounding kernels", "layers", len(rounding.layers), wanted=progress) as show:
        constant = sweep(
            graph,
            quantized,
            rounding.layers,
            batches,
            max(1, len(batches) // 4),
            rounding.settle,
            seed=settings.seed,
            show=show,
        )
    return rounding.finished(constant)


class _Rounding:
    """Decides for one layer after the other, and gathers what was decided."""

    def __init__(self, graph: Graph, plan: QuantPlan, placement: Placement, options: GptqConfig) -> None:
        self._graph, self._plan, self._options = graph, plan, options
        self._placement = placement
        self._tie_free = bool(plan.config.get("tie_free", True))
        self._notes: list[str] = []
        self._entries: dict[str, TensorPlan] = {}
        self._corrections: dict[str, BiasCorrection] = {}
        self._worse: list[str] = []
        self._few: dict[str, str] = {}
        takes_means = correctable_layers(graph, placement) if plan.config.get("bias_correction") != "none" else {}
        self.layers = [
            Swept(node=node, central=node.name in takes_means)
            for layer, point in placement.weights.items()
            if (node := self._roundable(graph.find(layer), point)) is not None
        ]

    def _roundable(self, node: GraphNode, point: WeightPoint) -> GraphNode | None:
        """The layer, if its kernel can be rounded here; a note says why not."""
        entry = self._plan.weights[point.layer]
        if entry.grid is None or entry.frozen:
            return None
        why = None
        if len(point.users) > 1:
            why = f"several layers share it ({', '.join(point.users)})"
        elif not has_rows(node) or node.channel_axis is None:
            why = "its layer is no product of rows and patches"
        elif (length := self._length(node)) > _LONGEST:
            why = f"its rows of {length} elements are longer than {_LONGEST}"
        if why is not None:
            self._notes.append(f"the kernel of {point.layer} keeps its former rounding: {why}")
        return node if why is None else None

    def _length(self, node: GraphNode) -> int:
        return int(kernel_rows(node, self._kernel(node)).shape[2])

    def _kernel(self, node: GraphNode) -> Floats:
        assert node.weight is not None
        return np.ascontiguousarray(self._graph.tensor(node.weight).detach().cpu().numpy())

    def settle(self, layer: Swept, learned: Objective, judged: Objective) -> Settled:
        """Round the kernel of a layer, if that is better on the samples that judge, and correct its bias."""
        node, name = layer.node, layer.node.name
        entry, kernel = self._plan.weights[name], self._kernel(node)
        assert entry.grid is not None
        rows = KernelRows(layer=node, shape=kernel.shape, grid=entry.grid)
        found = round_kernel(kernel, entry.codes_of(kernel), rows, learned, self._options)
        before = entry.rounded(kernel)
        better = self._on_its_grid(name, found)
        after = better.rounded(kernel)
        self._note(name, found.dead, learned.count, rows.of(kernel).shape[2])
        if judged.cost(rows.of(after)) < judged.cost(rows.of(before)):
            self._entries[name] = better
        else:
            self._worse.append(name)
            after = before
        return Settled(kernel=after, shift=self._corrected(layer, rows, learned, before, after))

    def _on_its_grid(self, name: str, found: Rounded) -> TensorPlan:
        """The entry of a layer with new codes; where steps were fitted, they are free of ties again as others are."""
        entry = replace(self._plan.weights[name], grid=found.grid, gain=None, error=None)
        if self._tie_free and found.grid is not self._plan.weights[name].grid:
            others = [layer for layer in self._plan.weights if layer != name]
            weights = {**self._plan.weights, name: entry}
            entry = avoid_ties(self._graph, self._placement, self._plan.activations, weights, others)[name]
        assert entry.grid is not None
        return replace(entry, codes=KernelCodes(codes=found.codes, method="gptq", grid=entry.grid))

    def _corrected(
        self, layer: Swept, rows: KernelRows, learned: Objective, before: Floats, after: Floats
    ) -> npt.NDArray[np.float64] | None:
        """Correct the bias for the new kernel: what the quantized network adds to the layer's output from now on."""
        if not layer.central:
            return None
        name, wanted = layer.node.name, learned.bias(rows.of(after))
        self._corrections[name] = BiasCorrection(shift=wanted.astype(np.float32), method="gptq")
        former = self._plan.bias_corrections.get(name)
        shift = wanted if former is None else wanted - former.shift
        # The network still takes back what the former kernel made of a constant in its input.
        missing = missing_from_bias(layer.node, before.astype(np.float64) - after)
        return shift if missing is None else shift + missing

    def _note(self, name: str, dead: int, patches: int, length: int) -> None:
        if dead:
            self._notes.append(f"{name}: {dead} inputs of its kernel are the same in all samples and tell nothing")
        if patches < length:
            self._few[name] = f"{name} ({patches} for rows of {length})"

    def finished(self, constant: list[str]) -> QuantPlan:
        """The plan with everything that was decided."""
        notes = list(self._notes)
        if constant:
            notes.append(f"the kernels of {', '.join(constant)} keep their rounding: their layers do not see the data")
        if self._worse:
            notes.append(f"rounding made {', '.join(self._worse)} no better on held-out samples and was left out")
        if self._few:
            notes.append(f"fewer patches than elements of a row, so rounding guesses: {', '.join(self._few.values())}")
        plan = self._plan
        return replace(
            plan,
            weights={**plan.weights, **self._entries},
            bias_corrections={**plan.bias_corrections, **self._corrections},
            notes=tuple(dict.fromkeys([*plan.notes, *notes])),
        )
