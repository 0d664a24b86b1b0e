"""`Preprocessing` says what happens to raw input, and refuses what makes no sense."""

from __future__ import annotations

import numpy as np
import pytest

from detent import Preprocessing
from detent.config import Resize, resolve_preprocessing
from detent.errors import ConfigError

PHOTO = Preprocessing(
    scale=1 / 255,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    dtype="uint8",
    layout="NCHW",
    resize=Resize(size=(224, 224), interpolation="bicubic"),
)


def test_it_normalizes_per_channel() -> None:
    raw = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (PHOTO.mean, PHOTO.std))
    np.testing.assert_allclose(PHOTO.normalize(raw), (raw / 255 - mean) / std, rtol=1e-6, atol=1e-6)
    last = Preprocessing(**{**PHOTO.model_dump(exclude={"resize"}), "layout": "NHWC"})
    moved = np.moveaxis(last.normalize(np.moveaxis(raw, 1, 3)), 3, 1)
    np.testing.assert_array_equal(moved, PHOTO.normalize(raw))


@pytest.mark.parametrize("samplewise", ["mean", "std", "mean_and_std"])
def test_it_normalizes_by_the_sample(samplewise: str) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (5, 1, 6, 6)).astype(np.uint8)
    raw[0] = 17
    got = Preprocessing(samplewise=samplewise, dtype="uint8").normalize(raw)
    for x, y in zip(raw.astype(np.float64), got, strict=True):
        centred = x - x.mean() if "mean" in samplewise else x
        np.testing.assert_allclose(y, centred / (x.std() + 1e-6) if "std" in samplewise else centred, rtol=1e-6)
    if samplewise == "mean_and_std":
        assert not got[0].any(), "a blank sample gives zeros"


def test_a_constant_factor_does_not_change_what_is_divided_by_its_deviation() -> None:
    raw = np.random.default_rng(1).integers(0, 256, (2, 1, 6, 6)).astype(np.uint8)
    plain, scaled = (Preprocessing(samplewise="mean_and_std", scale=s, epsilon=1e-6 * s) for s in (1.0, 1 / 255))
    np.testing.assert_allclose(plain.normalize(raw), scaled.normalize(raw), rtol=1e-5, atol=1e-6)


def test_plain_data_restore_it() -> None:
    assert Preprocessing.from_dict(PHOTO.to_dict()) == PHOTO
    assert PHOTO.to_dict()["resize"] == {"size": [224, 224], "interpolation": "bicubic"}
    assert Preprocessing().to_dict() == {"dtype": "float32"}
    assert resolve_preprocessing({"image": PHOTO.to_dict()}) == {"image": PHOTO}
    assert resolve_preprocessing(PHOTO.to_dict()) == PHOTO
    assert resolve_preprocessing(None) == {}


def test_limits_of_raw_values() -> None:
    assert PHOTO.limits == (0, 255)
    assert Preprocessing(dtype="int16").limits == (-32768, 32767)
    assert Preprocessing().limits is None
    assert Preprocessing(dtype="uint8", range=(16, 235)).limits == (16, 235)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scale": -1.0}, ["scale", "greater than 0"]),
        ({"scale": 0}, ["scale", "greater than 0"]),
        ({"std": [0.2, 0.0, 0.2]}, ["std.1", "greater than 0"]),
        ({"mean": [0.1, float("nan")]}, ["mean.1", "finite"]),
        ({"mean": []}, ["mean"]),
        ({"mean": [0.1, 0.2], "std": [1.0, 1.0, 1.0]}, ["`mean` has 2 channels and `std` 3"]),
        ({"layout": "NHCW"}, ["layout", "'NHCW'", "NCHW, NCW"]),
        ({"dtype": "uint9"}, ["dtype", "did you mean 'uint8'?"]),
        ({"samplewise": "both"}, ["samplewise", "mean_and_std"]),
        ({"samplewise": "mean_and_std", "mean": 0.5}, ["`samplewise` is 'mean_and_std' and `mean` or `std` is given"]),
        ({"range": (5, 5)}, ["`range`", "got 5 and 5"]),
        ({"range": (0, 256), "dtype": "uint8"}, ["`range` 0 to 256 leaves uint8"]),
        ({"resize": {"size": [0, 3]}}, ["resize", "size.0", "greater than or equal to 1"]),
        ({"resize": {"size": [3, 3], "interpolation": "cubic"}}, ["interpolation", "did you mean 'bicubic'?"]),
        ({"means": 0.5}, ["unknown key 'means'", "did you mean 'mean'?"]),
    ],
)
def test_nonsense_is_refused(options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Preprocessing(**options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_wrong_form_is_refused() -> None:
    with pytest.raises(ConfigError, match="mapping from input names"):
        resolve_preprocessing([PHOTO])
    with pytest.raises(ConfigError, match="std") as caught:
        resolve_preprocessing({"image": {"std": -1.0}})
    assert "image" in str(caught.value)
    with pytest.raises(ConfigError, match="3 channels"):
        PHOTO.normalize(np.zeros((2, 1, 4, 4)))
