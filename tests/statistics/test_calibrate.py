"""The pass itself: the same bits however the samples arrive, the right numbers, and clear errors on the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detent.errors import CalibrationError, ConfigError
from detent.graph import capture
from detent.statistics import calibrate
from tests.statistics.networks import (
    SHAPE,
    Constant,
    Masked,
    Reciprocal,
    Residual,
    SequenceFirst,
    Shuffled,
    Stacked,
    TwoInputs,
    build,
    residual_graph,
    samples,
)


@pytest.fixture(scope="module")
def graph():
    return residual_graph()


@pytest.fixture(scope="module")
def images():
    return samples(150)


@pytest.fixture(scope="module")
def reference(graph, images):
    return calibrate(graph, images, progress=False).to_bytes()


@pytest.fixture
def torch_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("batch", [1, 7, 37, 64, 512])
def test_user_batches_do_not_matter(graph, images, reference, batch):
    assert calibrate(graph, list(images.split(batch)), progress=False).to_bytes() == reference


@pytest.mark.parametrize("seed", [1, 2])
def test_order_of_samples_does_not_matter(graph, images, reference, seed):
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    assert calibrate(graph, images[order], progress=False).to_bytes() == reference


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_matter(graph, images, reference, threads, torch_threads):
    torch_threads(threads)
    assert calibrate(graph, images, progress=False).to_bytes() == reference


@pytest.mark.parametrize("cut", [1, 64, 75])
def test_merged_parts_equal_the_whole(graph, images, reference, cut):
    first = calibrate(graph, images[:cut], progress=False)
    second = calibrate(graph, images[cut:], progress=False)
    assert first.merge(second).to_bytes() == reference
    assert second.merge(first).to_bytes() == reference


def test_numbers_are_those_of_the_model(graph, images):
    statistics = calibrate(graph, images, progress=False)
    model = build(Residual)
    with torch.no_grad():
        y = torch.relu(model.conv(images))
        output = model(images)
    assert statistics.samples == 150
    # `view` lies on the grid of `add`, but the kernel that reads it needs means of its channels.
    assert list(statistics) == ["x", "conv", "relu", "depthwise", "add", "view", "linear"]
    assert statistics["x"].count == images.numel()
    assert statistics["x"].minimum == float(images.min())
    assert statistics["relu"].zeros == int((y == 0).sum())
    assert statistics["linear"].count == output.numel()
    for name, value in (("relu", y), ("linear", output)):
        assert statistics[name].maximum == pytest.approx(float(value.max()), rel=1e-5)
        assert statistics[name].mean == pytest.approx(float(value.double().mean()), rel=1e-5)
        assert statistics[name].std == pytest.approx(float(value.double().std(correction=0)), rel=1e-5)
        assert int(statistics[name].counts.sum()) == value.numel()
    channels = y.amax(dim=(0, 2, 3)).numpy()
    np.testing.assert_allclose(statistics["relu"].channel_maximum, channels, rtol=1e-5)


def test_only_the_values_asked_for(graph, images):
    whole = calibrate(graph, images, progress=False)
    part = calibrate(graph, images, progress=False, values=["relu", "conv"])
    assert list(part) == ["conv", "relu"]
    assert part["relu"] == whole["relu"]
    with pytest.raises(ConfigError, match="did you mean 'relu'"):
        calibrate(graph, images, progress=False, values=["rellu"])


def test_the_users_data_and_model_stay_as_they_are(images):
    model = build(Residual)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    data = images.clone()
    calibrate(capture(model, data[:2]), data, progress=False)
    assert torch.equal(data, images)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.is_contiguous()


@pytest.mark.parametrize("batch", [10, 64])
def test_fixed_batch_runs_as_it_is(images, batch):
    graph = residual_graph(dynamic_batch=False, batch=batch)
    statistics = calibrate(graph, images, progress=False)
    assert statistics.samples == 150
    assert any(f"fixed batch and ran on {batch} samples" in note for note in statistics.notes)
    assert statistics["linear"].count == 150 * 5
    shuffled = images[torch.randperm(150, generator=torch.Generator().manual_seed(4))]
    assert calibrate(graph, shuffled.split(11), progress=False) == statistics


def test_fixed_batch_that_mixes_samples_refuses_a_rest():
    graph = capture(build(Shuffled), torch.zeros(4, 4), dynamic_batch=False)
    assert calibrate(graph, samples(8, 4), progress=False)["linear"].count == 24
    with pytest.raises(CalibrationError, match=r"exactly 4 samples.*3 are left over"):
        calibrate(graph, samples(7, 4), progress=False)


def test_single_sample_graph(images):
    graph = residual_graph(dynamic_batch=False, batch=1)
    statistics = calibrate(graph, images[:5], progress=False)
    assert statistics["relu"].count == 5 * 8 * 64


def test_values_no_input_can_change_count_once():
    graph = capture(build(Constant), torch.zeros(2, 4, 6))
    data = samples(70, 4, 6)
    whole = calibrate(graph, data, progress=False)
    constants = [name for name in whole if whole[name].constant]
    for name in constants:
        assert whole[name].count == 24
    halves = calibrate(graph, data[:9], progress=False).merge(calibrate(graph, data[9:], progress=False))
    assert halves == whole


def test_values_that_mix_samples_are_not_padded():
    graph = capture(build(Shuffled), torch.zeros(2, 4))
    data = samples(70, 4)
    statistics = calibrate(graph, data, progress=False)
    assert statistics["linear"].count == 70 * 3
    assert statistics["x"].count == data.numel()
    assert any("mix samples" in note for note in statistics.notes)


def test_padding_is_left_out_wherever_the_samples_lie():
    graph = capture(build(Stacked), torch.zeros(2, 4))
    data = samples(70, 4)
    statistics = calibrate(graph, data, progress=False)
    assert statistics["linear"].count == 2 * 70 * 3
    assert not statistics.notes
    order = torch.randperm(70, generator=torch.Generator().manual_seed(5))
    assert calibrate(graph, data[order].split(9), progress=False) == statistics


def test_recurrent_and_sequence_first_values():
    graph = capture(build(SequenceFirst), torch.zeros(2, 5, 8))
    data = samples(70, 5, 8)
    statistics = calibrate(graph, data, progress=False)
    assert all(statistics[name].count % 70 == 0 for name in statistics)
    assert not statistics.notes
    order = torch.randperm(70, generator=torch.Generator().manual_seed(6))
    assert calibrate(graph, data[order].split(9), progress=False) == statistics


def test_input_shared_by_all_samples():
    graph = capture(build(Masked), (torch.zeros(2, 4), torch.zeros(1, 4)))
    assert [spec.batch_axis for spec in graph.inputs] == [0, None]
    data, mask = samples(70, 4), samples(1, 4, seed=2)
    statistics = calibrate(graph, [(data[:30], mask), (data[30:], mask)], progress=False)
    assert statistics["mask"].count == 4
    assert statistics["mask"].constant
    assert statistics["linear"].count == 210
    with pytest.raises(CalibrationError, match="'mask' has no batch axis, but its values differ"):
        calibrate(graph, [(data[:30], mask), (data[30:], mask + 1)], progress=False)


def test_two_inputs_in_every_form():
    graph = capture(build(TwoInputs), (torch.zeros(2, 4), torch.zeros(2, 3)))
    image, extra = samples(30, 4), samples(30, 3, seed=1)
    want = calibrate(graph, [(image, extra)], progress=False)
    assert want["relu"].count == 180
    assert calibrate(graph, {"extra": extra, "image": image}, progress=False) == want
    assert calibrate(graph, [{"image": image, "extra": extra}], progress=False) == want
    assert calibrate(graph, [[image[:9], extra[:9]], [image[9:], extra[9:]]], progress=False) == want
    labelled = calibrate(graph, [(image, extra, torch.arange(30))], progress=False)
    assert labelled.tensors == want.tensors
    assert any("labels" in note for note in labelled.notes)
    nested = calibrate(graph, [((image, extra), torch.arange(30))], progress=False)
    assert nested.tensors == want.tensors


def test_infinity_names_layer_line_and_sample():
    graph = capture(build(Reciprocal), torch.ones(2, 4))
    data = torch.ones(100, 4)
    data[77, 2] = 0
    with pytest.raises(CalibrationError) as caught:
        calibrate(graph, data, progress=False)
    message = str(caught.value)
    assert "computes infinity, first for sample 77" in message
    assert "networks.py" in message
    assert "inverse = 1.0 / x" in message


def test_nan_in_the_data_says_so(graph, images):
    data = images.clone()
    data[70, 0, 0, 0] = float("nan")
    with pytest.raises(CalibrationError, match="the calibration data contain NaN, first in sample 70"):
        calibrate(graph, data, progress=False)


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "infinity")])
def test_damaged_weights(images, value, word):
    model = build(Residual)
    with torch.no_grad():
        model.depthwise.weight[3, 0, 1, 1] = value
    with pytest.raises(CalibrationError, match=f"depthwise.weight contains {word}"):
        calibrate(capture(model, images[:2]), images, progress=False)


def test_constant_data_are_fine(graph):
    statistics = calibrate(graph, torch.zeros(3, *SHAPE), progress=False)
    assert statistics["x"].zeros == statistics["x"].count
    assert statistics["x"].minimum == statistics["x"].maximum == 0


@pytest.mark.parametrize("option", ["batch_size", "save_every"])
def test_options_out_of_range(graph, images, option):
    with pytest.raises(ConfigError, match=f"`{option}` must be at least 1"):
        calibrate(graph, images, progress=False, **{option: 0})


def test_values_are_a_list(graph, images):
    with pytest.raises(ConfigError, match="list of names"):
        calibrate(graph, images, progress=False, values="relu")


def test_half_precision_models_are_refused(images):
    graph = capture(build(Residual).half(), images[:2].half())
    with pytest.raises(CalibrationError, match="no float32 value") as caught:
        calibrate(graph, images.half(), progress=False)
    assert "model.float()" in str(caught.value)


def test_models_on_other_devices_are_refused(images):
    graph = residual_graph().copy()
    graph.module = graph.module.to("meta")
    with pytest.raises(CalibrationError, match="is on meta, calibration runs on the CPU"):
        calibrate(graph, images, progress=False)


def test_progress_is_for_terminals(graph, images, capsys, monkeypatch):
    calibrate(graph, images, progress=True)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    calibrate(graph, images, progress=True)
    assert "samples" in capsys.readouterr().err
