"""A network that takes raw input does of it what the old one did of the prepared input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import detent
from detent import Preprocessing
from detent.errors import ConfigError
from detent.graph import Graph, capture
from detent.transforms import attach_preprocessing, fold_batch_norm, fold_forward
from tests.transforms.random_networks import Description, RandomNetwork, example, networks

RELATIVE = 1e-5
PHOTO = Preprocessing(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), dtype="uint8")
GREY = Preprocessing(scale=1 / 255, mean=0.5, std=0.25, dtype="uint8")
SAMPLE = Preprocessing(scale=1 / 255, samplewise="mean_and_std", dtype="uint8")


def raw_images(channels: int = 3, size: int = 9, samples: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(channels)
    return torch.randint(0, 256, (samples, channels, size, size), dtype=torch.uint8, generator=generator)


def check(model: nn.Module, record: Preprocessing, raw: Tensor) -> Graph:
    """Compare both functions; the network that takes raw input."""
    prepared = torch.from_numpy(record.normalize(raw.numpy()))
    graph = fold_forward(fold_batch_norm(capture(model, prepared)))
    fingerprint = graph.fingerprint()
    attached = attach_preprocessing(graph, record)
    with torch.no_grad():
        wanted, got, same = (values_of(net) for net in (model(prepared), attached(raw), attached(raw.float())))
    for a, b, c in zip(wanted, got, same, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= RELATIVE * a.abs().max(), attached
        assert torch.equal(b, c), "bytes and the same numbers in float give the same"
    assert graph.fingerprint() == fingerprint
    assert all(spec.preprocessing is None for spec in graph.inputs)
    return attached


def values_of(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def operators(graph: Graph) -> list[str]:
    return [node.name for node in graph.nodes() if node.name.startswith("input.") or node.name.startswith("x.")]


class Readers(nn.Module):
    """Several layers, or a layer and something else, read one input."""

    def __init__(self, *layers: nn.Module, also: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.layers, self.also = nn.ModuleList(layers), also

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        rest = () if self.also is None else (self.also(x),)
        return (*(layer(x) for layer in self.layers), *rest)


FOLDED: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(3, 6, 3),
    "conv_without_bias": lambda: nn.Conv2d(3, 6, 3, stride=2, bias=False),
    "padded": lambda: nn.Conv2d(3, 6, 3, padding=1),
    "padded_unevenly": lambda: nn.Conv2d(3, 6, (5, 3), padding=(2, 0), stride=2, dilation=(1, 2)),
    "same": lambda: nn.Conv2d(3, 6, (4, 3), padding="same", dilation=2),
    "depthwise_padded": lambda: nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=False),
    "norm_behind": lambda: nn.Sequential(nn.Conv2d(3, 6, 3, padding=2), nn.BatchNorm2d(6), nn.ReLU()),
    "two_readers": lambda: Readers(nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 4, 1)),
    "flattened": lambda: nn.Sequential(nn.Flatten(), nn.Linear(243, 5)),
}


@pytest.mark.parametrize("record", [GREY, PHOTO], ids=["grey", "photo"])
@pytest.mark.parametrize("name", FOLDED)
def test_first_layers_take_it_in(name: str, record: Preprocessing) -> None:
    torch.manual_seed(0)
    model = FOLDED[name]().eval()
    graph = check(model, record, raw_images())
    left = {op.split(".")[-1].split(":")[0] for op in operators(graph)}
    assert left <= {"pad", "slice", "cat"}, "only a padding may be left"
    assert bool(left) == (name not in ("conv", "conv_without_bias", "flattened"))
    assert ("cat" in left) == (bool(left) and record is PHOTO)
    assert any("is folded into" in note for note in graph.notes)


def test_groups_take_the_channels_they_read() -> None:
    torch.manual_seed(0)
    record = Preprocessing(mean=(3.0, 100.0, 50.0, 7.0), std=(2.0, 60.0, 40.0, 11.0), dtype="uint8")
    graph = check(nn.Conv2d(4, 8, 3, padding=1, groups=2), record, raw_images(4))
    assert "x.pad:3" in operators(graph) or "input.pad:3" in operators(graph)


def test_equal_neighbours_share_a_padding() -> None:
    record = Preprocessing(mean=(3.0, 3.0, 50.0, 50.0, 50.0, 50.0), std=2.0, dtype="uint8")
    graph = check(nn.Conv2d(6, 4, 3, padding=1), record, raw_images(6))
    assert sum("pad" in name for name in operators(graph)) == 2


def test_channels_last_in_memory_and_in_shape() -> None:
    class Permuting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.permute(0, 3, 1, 2))

    record = Preprocessing(**{**PHOTO.model_dump(exclude={"resize"}), "layout": "NHWC"})
    graph = check(Permuting(), record, raw_images().permute(0, 2, 3, 1).contiguous())
    assert "mul" not in str(operators(graph))
    check(nn.Conv2d(3, 6, 3, padding=1), PHOTO, raw_images().contiguous(memory_format=torch.channels_last))


KEPT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "pooling": (lambda: nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 4, 1)), "reads it"),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 3), "reads it"),
    "circular": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), "reads it"),
    "returned": (lambda: Readers(also=lambda x: x), "it is an output of the network"),
    "tied": (lambda: nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1)] * 2), "is also used elsewhere"),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_cannot_be_folded_is_written_out_and_noted(name: str) -> None:
    torch.manual_seed(0)
    build, reason = KEPT[name]
    graph = check(build().eval(), PHOTO, raw_images())
    assert {"mul", "add"} <= {op.split(".")[-1] for op in operators(graph)}
    assert any("is not folded" in note and reason in note for note in graph.notes), graph.notes


def test_many_different_channels_are_not_padded_one_by_one() -> None:
    record = Preprocessing(mean=tuple(range(1, 9)), std=2.0, dtype="uint8")
    graph = check(nn.Conv2d(8, 4, 3, padding=1), record, raw_images(8))
    assert any("differ in 8 runs" in note for note in graph.notes)


def test_one_reader_takes_it_in_and_another_does_not() -> None:
    torch.manual_seed(0)
    graph = check(Readers(nn.Conv2d(3, 4, 3, padding=1), also=torch.tanh), PHOTO, raw_images())
    words = [op.split(".")[-1] for op in operators(graph)]
    assert "cat" in words
    assert "mul" in words


@pytest.mark.parametrize("samplewise", ["mean", "std", "mean_and_std"])
def test_each_sample_is_normalized_in_the_graph(samplewise: str) -> None:
    torch.manual_seed(0)
    raw = raw_images(1)
    raw[1] = 200  # a blank sample
    record = Preprocessing(scale=1 / 255, samplewise=samplewise, dtype="uint8")
    graph = check(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()), record, raw)
    words = {op.split(".")[-1] for op in operators(graph)}
    assert ("mean" in words) == ("mean" in samplewise)
    assert ("std" in words) == ("std" in samplewise)
    assert any("is prepared in the graph" in note for note in graph.notes)


def test_one_of_several_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, image: Tensor, offset: Tensor) -> Tensor:
            return self.conv(image) + offset[:, None, None, None]

    model, raw, offset = Two().eval(), raw_images(), torch.randn(4)
    prepared = torch.from_numpy(PHOTO.normalize(raw.numpy()))
    graph = detent.capture(model, (raw, offset), preprocessing={"image": PHOTO})
    with torch.no_grad():
        wanted, got = model(prepared, offset), graph(raw, offset)
    assert (wanted - got).abs().max() <= RELATIVE * wanted.abs().max()
    assert [spec.preprocessing for spec in graph.inputs] == [PHOTO, None]
    statistics = detent.calibrate(graph, {"image": raw.numpy(), "offset": offset.numpy()}, progress=False)
    assert statistics["image"].maximum == 255


@settings(max_examples=110, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(networks(), st.data())
def test_law(description: Description, data: st.DataObject) -> None:
    many = data.draw(st.booleans(), label="per channel")
    numbers = st.floats(0.25, 2.0)
    count = description.channels if many else 1
    record = Preprocessing(
        scale=data.draw(st.sampled_from((1.0, 1 / 16))),
        mean=tuple(data.draw(st.lists(st.floats(-1, 1), min_size=count, max_size=count))),
        std=tuple(data.draw(st.lists(numbers, min_size=count, max_size=count))),
    )
    model = RandomNetwork(description)
    raw = example(description)
    prepared = torch.from_numpy(record.normalize(raw.numpy()))
    graph = fold_forward(fold_batch_norm(capture(model, prepared)))
    attached = attach_preprocessing(graph, record)
    with torch.no_grad():
        for wanted, got in zip(model(prepared), attached(raw), strict=True):
            assert (wanted - got).abs().max() <= RELATIVE * wanted.abs().max(), (description, record)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (Preprocessing(mean=(1.0, 2.0)), ["2 channels, the input has 3 on axis 1", "'input'", "[4, 3, 9, 9]"]),
        (Preprocessing(mean=(1.0, 2.0, 3.0), layout="NHWC"), ["the input has 9 on axis 3"]),
        (Preprocessing(layout="NC"), ["layout 'NC' has 2 axes, the input 4"]),
        ({"image": PHOTO}, ["unknown input in `preprocessing` 'image'", "known: input"]),
    ],
)
def test_what_does_not_fit_names_the_input(record: Any, words: list[str]) -> None:
    graph = capture(nn.Conv2d(3, 4, 3), torch.randn(4, 3, 9, 9))
    with pytest.raises(ConfigError) as caught:
        attach_preprocessing(graph, record)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_what_is_not_an_image_is_refused() -> None:
    class Add(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    two = capture(Add(), (torch.randn(2, 3), torch.randn(2, 3)))
    with pytest.raises(ConfigError, match="has 2 inputs and one preprocessing"):
        attach_preprocessing(two, GREY)
    words = capture(nn.Embedding(5, 3), torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ConfigError, match="cannot be normalized"):
        attach_preprocessing(words, GREY)
    numbers = capture(nn.ReLU(), torch.randn(4))
    with pytest.raises(ConfigError, match="a sample of one number"):
        attach_preprocessing(numbers, SAMPLE)
    once = attach_preprocessing(capture(nn.Conv2d(3, 4, 3), torch.randn(2, 3, 9, 9)), GREY)
    with pytest.raises(ConfigError, match="preprocessed already"):
        attach_preprocessing(once, GREY)


def test_blank_frames_stay_finite_when_quantized() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
    raw = raw_images(1, samples=32)
    for target in ("default", "imx500", "tflite"):
        qmodel = detent.quantize(model, raw, target=target, preprocessing=SAMPLE, progress=False)
        assert torch.isfinite(qmodel(torch.full((2, 1, 9, 9), 90, dtype=torch.uint8))).all()
        with torch.no_grad():
            wanted = model(torch.from_numpy(SAMPLE.normalize(raw.numpy())))
            assert (qmodel(raw) - wanted).abs().max() < 0.06 * wanted.abs().max()


def test_raw_pixels_are_exact_on_the_grid() -> None:
    raw = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    for target, kind, zero in (("default", "uniform", 0), ("imx500", "power_of_two", 0), ("tflite", "uniform", -128)):
        # Dark frames: a search by the data would choose a finer grid that cuts bright pixels off.
        qmodel = detent.quantize(model, raw // 8, target=target, preprocessing=GREY, progress=False)
        grid = qmodel.plan.activation_grid("input")
        assert grid is not None
        assert (grid.kind, grid.scale.tolist(), grid.zero_point.tolist()) == (kind, [1.0], [zero])
        codes = torch.ops.detent.fake_quantize(
            raw.float(), torch.tensor([1.0]), torch.tensor([zero], dtype=torch.int32), grid.qmin, grid.qmax, None, None
        )
        np.testing.assert_array_equal(codes.numpy(), raw.numpy())


def test_signed_bytes_are_exact_where_codes_are_symmetric() -> None:
    raw = torch.arange(-128, 128).to(torch.int8).reshape(4, 1, 8, 8)
    record = Preprocessing(scale=1 / 255, mean=0.5 - 128 / 255, std=0.25, dtype="int8")
    qmodel = detent.quantize(nn.Conv2d(1, 4, 3), raw // 8, target="tensorrt", preprocessing=record, progress=False)
    grid = qmodel.plan.activation_grid("input")
    assert grid is not None
    assert (grid.kind, grid.scale.tolist(), grid.zero_point.tolist()) == ("symmetric", [1.0], [0])
