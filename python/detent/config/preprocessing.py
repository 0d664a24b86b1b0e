"""`Preprocessing`: what happens to raw input before the network that was trained sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator, model_validator

from detent._registry import unknown_name
from detent._validation import Options
from detent.errors import ConfigError

__all__ = ["Preprocessing", "RawType", "Resize", "assign_records", "resolve_preprocessing"]

RawType = Literal["float32", "int8", "uint8", "int16", "uint16"]
Finite = Annotated[float, Field(allow_inf_nan=False)]

_RANGES: Final = {
    "int8": (-128.0, 127.0),
    "uint8": (0.0, 255.0),
    "int16": (-32768.0, 32767.0),
    "uint16": (0.0, 65535.0),
}


class Resize(Options):
    """How a consumer brings an input to the network's size. Written down for it; detent resizes nothing.

    Attributes:
        size: height and width in pixels.
        interpolation: how values between pixels are found.
    """

    size: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1, max_length=3)]
    interpolation: Literal["nearest", "bilinear", "bicubic", "area", "lanczos"] = "bilinear"

    @field_validator("size", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class Preprocessing(Options):
    """What turns raw input into what the network was trained on; keyword only, immutable.

    In order: `x * scale`; then either `(x - mean) / std` per channel, or the same with mean and standard deviation of
    the sample itself. The sample's standard deviation is that of all its elements (divisor N), and `epsilon` is added
    to it, so that a blank sample gives zeros. `samplewise="mean_and_std"` is what MLTK calls
    `samplewise_norm.mean_and_std`, and `scale` its `samplewise_norm.rescale`.

    Attributes:
        scale: factor on raw values, positive; 1/255 takes bytes to 0..1.
        mean: one number, or one for each channel, in units of the scaled input.
        std: likewise, positive.
        samplewise: what is taken from each sample: `"mean"` is subtracted, `"std"` divided by.
        epsilon: added to the standard deviation of a sample, in units of the scaled input.
        dtype: element type of raw input. Integers may be handed to detent as they are.
        range: lowest and highest raw value; None means the whole of an integer type, and unknown for float32.
        layout: order of the axes of the network's input; None if channels lie on axis 1.
        resize: what happened to the size, for whoever feeds the network.

    Raises:
        ConfigError: an unknown key (with a suggestion), or a value that makes no sense.
    """

    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    mean: Annotated[tuple[Finite, ...], Field(min_length=1)] | None = None
    std: Annotated[tuple[Annotated[Finite, Field(gt=0)], ...], Field(min_length=1)] | None = None
    samplewise: Literal["none", "mean", "std", "mean_and_std"] = "none"
    epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-6
    dtype: RawType = "float32"
    range: tuple[Finite, Finite] | None = None
    layout: Literal["NC", "NCW", "NWC", "NCHW", "NHWC", "NCDHW", "NDHWC"] | None = None
    resize: Resize | None = None

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _as_vector(cls, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if isinstance(value, int | float) and not isinstance(value, bool):
            return (value,)
        return tuple(value) if isinstance(value, list) else value

    @field_validator("range", mode="before")
    @classmethod
    def _as_pair(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("resize", mode="before")
    @classmethod
    def _as_resize(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return Resize(**value)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Preprocessing:
        if self.samplewise != "none" and (self.mean is not None or self.std is not None):
            raise ConfigError(
                f"`samplewise` is {self.samplewise!r} and `mean` or `std` is given, which exclude each other",
                remedy="leave out `mean` and `std`, or `samplewise`",
            )
        if self.mean is not None and self.std is not None and len({len(self.mean), len(self.std)} - {1}) > 1:
            raise ConfigError(f"`mean` has {len(self.mean)} channels and `std` {len(self.std)}")
        limits = _RANGES.get(self.dtype)
        if self.range is not None:
            low, high = self.range
            if low >= high:
                raise ConfigError(f"`range` is lowest and highest raw value, got {low:g} and {high:g}")
            if limits is not None and not limits[0] <= low < high <= limits[1]:
                raise ConfigError(f"`range` {low:g} to {high:g} leaves {self.dtype}, {limits[0]:g} to {limits[1]:g}")
        return self

    @property
    def whole(self) -> bool:
        """Whether raw values are integers."""
        return self.dtype != "float32"

    @property
    def limits(self) -> tuple[float, float] | None:
        """Lowest and highest raw value, None if they are not known."""
        return self.range if self.range is not None else _RANGES.get(self.dtype)

    @property
    def channels(self) -> int:
        """How many channels `mean` and `std` tell apart; 1 if they do not."""
        return max(len(self.mean or ()), len(self.std or ()), 1)

    @property
    def channel_axis(self) -> int:
        """Axis of the channels."""
        return 1 if self.layout is None else self.layout.index("C")

    @property
    def gain(self) -> npt.NDArray[np.float64]:
        """`scale / std`, float64 `[channels]` or `[1]`: without `samplewise` the result is `gain * x + shift`."""
        return self.scale / np.asarray(self.std or (1.0,), np.float64)

    @property
    def shift(self) -> npt.NDArray[np.float64]:
        """`-mean / std`, float64 `[channels]` or `[1]`."""
        return -np.asarray(self.mean or (0.0,), np.float64) / np.asarray(self.std or (1.0,), np.float64) + 0.0

    def normalize(self, raw: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """What the network was trained on, from raw input: computed in float64 and rounded once.

        Args:
            raw: `[N, ...]` in the layout of the network's input.

        Raises:
            ConfigError: the channels are not those of `mean` and `std`.
        """
        x = raw.astype(np.float64)
        if self.samplewise == "none":
            if self.channels > 1 and (x.ndim <= self.channel_axis or x.shape[self.channel_axis] != self.channels):
                raise ConfigError(
                    f"`mean` and `std` have {self.channels} channels, the input has shape {list(raw.shape)}",
                    where=f"axis {self.channel_axis}",
                )
            shape = [-1 if axis == self.channel_axis else 1 for axis in range(x.ndim)] if self.channels > 1 else [-1]
            return (x * self.gain.reshape(shape) + self.shift.reshape(shape)).astype(np.float32)
        x = x * self.scale
        axes = tuple(range(1, x.ndim))
        deviation = x.std(axes, keepdims=True) + self.epsilon
        x = x - x.mean(axes, keepdims=True) if "mean" in self.samplewise else x
        return (x / deviation if "std" in self.samplewise else x).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what differs from the defaults, and always the type."""
        fields = type(self).model_fields
        data = self.model_dump(mode="json")
        return {name: data[name] for name in data if name == "dtype" or getattr(self, name) != fields[name].default}

    @classmethod
    def from_dict(cls, data: object, where: str = "preprocessing") -> Preprocessing:
        """Rebuild from plain data; raises `ConfigError` as the constructor, naming `where`."""
        if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
            raise ConfigError(f"preprocessing is an object, got {data!r}", where=where)
        try:
            return cls(**data)
        except ConfigError as error:
            place = where if error.where is None else f"{where}: {error.where}"
            raise ConfigError(error.what, where=place, remedy=error.remedy) from None

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        return list(self.to_dict().items())

    def __str__(self) -> str:
        return repr(self)


def resolve_preprocessing(given: Any, where: str = "preprocessing") -> Preprocessing | dict[str, Preprocessing]:
    """One record for the only input, or records by input name, from any form they may be given in.

    Args:
        given: a `Preprocessing`, a mapping from input name to one or to its plain data, the plain data of one, or None.
        where: what errors call it.

    Raises:
        ConfigError: a wrong or unknown key, or another type; the error names it.
    """
    if given is None or given == {}:
        return {}
    if isinstance(given, Preprocessing):
        return given
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ConfigError(
            f"`preprocessing` must be a Preprocessing, or a mapping from input names to them, got {given!r}",
            where=where,
        )
    inner = (Preprocessing, Mapping)
    if all(isinstance(value, inner) for value in given.values()) and set(given) != {"resize"}:
        return {
            name: value if isinstance(value, Preprocessing) else Preprocessing.from_dict(value, f"{where}: {name}")
            for name, value in given.items()
        }
    return Preprocessing.from_dict(given, where)


def assign_records(
    records: Preprocessing | Mapping[str, Preprocessing], names: Mapping[str, str]
) -> dict[str, Preprocessing]:
    """The record of each input that has one, by the input's name.

    Args:
        records: what `resolve_preprocessing` gives.
        names: every word that stands for an input, and the input's name.

    Raises:
        ConfigError: one record for several inputs, or a record for an input that is not there.
    """
    inputs = list(dict.fromkeys(names.values()))
    if isinstance(records, Preprocessing):
        if len(inputs) != 1:
            raise ConfigError(
                f"the network has {len(inputs)} inputs and one preprocessing is given",
                where=", ".join(inputs),
                remedy="give a dict from input names to records",
            )
        return dict.fromkeys(inputs, records)
    for name in records:
        if name not in names:
            raise unknown_name("input in `preprocessing`", name, inputs)
    return {names[name]: record for name, record in records.items()}
