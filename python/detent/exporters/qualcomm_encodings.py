"""Encodings files: the grids of an ONNX file's tensors as JSON, in the three versions Qualcomm's converters read.

All versions describe the same grids. The older two count from the lowest code of an unsigned grid, `real = scale *
(code + offset)` with codes from 0, whatever the codes of the tensor are; 2.0.0 has ONNX's zero points. Readers guess
the version of an entry from its keys, so a file that mixes them is read wrongly without a word.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detent._registry import Registry
from detent.errors import ExportError

__all__ = ["VERSIONS", "Encoding", "EncodingsVersion", "check_entries", "encode"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoding:
    """The grid of one tensor.

    Args:
        name: the tensor's ONNX name.
        where: name of the value and the user's source line, for errors.
        bits: width of the codes: 4, 8 or 16, or 32 for a bias.
        signed: whether they are signed.
        scale: steps, float32 `[n]`: one, one for each channel, or one for each channel and group, channel first.
        zero_point: codes of real zero, int32 `[n]`.
        shape: of the tensor; None where it is computed, not stored.
        axis: along which the channels lie; None for one step.
        block_axis: along which groups lie; None without groups.
        block_size: entries of a group.
    """

    name: str
    where: str
    bits: int
    signed: bool
    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[np.int32]
    shape: tuple[int, ...] | None = None
    axis: int | None = None
    block_axis: int | None = None
    block_size: int | None = None

    @property
    def symmetric(self) -> bool:
        """Whether codes are signed and zero is code 0."""
        return self.signed and not bool(np.any(self.zero_point))

    @property
    def offset(self) -> list[int]:
        """Minus the unsigned codes of real zero."""
        lowest = -(1 << (self.bits - 1)) if self.signed else 0
        return [lowest - int(zero) for zero in self.zero_point]

    @property
    def steps(self) -> list[float]:
        """The scales, each exactly."""
        return [float(step) for step in self.scale]

    def same_grid(self, other: Encoding) -> bool:
        """Whether the other tensor's grid is this one."""
        kept = (self.bits, self.signed, self.axis, self.block_axis, self.block_size)
        theirs = (other.bits, other.signed, other.axis, other.block_axis, other.block_size)
        return (
            kept == theirs
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )


@dataclass(frozen=True, kw_only=True)
class EncodingsVersion:
    """A version of the format.

    Args:
        write: makes the document.
        required: keys of every entry.
        optional: keys that an entry may have besides.
        states_axis: whether an entry says along which axis its channels lie; without, readers go by the operator.
        blocks: whether there is a form for groups.
        biases: whether 32-bit biases have entries; without, converters derive them.
    """

    write: Callable[[Sequence[Encoding]], dict[str, Any]]
    required: frozenset[str]
    optional: frozenset[str] = frozenset()
    states_axis: bool = False
    blocks: bool = True
    biases: bool = False


def encode(encodings: Sequence[Encoding], version: str) -> bytes:
    """The content of an encodings file.

    Raises:
        ConfigError: an unknown version.
        ExportError: an encoding has no form in this version.
    """
    rules = VERSIONS[version]
    for encoding in encodings:
        if encoding.block_size is not None and not rules.blocks:
            raise ExportError(
                f"encodings {version} have no form for steps of groups",
                where=encoding.where,
                remedy="use version='1.0.0' or '2.0.0', or a grid per channel",
            )
    written = [encoding for encoding in encodings if encoding.bits < 32 or rules.biases]
    document = rules.write(written)
    check_entries(document)
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()


def check_entries(document: dict[str, Any]) -> None:
    """Refuse a document with an entry of another version than its own, and a tensor with two entries.

    Raises:
        ConfigError: an unknown version.
        ExportError: the first such entry.
    """
    version = str(document.get("version"))
    rules = VERSIONS[version]
    seen: set[str] = set()
    for name, entries in _entries(document):
        for keys in map(set, entries):
            wrong = (rules.required - keys) | (keys - rules.required - rules.optional)
            if wrong:
                raise ExportError(
                    f"an entry has other keys than those of encodings {version}: {', '.join(sorted(wrong))}",
                    where=name,
                    remedy="write all entries of a file in one version",
                )
        if name in seen:
            raise ExportError("a tensor has two encodings", where=name)
        seen.add(name)


def _entries(document: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Every tensor's name with its entry; in the oldest version it has one for each channel."""
    for key in ("encodings", "activation_encodings", "param_encodings"):
        section = document.get(key, [])
        if isinstance(section, dict):
            yield from section.items()
        else:
            yield from ((str(entry.get("name")), [entry]) for entry in section)


def _write_0_6_1(encodings: Sequence[Encoding]) -> dict[str, Any]:
    def entries(encoding: Encoding) -> list[dict[str, Any]]:
        return [
            {
                "bitwidth": encoding.bits,
                "dtype": "int",
                "is_symmetric": str(encoding.symmetric),
                "max": step * (offset + (1 << encoding.bits) - 1),
                "min": step * offset,
                "offset": offset,
                "scale": step,
            }
            for step, offset in zip(encoding.steps, encoding.offset, strict=True)
        ]

    return {
        "version": "0.6.1",
        "activation_encodings": {one.name: entries(one) for one in encodings if one.shape is None},
        "param_encodings": {one.name: entries(one) for one in encodings if one.shape is not None},
        "quantizer_args": _summary(encodings),
    }


def _write_1_0_0(encodings: Sequence[Encoding]) -> dict[str, Any]:
    def entry(encoding: Encoding) -> dict[str, Any]:
        kind = "PER_TENSOR" if encoding.axis is None else "PER_CHANNEL"
        blocks = {} if encoding.block_size is None else {"block_size": encoding.block_size}
        order = _block_order(encoding)
        return {
            "name": encoding.name,
            "enc_type": "PER_BLOCK" if blocks else kind,
            "dtype": "INT",
            "bw": encoding.bits,
            "is_sym": encoding.symmetric,
            "scale": [encoding.steps[place] for place in order],
            "offset": [encoding.offset[place] for place in order],
            **blocks,
        }

    return {
        "version": "1.0.0",
        "activation_encodings": [entry(one) for one in encodings if one.shape is None],
        "param_encodings": [entry(one) for one in encodings if one.shape is not None],
        "quantizer_args": _summary(encodings),
    }


def _write_2_0_0(encodings: Sequence[Encoding]) -> dict[str, Any]:
    def entry(encoding: Encoding) -> dict[str, Any]:
        found: dict[str, Any] = {
            "name": encoding.name,
            "output_dtype": f"{'' if encoding.signed else 'u'}int{encoding.bits}",
            "y_scale": _nested(encoding, encoding.scale.astype(np.float64)),
        }
        if np.any(encoding.zero_point):
            found["y_zero_point"] = _nested(encoding, encoding.zero_point)
        if encoding.block_size is not None:
            found |= {"axis": encoding.block_axis, "block_size": encoding.block_size}
        elif encoding.axis is not None:
            found["axis"] = encoding.axis
        return found

    return {"version": "2.0.0", "encodings": [entry(one) for one in encodings]}


def _block_order(encoding: Encoding) -> npt.NDArray[Any]:
    """Places of the steps in the order of 1.0.0: channel first, but that of the tensor where kernels are transposed."""
    places = np.arange(encoding.scale.size)
    if encoding.shape is None or encoding.axis is None or encoding.block_size is None:
        return places
    channel_last = encoding.axis > 0 and len(encoding.shape) > 2
    return places.reshape(encoding.shape[encoding.axis], -1).T.ravel() if channel_last else places


def _nested(encoding: Encoding, values: npt.NDArray[Any]) -> Any:
    """Values as 2.0.0 has them: a number, a list, or lists shaped as the tensor, with groups along their axis."""
    if encoding.axis is None:
        return values.tolist()[0]
    if encoding.shape is None or encoding.block_axis is None:
        return values.tolist()
    channels = encoding.shape[encoding.axis]
    table = values.reshape(channels, -1)
    table = table if encoding.axis < encoding.block_axis else table.T
    sizes = {encoding.axis: channels, encoding.block_axis: values.size // channels}
    return table.reshape([sizes.get(dim, 1) for dim in range(len(encoding.shape))]).tolist()


def _summary(encodings: Sequence[Encoding]) -> dict[str, Any]:
    """What most entries have in common, for tensors that a converter finds without one."""
    values = [one for one in encodings if one.shape is None]
    kernels = [one for one in encodings if one.shape is not None]
    return {
        "activation_bitwidth": _most([one.bits for one in values], 8),
        "param_bitwidth": _most([one.bits for one in kernels], 8),
        "dtype": "int",
        "is_symmetric": str(_most([one.symmetric for one in kernels], True)),
        "per_channel_quantization": str(any(one.axis is not None for one in kernels)),
        "quant_scheme": "post_training_tf",
    }


def _most(found: Sequence[int], otherwise: int) -> int:
    return Counter(found).most_common(1)[0][0] if found else otherwise


VERSIONS: Final[Registry[EncodingsVersion]] = Registry("version of encodings")
"""By its name in the file."""

VERSIONS.add(
    "0.6.1",
    EncodingsVersion(
        write=_write_0_6_1,
        required=frozenset({"bitwidth", "dtype", "is_symmetric", "max", "min", "offset", "scale"}),
        blocks=False,
    ),
)
VERSIONS.add(
    "1.0.0",
    EncodingsVersion(
        write=_write_1_0_0,
        required=frozenset({"name", "enc_type", "dtype", "bw", "is_sym", "scale", "offset"}),
        optional=frozenset({"block_size"}),
    ),
)
VERSIONS.add(
    "2.0.0",
    EncodingsVersion(
        write=_write_2_0_0,
        required=frozenset({"name", "output_dtype", "y_scale"}),
        optional=frozenset({"y_zero_point", "axis", "block_size"}),
        states_axis=True,
        biases=True,
    ),
)
