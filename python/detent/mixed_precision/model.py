"""What bit widths cost: memory of weights and activations, bit operations, measured times.

A `ResourceModel` holds everything that does not depend on the widths: sizes, cuts and products. An integer program
reads it as data, each row of which is linear in the choices; its methods give the figures of one configuration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from detent._registry import unknown_name
from detent.config import QuantizationConfig
from detent.errors import ConfigError
from detent.graph.graph import Graph
from detent.graph.placement import Placement
from detent.graph.policy import place_as_asked
from detent.mixed_precision.figures import Resources
from detent.mixed_precision.latency import LatencyTable, LayerLatency, latencies, latency_table
from detent.mixed_precision.macs import Product, products
from detent.mixed_precision.max_cut import Cut, cuts
from detent.mixed_precision.memory import MemoryNetwork, memory_network
from detent.mixed_precision.orders import best_order
from detent.mixed_precision.slots import FLOAT_BITS, activation_owners, activation_slots
from detent.mixed_precision.weights import KernelMemory, fixed_bits, kernel_memories
from detent.records.plan import QuantPlan
from detent.targets import Target, load_target

__all__ = ["BitWidths", "ResourceModel", "resource_model", "resources"]

BitWidths = Mapping[str, int | None] | int | None
"""Code width by name, None for float; or one for all."""


@dataclass(frozen=True, kw_only=True, repr=False)
class ResourceModel:
    """All that the resources of a network follow from, once widths are chosen.

    Args:
        target: name of the target.
        kernels: layer to the memory of its kernel, for the quantized ones.
        fixed_weight_bytes: everything else that is stored.
        network: buffers and steps the cuts are of.
        cuts: sets of values in memory at once; the largest is the activation memory.
        products: multiplications, by layer.
        latencies: measured times, by layer; empty without a table, see `has_latency`.
        has_latency: whether there is a table of times.
        owners: every value to the one that owns its grid, None where it has none; values with one owner are one slot.
        slots: the owners, in execution order; stored tensors first.
        notes: non-fatal facts.
    """

    target: str
    kernels: Mapping[str, KernelMemory]
    fixed_weight_bytes: float
    network: MemoryNetwork
    cuts: tuple[Cut, ...]
    products: tuple[Product, ...]
    owners: Mapping[str, str | None]
    slots: tuple[str, ...]
    latencies: tuple[LayerLatency, ...] = ()
    has_latency: bool = False
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        parts = f"{len(self.kernels)} kernels, {len(self.slots)} activation slots, {len(self.cuts)} cuts"
        return f"ResourceModel(target {self.target!r}, {parts})"

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample."""
        return sum(product.macs for product in self.products)

    def weights(self, bits: BitWidths, codebooks: Mapping[str, int] | None = None) -> float:
        """Bytes of kernels and of everything else that is stored.

        Args:
            bits: code width by layer, see `kernels`.
            codebooks: layer to the number of codebooks stored with its kernel; none without an entry.

        Raises:
            ConfigError: a layer is unknown or missing, or a width is none.
        """
        tables = {} if codebooks is None else codebooks
        for layer in tables:
            if layer not in self.kernels:
                raise unknown_name("layer", layer, self.kernels)
        widths = _checked(bits, self.kernels, "layer")
        sizes = (kernel.bytes(widths[layer], codebooks=tables.get(layer, 0)) for layer, kernel in self.kernels.items())
        return self.fixed_weight_bytes + sum(sizes)

    def activations(self, bits: BitWidths) -> float:
        """Bytes of the largest cut.

        Args:
            bits: code width by owner of a grid, see `slots`.

        Raises:
            ConfigError: a value is unknown or missing, or a width is none.
        """
        return self._largest(_checked(bits, self.slots, "value"))[0]

    def total(self, weights_bits: BitWidths, activation_bits: BitWidths) -> float:
        """Bytes of weights and activations together."""
        return self.weights(weights_bits) + self.activations(activation_bits)

    def bit_operations(self, weights_bits: BitWidths, activation_bits: BitWidths) -> int:
        """Sum over products of MACs x bits x bits."""
        kernels = _checked(weights_bits, self.kernels, "layer")
        values = _checked(activation_bits, self.slots, "value")
        return sum(product.macs * _factors(product, kernels, values) for product in self.products)

    def latency(self, weights_bits: BitWidths, activation_bits: BitWidths) -> float | None:
        """Sum of the table's times; None without a table.

        Raises:
            ConfigError: as `weights`, or the table lacks the widths of a layer it has others of.
        """
        if not self.has_latency:
            return None
        kernels = _checked(weights_bits, self.kernels, "layer")
        values = _checked(activation_bits, self.slots, "value")
        return sum(
            item.time(
                FLOAT_BITS if item.kernel is None else kernels[item.kernel],
                FLOAT_BITS if item.input is None else values[item.input],
            )
            for item in self.latencies
        )

    def figures(
        self, weights_bits: BitWidths, activation_bits: BitWidths, codebooks: Mapping[str, int] | None = None
    ) -> Resources:
        """Everything about one configuration."""
        weights = self.weights(weights_bits, codebooks)
        values = _checked(activation_bits, self.slots, "value")
        activations, largest = self._largest(values)
        sizes = {buffer.name: buffer.bits(values) / 8 for buffer in self.network.buffers}
        listed = sorted(((name, sizes[name]) for name in largest), key=lambda entry: -entry[1])
        return Resources(
            target=self.target,
            weights=weights,
            activations=activations,
            total=weights + activations,
            bit_operations=self.bit_operations(weights_bits, activation_bits),
            latency=self.latency(weights_bits, activation_bits),
            macs=self.macs,
            largest_cut=tuple(listed),
            notes=self.notes,
        )

    def _largest(self, widths: Mapping[str, int]) -> tuple[float, tuple[str, ...]]:
        """Bytes and values of the largest cut; the first of several."""
        sizes = [(cut.bytes(widths), cut.values) for cut in self.cuts]
        return max(sizes, key=lambda entry: entry[0], default=(0.0, ()))


def resource_model(
    graph: Graph,
    placement: Placement,
    target: Target,
    *,
    latency: LatencyTable | str | Path | None = None,
    order: Literal["captured", "best"] = "captured",
    in_place: bool = True,
    count_steps: bool = False,
) -> ResourceModel:
    """What the resources of a network on a target follow from.

    Args:
        graph: the captured network.
        placement: where its grids go on the target.
        target: the target.
        latency: measured times, see `LatencyTable`, or the path of a JSON file of them.
        order: operations run in the order of the graph, or in the one that needs the least memory at 8 bits.
        in_place: operators that work element by element may write over an operand that nothing reads later.
        count_steps: whether the float32 steps of kernels count.

    Raises:
        ConfigError: another word for `order`, or a mistake in the latency table.
    """
    if order not in ("captured", "best"):
        raise unknown_name("order", order, ("captured", "best"))
    slots = activation_slots(graph, placement)
    network = memory_network(graph, placement, slots, in_place=in_place)
    found, notes = ((), []) if latency is None else latencies(graph, placement, slots, latency_table(latency))
    return ResourceModel(
        target=target.name,
        kernels=kernel_memories(graph, placement, target, count_steps=count_steps),
        fixed_weight_bytes=fixed_bits(graph, placement) / 8,
        network=network,
        cuts=cuts(network, best_order(network).order if order == "best" else None),
        products=products(graph, placement, slots),
        owners=activation_owners(graph, placement),
        slots=slots.names,
        latencies=found,
        has_latency=latency is not None,
        notes=(*network.notes, *notes),
    )


def resources(
    graph: Graph,
    target: str | Path | Target = "default",
    *,
    plan: QuantPlan | None = None,
    weights_bits: int | None = None,
    activation_bits: int | None = None,
    latency: LatencyTable | str | Path | None = None,
    order: Literal["captured", "best"] = "captured",
) -> Resources:
    """What a network needs in memory, bit operations and time: under a plan, or with one width for all.

    Args:
        graph: the captured network.
        target: name of a built-in target or path of a target file; with a plan, the plan's, and may be left out.
        plan: whose widths count; tensors it keeps in float count 32 bits.
        weights_bits: width of all kernels without a plan; None takes the target's first.
        activation_bits: width of all activations without a plan; None takes the target's first.
        latency: measured times, or the path of a JSON file of them (`detent.mixed_precision.latency`).
        order: operations run in the order of the graph, or in the one that needs the least memory at 8 bits.

    Raises:
        ConfigError: unknown target, a width it does not offer, a plan of another model or target, widths besides a
            plan, or a mistake in the latency table.
    """
    if not isinstance(graph, Graph):
        raise ConfigError(f"`graph` must be a Graph, got a {type(graph).__name__}", remedy="use detent.capture")
    if plan is not None:
        return _of_plan(graph, target, plan, (weights_bits, activation_bits), latency, order)
    chip = load_target(target)
    placement = place_as_asked(graph, chip)
    model = resource_model(graph, placement, chip, latency=latency, order=order)
    kernels: dict[str, int | None] = {
        layer: point.rule.choose_bits(weights_bits, what="weights", target=chip.name, where=layer)
        for layer, point in placement.weights.items()
    }
    values: dict[str, int | None] = {
        slot: placement.activations[slot].rule.choose_bits(
            activation_bits, what="activations", target=chip.name, where=slot
        )
        for slot in model.slots
    }
    return model.figures(kernels, values)


def _of_plan(
    graph: Graph,
    target: str | Path | Target,
    plan: QuantPlan,
    widths: tuple[int | None, int | None],
    latency: LatencyTable | str | Path | None,
    order: Literal["captured", "best"],
) -> Resources:
    if not isinstance(plan, QuantPlan):
        raise ConfigError(f"`plan` must be a QuantPlan, got a {type(plan).__name__}", remedy="use detent.plan")
    if widths != (None, None):
        raise ConfigError(
            "`weights_bits` and `activation_bits` are given beside a plan, which has its own widths",
            remedy="leave them out, or leave out the plan",
        )
    if target != "default" and not isinstance(target, Target) and str(target) != plan.target:
        raise ConfigError(f"the plan is for target {plan.target!r}, not for {str(target)!r}", remedy="leave out target")
    if plan.graph != graph.fingerprint():
        raise ConfigError("the plan was made for another model", remedy="pass the plan of this model")
    chip = target if isinstance(target, Target) else load_target(plan.target)
    own = [name for name, entry in plan.activations.items() if entry.same_as is None]
    placement = place_as_asked(graph, chip, QuantizationConfig.resolve(plan.config, {}), own=own)
    model = resource_model(graph, placement, chip, latency=latency, order=order)
    _refuse_misfit("activation", model.slots, plan.activations)
    _refuse_misfit("layer", model.kernels, plan.weights)
    grids = {layer: plan.weights[layer].grid for layer in model.kernels}
    tables = {
        layer: 1 if grid.table.ndim == 1 else len(grid.table)
        for layer, grid in grids.items()
        if grid is not None and grid.table is not None
    }
    values = {slot: plan.activation_grid(slot) for slot in model.slots}
    return model.figures(
        {layer: None if grid is None else grid.bits for layer, grid in grids.items()},
        {slot: None if grid is None else grid.bits for slot, grid in values.items()},
        tables,
    )


def _refuse_misfit(kind: str, wanted: Iterable[str], planned: Mapping[str, object]) -> None:
    for name in wanted:
        if name not in planned:
            raise ConfigError(f"the plan lacks this {kind}", where=name, remedy="plan again for this model")


def _factors(product: Product, kernels: Mapping[str, int], values: Mapping[str, int]) -> int:
    """Bits of one factor times bits of the other."""
    widths = [FLOAT_BITS if owner is None else values[owner] for owner in product.inputs]
    if len(widths) == 1:
        widths.append(FLOAT_BITS if product.kernel is None else kernels[product.kernel])
    return widths[0] * widths[1]


def _checked(bits: BitWidths, names: Iterable[str], kind: str) -> dict[str, int]:
    """A width for each name, 32 for float.

    Raises:
        ConfigError: a name is unknown or missing, or a width is none.
    """
    known = tuple(names)
    if bits is None or isinstance(bits, int):
        return dict.fromkeys(known, _width(bits, None))
    if not isinstance(bits, Mapping):
        raise ConfigError(f"bits are a number, or a mapping from {kind} to number, got a {type(bits).__name__}")
    if len(bits) != len(known) or any(name not in bits for name in known):
        for name in bits:
            if name not in known:
                raise unknown_name(kind, name, known)
        missing = next(name for name in known if name not in bits)
        raise ConfigError(
            f"the width of this {kind} is missing", where=missing, remedy="give None to leave it in float"
        )
    return {name: _width(bits[name], name) for name in known}


def _width(bits: int | None, where: str | None) -> int:
    if bits is None:
        return FLOAT_BITS
    whole = isinstance(bits, int) and not isinstance(bits, bool)
    if not whole or not (1 <= bits <= 16 or bits == FLOAT_BITS):
        raise ConfigError(
            f"a width is 1 to 16 bits, or {FLOAT_BITS} or None for float, got {bits!r}",
            where=where,
        )
    return bits
