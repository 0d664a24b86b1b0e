"""Max cut and orders against brute force over all topological orders, and what shares memory in real graphs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from detent.errors import ConfigError
from detent.graph import Graph, capture
from detent.graph.policy import place_as_asked
from detent.mixed_precision.max_cut import Cut, cuts
from detent.mixed_precision.memory import Buffer, MemoryNetwork, Step
from detent.mixed_precision.model import ResourceModel, resource_model
from detent.mixed_precision.orders import best_order
from detent.targets import load_target
from tests.models import MODELS, build


def model_of(graph: Graph, target: str = "default", *, in_place: bool = True) -> ResourceModel:
    chip = load_target(target)
    return resource_model(graph, place_as_asked(graph, chip), chip, in_place=in_place)


def captured(module: nn.Module, *shape: int) -> Graph:
    return capture(module.eval(), torch.randn(shape))


def network(sizes: list[int], steps: list[tuple[list[int], int]], **more: object) -> MemoryNetwork:
    """Buffer 0 is the input; each step reads some and writes one; what nobody reads is an output."""
    read = {buffer for reads, _ in steps for buffer in reads}
    return MemoryNetwork(
        buffers=tuple(Buffer(name=f"v{i}", elements=size, slot=f"v{i}") for i, size in enumerate(sizes)),
        steps=tuple(
            Step(name=f"v{target}", reads=tuple(reads), writes=(target,), overwrites=more.get(f"v{target}"))  # type: ignore[arg-type]
            for reads, target in steps
        ),
        inputs=frozenset([0]),
        outputs=frozenset(range(len(sizes))) - read,
    )


def peak_by_hand(net: MemoryNetwork, order: tuple[int, ...], widths: dict[str, int]) -> float:
    """Written to be read: when each buffer is made, when it is read last, and what overlaps."""
    size = [buffer.bits(widths) / 8 for buffer in net.buffers]
    made = dict.fromkeys(net.inputs, -1)
    last = dict.fromkeys(net.inputs, -1)
    for moment, position in enumerate(order):
        step = net.steps[position]
        made.update(dict.fromkeys(step.writes, moment))
        last.update(dict.fromkeys((*step.reads, *step.writes), moment))
    last.update(dict.fromkeys(net.outputs, len(order)))
    most = sum(size[b] for b in net.inputs)
    for moment, position in enumerate(order):
        step = net.steps[position]
        there = {b for b in made if made[b] <= moment <= last[b]}
        target = step.overwrites
        if target is not None and last[target] == moment:
            moments = [there - set(step.writes), there - {target}]
        else:
            moments = [there]
        most = max(most, *(sum(size[b] for b in alive) for alive in moments))
    return most


def orders(net: MemoryNetwork) -> Iterator[tuple[int, ...]]:
    def further(done: tuple[int, ...], mask: int) -> Iterator[tuple[int, ...]]:
        if len(done) == len(net.steps):
            yield done
        for position, before in enumerate(net.before):
            if not mask >> position & 1 and not before & ~mask:
                yield from further((*done, position), mask | 1 << position)

    return further((), 0)


@st.composite
def networks(draw: st.DrawFn) -> MemoryNetwork:
    count = draw(st.integers(1, 7))
    sizes = draw(st.lists(st.integers(0, 9), min_size=count + 2, max_size=count + 2))
    inputs = frozenset(range(draw(st.integers(1, 2))))
    steps, made = [], len(inputs)
    buffers = len(inputs) + count
    for _ in range(count):
        # Near operands make chains, far ones make branches.
        near = st.integers(max(0, made - 2), made - 1) if draw(st.booleans()) else st.integers(0, made - 1)
        reads = tuple(sorted(draw(st.sets(near, min_size=0, max_size=3))))
        overwrites = draw(st.sampled_from(reads)) if reads and draw(st.booleans()) else None
        steps.append(Step(name=f"v{made}", reads=reads, writes=(made,), overwrites=overwrites))
        made += 1
    outputs = draw(st.sets(st.integers(0, buffers - 1), max_size=3))
    slots = [draw(st.sampled_from([None, "a", "b", f"v{i}"])) for i in range(buffers)]
    return MemoryNetwork(
        buffers=tuple(Buffer(name=f"v{i}", elements=sizes[i % len(sizes)], slot=slots[i]) for i in range(buffers)),
        steps=tuple(steps),
        inputs=inputs,
        outputs=frozenset(outputs),
    )


def random_widths(net: MemoryNetwork, draw: random.Random) -> dict[str, int]:
    return {buffer.slot: draw.choice((2, 4, 8, 16, 32)) for buffer in net.buffers if buffer.slot is not None}


@given(net=networks(), draw=st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_cuts_give_the_peak_at_any_widths_in_any_order(net: MemoryNetwork, draw: random.Random) -> None:
    order = draw.choice(list(itertools.islice(orders(net), 50)))
    found = cuts(net, order)
    for _ in range(5):
        widths = random_widths(net, draw)
        assert max(cut.bytes(widths) for cut in found) == peak_by_hand(net, order, widths)


@given(net=networks())
@settings(max_examples=200, deadline=None)
def test_no_cut_is_part_of_another(net: MemoryNetwork) -> None:
    for one, other in itertools.permutations(cuts(net), 2):
        inside = all(other.elements.get(slot, 0) >= count for slot, count in one.elements.items())
        assert not (inside and other.fixed_bits >= one.fixed_bits)


@given(net=networks(), draw=st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_the_best_order_is_that_of_brute_force(net: MemoryNetwork, draw: random.Random) -> None:
    widths = random_widths(net, draw)
    found = best_order(net, widths)
    least = min(peak_by_hand(net, order, widths) for order in orders(net))
    assert found.exact
    assert found.gap == 0.0
    assert found.peak_bytes == found.lower_bound_bytes == least
    assert peak_by_hand(net, found.order, widths) == least


@given(net=networks(), draw=st.randoms(use_true_random=False), states=st.integers(0, 6))
@settings(max_examples=100, deadline=None)
def test_a_search_cut_short_states_a_true_bound(net: MemoryNetwork, draw: random.Random, states: int) -> None:
    widths = random_widths(net, draw)
    found = best_order(net, widths, states=states)
    least = min(peak_by_hand(net, order, widths) for order in orders(net))
    assert found.lower_bound_bytes <= least <= found.peak_bytes
    assert peak_by_hand(net, found.order, widths) == found.peak_bytes
    assert found.exact == (found.gap == 0.0)


def test_branches_are_run_where_they_leave_least() -> None:
    # Two branches of a hill and a valley each: the second hill is climbed with one valley left behind.
    net = network([1, 20, 2, 10, 1, 1], [([0], 1), ([0], 3), ([1], 2), ([3], 4), ([2, 4], 5)])
    assert max(cut.bytes(dict.fromkeys(net_slots(net), 8)) for cut in cuts(net)) == 1 + 20 + 10 + 0 + 1
    found = best_order(net, 8)
    assert found.order in ((0, 2, 1, 3, 4), (1, 3, 0, 2, 4))
    assert (found.peak_bytes, found.exact) == (23.0, True)


def net_slots(net: MemoryNetwork) -> list[str]:
    return [buffer.slot for buffer in net.buffers if buffer.slot is not None]


def parallel_chains(chains: int, length: int, seed: int) -> MemoryNetwork:
    draw = random.Random(seed)
    sizes, steps, ends = [50], [], []
    for _ in range(chains):
        last = 0
        for _ in range(length):
            sizes.append(draw.randint(1, 100))
            steps.append(([last], len(sizes) - 1))
            last = len(sizes) - 1
        ends.append(last)
    sizes.append(10)
    return network(sizes, [*steps, (ends, len(sizes) - 1)])


@pytest.mark.parametrize("seed", range(4))
def test_parallel_chains_are_solved_exactly_though_their_states_are_legion(seed: int) -> None:
    assert best_order(parallel_chains(4, 30, seed), 8, states=20_000).exact


def test_chains_in_a_row_are_solved_part_by_part() -> None:
    sizes, steps = [5], []
    draw = random.Random(3)
    for _ in range(60):
        start = len(sizes) - 1
        for _ in range(3):
            sizes += [draw.randint(1, 50), draw.randint(1, 20)]
            steps += [([start], len(sizes) - 2), ([len(sizes) - 2], len(sizes) - 1)]
        sizes.append(draw.randint(1, 20))
        steps.append(([len(sizes) - 6, len(sizes) - 4, len(sizes) - 2], len(sizes) - 1))
    assert best_order(network(sizes, steps), 8).exact


@pytest.mark.parametrize(
    "change",
    [
        {"steps": (Step(name="v1", reads=(1,), writes=(1,)),)},
        {"steps": (Step(name="v1", reads=(0, 0), writes=(1,)),)},
        {"steps": (Step(name="v1", reads=(0,), writes=(0,)),)},
        {"steps": (Step(name="v1", reads=(0,), writes=(1,), overwrites=1),)},
        {"steps": ()},
        {"outputs": frozenset([7])},
    ],
)
def test_a_network_that_cannot_run_is_refused(change: dict[str, object]) -> None:
    net = network([1, 1], [([0], 1)])
    with pytest.raises(ValueError):
        MemoryNetwork(**{**vars(net), **change})  # type: ignore[arg-type]


@pytest.mark.parametrize("order", [(), (0,), (0, 0), (1, 0), (0, 2), (0, 1, 1), (0.0, 1)])
def test_an_order_that_cannot_run_is_refused(order: tuple[int, ...]) -> None:
    net = network([1, 1, 1], [([0], 1), ([1], 2)])
    with pytest.raises(ConfigError, match="order"):
        cuts(net, order)


@pytest.mark.parametrize("widths", [0, -8, {"v0": 8}, {"v0": 8, "v1": 0}, {"v0": True, "v1": 8}, {"v0": 8, "v1": "8"}])
def test_widths_that_are_none_are_refused(widths: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="width"):
        best_order(network([1, 1], [([0], 1)]), widths)


# ---- real graphs ---------------------------------------------------------------------------------------------------


class Chain(nn.Module):
    """conv and ReLU, fused; pooling; a view; linear: hand-computed below."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.max_pool2d(F.relu(self.conv(x)), 2).flatten(1))


def test_a_fused_value_never_reaches_memory_and_a_view_takes_none() -> None:
    model = model_of(captured(Chain(), 2, 3, 8, 8))
    assert [(buffer.name, buffer.elements) for buffer in model.network.buffers] == [
        ("x", 192),
        ("relu", 512),
        ("max_pool", 128),
        ("head", 10),
    ]
    assert [step.name for step in model.network.steps] == ["relu", "max_pool", "head"]
    # Pooling is on the grid of what it pools, so its elements count with those of the ReLU.
    assert [(cut.during, dict(cut.elements)) for cut in model.cuts] == [
        ("relu", {"x": 192, "relu": 512}),
        ("max_pool", {"relu": 640}),
        ("head", {"relu": 128, "head": 10}),
    ]
    assert model.activations(8) == 704
    assert model.activations({"x": 2, "relu": 8, "head": 8}) == 640
    assert model.activations({"x": 4, "relu": None, "head": 8}) == 4 * 640


class Act(nn.Module):
    """An activation that no target fuses, read once or twice before."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.twice = twice

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = F.gelu(y)
        return torch.cat([z, y], 1) if self.twice else self.conv(z)


def test_in_place_only_where_nothing_reads_the_operand_later() -> None:
    once = captured(Act(False), 2, 4, 8, 8)
    assert model_of(once).activations(8) == 2 * 256
    assert model_of(once).cuts[0].values == ("x", "conv")
    assert ("conv", "gelu") not in [cut.values for cut in model_of(once).cuts]
    assert ("conv", "gelu") in [cut.values for cut in model_of(once, in_place=False).cuts]
    twice = model_of(captured(Act(True), 2, 4, 8, 8))
    assert [cut.values for cut in twice.cuts][-1] == ("conv", "gelu", "cat")
    assert twice.activations(8) == 4 * 256


class Views(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b = x.chunk(2, 1)
        flipped = x.transpose(1, 2).contiguous()
        return a + b, torch.tanh(x + x.transpose(1, 2)), flipped


def test_views_share_memory_and_copies_do_not() -> None:
    model = model_of(captured(Views(), 2, 6, 6))
    names = [buffer.name for buffer in model.network.buffers]
    assert not any("chunk" in name or name.startswith("transpose") for name in names)
    assert any("contiguous" in name or "clone" in name for name in names)
    steps = {step.name: step for step in model.network.steps}
    # x is read through two views at once: nothing may be written over it.
    assert [step.overwrites for name, step in steps.items() if name.startswith("add")] == [None, None]
    assert steps["tanh"].overwrites is not None


class Several(nn.Module):
    """A residual branch, a concatenation and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 8, 1)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x + self.a(x)
        z = torch.cat([y, self.b(y)], 1)
        return self.head(z.mean((2, 3))), y


def test_branches_concatenations_and_several_outputs_by_hand() -> None:
    model = model_of(captured(Several(), 2, 4, 4, 4))
    names = [step.name for step in model.network.steps]
    assert names == ["a", "add", "b", "cat", "mean", "head"]
    # y, 64 elements, is an output: it stays to the end. b: 128, cat: 192, mean: 12, head: 3.
    sizes = {cut.during: cut.bytes(dict.fromkeys(model.slots, 8)) for cut in model.cuts}
    assert sizes["a"] == 64 + 64
    assert sizes["cat"] == 64 + 128 + 192
    assert sizes["mean"] == 64 + 192 + 12
    assert sizes["head"] == 64 + 12 + 3
    assert model.activations(8) == 384
    # The input dies with the sum, which takes the place of the branch.
    step = model.network.steps[names.index("add")]
    assert step.overwrites is not None
    assert model.network.buffers[step.overwrites].name == "a"


@pytest.mark.parametrize("name", MODELS)
def test_all_kinds_of_networks_have_cuts(name: str) -> None:
    torch.manual_seed(0)
    graph = capture(build(name), MODELS[name].inputs(4 if name == "fixed_batch" else 3))
    for target in ("default", "imx500", "tflite", "tensorrt"):
        model = model_of(graph, target)
        found = best_order(model.network)
        assert found.exact
        assert 0 < found.peak_bytes <= model.activations(8) <= model_of(graph, target, in_place=False).activations(8)
        assert model.activations(4) <= model.activations(8)
        order = cuts(model.network, found.order)
        assert max(cut.bytes(dict.fromkeys(model.slots, 8)) for cut in order) == found.peak_bytes


def test_a_cut_is_plain_data() -> None:
    cut = Cut(during="a", values=("a", "b"), elements={"a": 3}, fixed_bits=8)
    assert cut.bytes({"a": 4}) == 2.5
