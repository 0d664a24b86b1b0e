"""Moving maxima: the recurrence on the user's batches in their order, kept, resumed, and never merged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from detent.errors import CalibrationError, ConfigError, FormatError
from detent.graph import capture
from detent.records.moving import MovingMaximum
from detent.records.statistics import Statistics
from detent.statistics import calibrate
from tests.statistics.networks import SHAPE, Masked, Residual, TwoInputs, build, residual_graph, samples


@pytest.fixture(scope="module")
def graph():
    return residual_graph()


@pytest.fixture(scope="module")
def batches():
    """Batches of uneven size."""
    images = samples(60)
    return list(images.split([10, 5, 1, 20, 20, 4]))


def collected(graph, data, **options):
    return calibrate(graph, data, progress=False, **{"moving_maximum": 0.9, **options})


def by_hand(batches, momentum):
    """The moving maximum of the input."""
    found = None
    for batch in batches:
        size = float(batch.abs().max())
        found = size if found is None else momentum * found + (1 - momentum) * size
    return found


@pytest.mark.parametrize("momentum", [0, 0.5, 0.9])
def test_the_recurrence_on_the_users_own_batches(graph, batches, momentum):
    stats = collected(graph, batches, moving_maximum=momentum, batch_size=3)
    assert stats.moving.momentum == momentum
    assert stats.moving.batches == 6
    assert list(stats.moving.maxima) == list(stats)
    assert stats.moving.maxima["x"] == pytest.approx(by_hand(batches, momentum), rel=1e-12)
    with torch.no_grad():
        model = build(Residual)
        hidden = [torch.relu(model.conv(batch)) for batch in batches]
    assert stats.moving.maxima["relu"] == pytest.approx(by_hand(hidden, momentum), rel=1e-5)


def test_it_depends_on_order_and_batches(graph, batches):
    one, other = collected(graph, batches), collected(graph, batches[::-1])
    assert one.moving.maxima["x"] != other.moving.maxima["x"]
    assert one["x"] == other["x"]  # the rest of the statistics does not
    again = collected(graph, torch.cat(batches).split(6))
    assert again.moving.batches == 10
    assert again.moving.maxima["x"] != one.moving.maxima["x"]


def test_threads_do_not_change_the_order(graph, batches):
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(collected(graph, batches).moving.maxima["x"])
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def test_data_in_one_piece_are_divided(graph, tmp_path):
    images = samples(60)
    path = tmp_path / "images.npz"
    np.savez(path, x=images.numpy())
    wanted = collected(graph, images.split(25)).moving
    assert wanted.batches == 3
    for data in (images, images.numpy(), {"x": images}, path):
        assert collected(graph, data, batch_size=25).moving == wanted


def test_two_inputs_and_constants():
    graph = capture(build(TwoInputs), (torch.zeros(2, 4), torch.zeros(2, 3)))
    data = [(samples(3, 4, seed=seed), samples(3, 3, seed=seed + 9)) for seed in range(4)]
    moving = collected(graph, data).moving
    assert moving.maxima["extra"] == pytest.approx(by_hand([extra for _, extra in data], 0.9))
    mask = torch.tensor([0.3, -4.0, 0.1, 0.2])
    graph = capture(build(Masked), (torch.zeros(2, 4), mask))
    stats = collected(graph, [(samples(3, 4, seed=seed), mask) for seed in range(3)])
    (constant,) = (name for name in stats if stats[name].constant and name != "mask")
    assert stats.moving.maxima[constant] == 3.0


def test_a_fixed_batch_must_be_met():
    graph = residual_graph(dynamic_batch=False, batch=4)
    images = samples(12)
    assert collected(graph, images.split(4)).moving.batches == 3
    with pytest.raises(CalibrationError, match="exactly 4 samples at a time, and a batch has 6"):
        collected(graph, images.split(6))


def test_it_is_saved_and_loaded(graph, batches, tmp_path):
    stats = collected(graph, batches)
    stats.save(tmp_path / "s.safetensors")
    loaded = Statistics.load(tmp_path / "s.safetensors")
    assert loaded.moving == stats.moving
    assert loaded == stats
    assert any("order and the size of the batches" in note for note in loaded.notes)
    edited = replace(stats, moving=MovingMaximum(momentum=0.9, batches=6, maxima={}))
    assert edited != stats


def test_a_file_with_impossible_maxima_is_refused(graph, batches, tmp_path):
    stats = collected(graph, batches)
    broken = MovingMaximum(momentum=0.9, batches=1, maxima={"x": 1.0})
    object.__setattr__(broken, "maxima", {"x": -1.0})
    replace(stats, moving=broken).save(tmp_path / "s.safetensors")
    with pytest.raises(FormatError, match=r"the moving maximum of x is -1\.0"):
        Statistics.load(tmp_path / "s.safetensors")


def test_merging_is_refused(graph, batches):
    moving, plain = collected(graph, batches), collected(graph, batches, moving_maximum=None)
    assert plain.moving is None
    for one, other in ((moving, moving), (moving, plain), (plain, moving)):
        with pytest.raises(CalibrationError, match="depends on the order of all batches"):
            one.merge(other)
    assert plain.merge(plain).samples == 120


@pytest.mark.parametrize("after", [1, 3, 5])
def test_it_goes_on_where_it_was_interrupted(graph, batches, tmp_path, after):
    def stopping():
        for index, batch in enumerate(batches):
            if index == after:
                raise KeyboardInterrupt
            yield batch

    path = tmp_path / "partial.safetensors"
    with pytest.raises(KeyboardInterrupt):
        collected(graph, stopping(), resume=path)
    assert collected(graph, batches, resume=path).to_bytes() == collected(graph, batches).to_bytes()


def test_another_run_does_not_go_on(graph, batches, tmp_path):
    path = tmp_path / "partial.safetensors"
    collected(graph, batches[:3], resume=path)
    with pytest.raises(CalibrationError, match=r"had moving_maximum=0\.9, this one has 0.5"):
        collected(graph, batches, resume=path, moving_maximum=0.5)
    with pytest.raises(CalibrationError, match=r"had moving_maximum=0\.9, this one has None"):
        collected(graph, batches, resume=path, moving_maximum=None)
    for other in ([torch.cat(batches[:3]), *batches[3:]], torch.cat(batches).split(8)):
        # The same samples in the same order, but other batches.
        with pytest.raises(CalibrationError, match="do not begin with the 16 samples"):
            collected(graph, other, resume=path)


@pytest.mark.parametrize("momentum", [1.0, -0.1, 2, True, "0.9", float("nan")])
def test_what_is_no_momentum(graph, momentum):
    with pytest.raises(ConfigError, match="from 0 and below 1"):
        collected(graph, torch.zeros(2, *SHAPE), moving_maximum=momentum)
