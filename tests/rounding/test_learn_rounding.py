"""Learned rounding through the front door: closer to float on held-out samples, and the same bits each time."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import detent
from detent import edit
from detent.config import LearnedConfig
from detent.errors import ConfigError
from detent.learned_plan import LearnedPlan
from detent.rounding import learned as learning
from detent.rounding.block_data import BlockData
from detent.rounding.blocks import find_blocks
from detent.rounding.kept_values import Shelf
from tests.rounding.networks import (
    FEW,
    SharedGrid,
    captured,
    codes_of,
    images,
    learned,
    lost,
    plan_of,
    planned,
    symmetric_target,
)

LAYERS = ["stem", "left", "right", "head"]
UNSEEN, JUDGING = slice(128, None), slice(112, 128)

OPTIONS: dict[str, dict[str, Any]] = {
    "usual": {},
    "straight_through": {"method": "straight_through"},
    "layers": {"granularity": "layers"},
    "network": {"granularity": "network"},
    "gradual": {"activations": "gradual"},
    "rounded": {"activations": "rounded"},
    "attention": {"attention": "samples"},
    "fisher": {"loss": "fisher"},
    "network_steps": {"network_steps": 10},
    "fisher_of_the_network": {"loss": "fisher", "network_steps": 10, "attention": "samples"},
    "network_only": {"steps": 0, "network_steps": 10},
    "kernel_steps": {"kernel_step_rate": 0.01},
    "kernels_only": {"bias_rate": 0, "step_rate": 0},
    "impatient": {"patience": 1, "method": "straight_through"},
    "without_regularizer": {"regularization": 0, "warm_up": 0},
    "small_batches": {"batch": 1},
    "large_batches": {"batch": 200, "steps": 2},
    "few_samples": {"samples": 24},
}


@functools.cache
def usual() -> detent.QuantPlan:
    return learned()


def test_much_is_gained_on_data_that_nothing_was_learned_from() -> None:
    assert lost(captured(), usual(), images()[UNSEEN]) < 0.75 * lost(captured(), plan_of(), images()[UNSEEN])


@pytest.mark.parametrize("name", OPTIONS)
def test_no_option_makes_the_outputs_worse_on_samples_that_judge(name: str) -> None:
    found = learned(**{"steps": 4, "batch": 16, **OPTIONS[name]})
    judging = images()[12:24] if name == "few_samples" else images()[JUDGING]
    assert lost(captured(), found, judging) <= lost(captured(), plan_of(), judging)
    assert detent.apply(captured(), found)(images()[:3]).shape == (3, 5)


@pytest.mark.parametrize("name", ["straight_through", "layers", "gradual"])
def test_every_way_gains_where_much_is_to_be_gained(name: str) -> None:
    found = learned(**OPTIONS[name])
    assert lost(captured(), found, images()[UNSEEN]) < 0.9 * lost(captured(), plan_of(), images()[UNSEEN])


def symmetric(bits: int) -> detent.QuantPlan:
    """A plan with symmetric grids of activations."""
    return plan_of(target=symmetric_target(), rules=(edit.rule(edit.everything(), edit.activations(bits=bits)),))


def test_symmetric_activations_of_four_bits() -> None:
    plan = symmetric(4)
    found = learned(plan, step_rate=0.02)
    assert lost(captured(), found, images()[UNSEEN]) < lost(captured(), plan, images()[UNSEEN])
    changed = [name for name, entry in plan.activations.items() if entry.grid != found.activations[name].grid]
    assert len(changed) >= 3
    for name in changed:
        former, now = (one.activation_grid(name) for one in (plan, found))
        assert (now.kind, now.bits) == ("symmetric", 4)
        assert 0.5 <= (now.threshold / former.threshold).item() <= 2  # type: ignore[operator]


def test_after_rounding_in_closed_form_nothing_is_lost() -> None:
    rounded = detent.round_kernels(captured(), plan_of(), images()[:128], progress=False)
    assert lost(captured(), learned(rounded), images()[JUDGING]) <= lost(captured(), rounded, images()[JUDGING])


def test_kernels_that_keep_their_codes_stay_as_they_are() -> None:
    found = learned(rate=1e-9, step_rate=0)
    assert found.weights == plan_of().weights
    assert found.bias_corrections != plan_of().bias_corrections
    assert {entry.codes.method for entry in usual().weights.values() if entry.codes} == {"learned"}


@pytest.mark.parametrize("start", [{}, {"start": "nearest"}], ids=["gptq", "nearest"])
def test_one_call_learns_and_says_so(start: dict[str, str]) -> None:
    options: dict[str, Any] = {"rounding": "learned", "learned": {"steps": 30, **start}, **FEW}
    if not start:
        options["gptq"] = {"samples": 64}
    qmodel = detent.quantize(captured(), images()[:128], progress=False, **options)
    methods = {entry.codes.method for entry in qmodel.plan.weights.values() if entry.codes}
    assert "learned" in methods or any("learned rounding brought" in note for note in qmodel.plan.notes)
    assert qmodel.plan.config["rounding"] == "learned"
    assert qmodel.plan.config["learned"] == options["learned"]
    again = detent.QuantPlan.from_json(qmodel.plan.to_json())
    assert torch.equal(detent.apply(captured(), again)(images()), qmodel(images()))


def test_a_batch_has_no_sample_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    take = learning._Order.take

    def of(order: Any) -> Any:
        found = take(order)
        taken.append(len(found))
        assert len(set(found.tolist())) == len(found)
        return found

    monkeypatch.setattr(learning._Order, "take", of)
    learned(batch=10**9, steps=2)
    assert set(taken) == {112}


def test_nothing_to_learn_is_told() -> None:
    weights = {name: replace(entry, frozen=True) for name, entry in plan_of().weights.items()}
    frozen = replace(plan_of(), weights=weights)
    found = learned(frozen)
    assert found.notes == (*frozen.notes, "no kernel of the network can be learned")
    assert found.weights == frozen.weights


@pytest.mark.parametrize("checkpoint", [5, "", b"file"])
def test_a_checkpoint_that_is_no_path(checkpoint: Any) -> None:
    with pytest.raises(ConfigError, match="`checkpoint` must be the path of a file"):
        detent.learn_rounding(captured(), plan_of(), images()[:32], checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learned": {"steps": 2}}, "`learned` has options of learned rounding, and `rounding` is 'nearest'"),
        ({"learned": {"steps": 2}, "rounding": "gptq"}, "and `rounding` is 'gptq'"),
        ({"gptq": {"samples": 8}}, "`gptq` has options of rounding in closed form, and `rounding` is 'nearest'"),
        ({"gptq": {"samples": 8}, "rounding": "learned", "learned": {"start": "nearest"}}, "`gptq` has options"),
    ],
)
def test_options_of_a_rounding_that_is_not_chosen(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        detent.quantize(captured(), images()[:32], **options)


def test_the_plan_saves_loads_and_applies_to_the_same_bits(tmp_path: Path) -> None:
    usual().save(tmp_path / "plan.json")
    again = detent.QuantPlan.load(tmp_path / "plan.json")
    assert again.to_json() == usual().to_json()
    ours, theirs = (detent.apply(captured(), plan)(images()) for plan in (usual(), again))
    assert torch.equal(ours, theirs)


def test_the_applied_network_is_the_one_that_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[learning.Learned] = []
    monkeypatch.setattr(
        "detent.learned_rounding.learn_block",
        lambda *given, **named: seen.append(learning.learn_block(*given, **named)) or seen[-1],
    )
    found = learned(kernel_step_rate=0.005)
    codes = {name: held for one in seen for name, held in one.state.codes.items()}
    assert {name: entry.codes.method for name, entry in found.weights.items() if entry.codes} == dict.fromkeys(
        LAYERS, "learned"
    )
    for name in LAYERS:
        assert np.array_equal(codes_of(found, name), codes[name])
    applied = lost(captured(), found, images()[JUDGING])
    # Between blocks values are kept in half precision, and steps are made free of ties.
    assert applied == pytest.approx(seen[-1].after, rel=0.02)
    assert applied < 0.9 * lost(captured(), plan_of(), images()[JUDGING])


def test_the_same_bits_on_any_number_of_threads() -> None:
    plans = []
    threads = torch.get_num_threads()
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        plans.append(learned(steps=10, attention="samples", network_steps=5, kernel_step_rate=0.01).to_json())
        assert torch.get_num_threads() == count
    torch.set_num_threads(threads)
    assert plans[0] == plans[1] == plans[2]
    assert '"learned"' in plans[0]


def test_a_seed_gives_the_same_bits_and_another_one_others() -> None:
    state = torch.get_rng_state()
    first, again, other = (learned(steps=10, seed=seed).to_json() for seed in (0, 0, 1))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_the_same_bits_with_values_in_files_and_in_inference_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = learned(steps=10).to_json()
    with torch.inference_mode():
        assert learned(steps=10).to_json() == in_memory
    folders: list[Path] = []
    array = Shelf.array

    def watch(shelf: Shelf, shape: Any, dtype: Any) -> Any:
        found = array(shelf, shape, dtype)
        folders.append(Path(found.filename).parent)  # type: ignore[attr-defined]
        assert folders[-1].exists()
        return found

    monkeypatch.setattr(Shelf, "array", watch)
    assert learned(steps=10, memory_mb=0).to_json() == in_memory
    assert len(folders) > 4
    assert not folders[0].exists()


def test_neither_the_graph_nor_the_data_change() -> None:
    data = images()[:64].clone()
    kernel = captured().module.get_parameter("stem.weight").clone()
    learned(data=data, steps=3)
    assert torch.equal(data, images()[:64])
    assert torch.equal(captured().module.get_parameter("stem.weight"), kernel)


def test_data_in_any_form() -> None:
    data: Tensor = images()[:64]
    wanted = learned(data=data, steps=3).to_json()
    assert learned(data=iter(data.split(10)), steps=3).to_json() == wanted
    assert learned(data=data.numpy(), steps=3).to_json() == wanted
    assert learned(data=data[:32], steps=3).to_json() != wanted


def steps_of(plan: detent.QuantPlan, graph: detent.Graph, granularity: Any = "blocks") -> set[str]:
    """Values whose grids may be learned."""
    options = LearnedConfig()
    found = LearnedPlan(graph, plan, options)
    blocks = find_blocks(graph, found.layers, granularity)
    return {value for block in blocks for value in found.parts(block, options, torch.device("cpu")).steps}


def test_steps_of_powers_of_two_and_frozen_ones_stay() -> None:
    plan, powers = symmetric(8), plan_of(target="imx500", weights_bits=4)
    assert steps_of(plan, captured()) == set(plan.activations)
    assert steps_of(powers, captured()) == set()
    frozen = replace(plan.activations["relu"], frozen=True)
    held = replace(plan, activations={**plan.activations, "relu": frozen})
    assert steps_of(held, captured()) == set(plan.activations) - {"relu"}
    assert learned(held, steps=10, step_rate=0.05).activations["relu"] == frozen
    assert learned(powers, steps=10).activations == powers.activations


def test_a_grid_that_other_blocks_share_stays() -> None:
    torch.manual_seed(0)
    graph = detent.capture(SharedGrid().eval(), images()[:2])
    plan = planned(graph, images()[:64], target="tflite", weights_bits=None)
    assert {value for value, entry in plan.activations.items() if entry.same_as == "cat"} == {"relu", "relu:1"}
    assert "cat" not in steps_of(plan, graph, "layers")
    assert "cat" in steps_of(plan, graph, "network")


def test_steps_of_kernels_change_if_asked_for() -> None:
    still, moved = (learned(steps=10, kernel_step_rate=rate) for rate in (0.0, 0.02))
    thresholds = [[plan.weights[name].grid.threshold for name in LAYERS] for plan in (plan_of(), still, moved)]  # type: ignore[union-attr]
    former, same, other = (np.concatenate(each) for each in thresholds)
    # Freedom from ties moves them a little.
    np.testing.assert_allclose(same, former, rtol=1e-3)
    assert np.abs(other / former - 1).max() > 1e-2


def test_divergence_counts_for_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[str], list[str]]] = []
    error = BlockData.error

    def watch(data: BlockData, found: Any, samples: Any) -> Tensor:
        seen.append((list(data.targets), list(data.diverging)))
        return error(data, found, samples)

    monkeypatch.setattr(BlockData, "error", watch)
    learned(steps=1, loss="fisher")
    assert {tuple(diverging) for _, diverging in seen} == {("head",)}
    assert ["head"] in [targets for targets, _ in seen]
