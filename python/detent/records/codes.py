"""`KernelCodes`: the codes of a kernel that was not rounded to nearest."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detent._registry import unknown_name
from detent.errors import ConfigError
from detent.records.grid import Grid

__all__ = ["KernelCodes", "pack_codes", "unpack_codes"]

_KEYS: Final = ("method", "shape", "check", "packed")
_BLOCK: Final = 1 << 20
_REMEDY: Final = "remove `codes` to round the kernel to nearest, or round it again"

Codes = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class KernelCodes:
    """One code for each element of a kernel, on the grid that stands beside it in the plan.

    Args:
        codes: in C order, shaped like the kernel, in `grid.storage`; places in the table for a lut grid.
        method: how they were found, `"gptq"` for instance.
        grid: the grid they are for.

    Raises:
        ConfigError: a code that is not on the grid.
    """

    codes: Codes
    method: str
    grid: Grid

    def __post_init__(self) -> None:
        lowest, highest = self.grid.code_range
        if self.codes.size and not lowest <= int(self.codes.min()) <= int(self.codes.max()) <= highest:
            raise ConfigError(
                f"codes {int(self.codes.min())}..{int(self.codes.max())} do not lie in {lowest}..{highest}",
                remedy=_REMEDY,
            )
        codes = np.ascontiguousarray(self.codes, self.grid.storage)
        codes.setflags(write=False)
        object.__setattr__(self, "codes", codes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KernelCodes) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: codes in as many bits as they have, the lowest bit first, in base64."""
        packed = pack_codes(self.codes, self.grid.bits)
        return {
            "method": self.method,
            "shape": list(self.codes.shape),
            "check": _check(self.grid, packed),
            "packed": base64.b64encode(packed).decode("ascii"),
        }

    @classmethod
    def from_dict(cls, data: object, grid: Grid, where: str) -> KernelCodes:
        """Rebuild codes; errors carry `where`, the name of the layer.

        Raises:
            ConfigError: the grid or the codes were edited, or there is something else.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"`codes` is an object, got {data!r}", where=where, remedy=_REMEDY)
        for key in data:
            if key not in _KEYS:
                raise unknown_name("key of `codes`", key, _KEYS).at(where)
        shape = data.get("shape")
        if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
            raise ConfigError(f"the `shape` of codes is a list of sizes, got {shape!r}", where=where, remedy=_REMEDY)
        try:
            packed = base64.b64decode(str(data.get("packed")), validate=True)
        except (binascii.Error, ValueError):
            raise ConfigError("`packed` codes are no base64", where=where, remedy=_REMEDY) from None
        count = int(np.prod(shape, dtype=object))
        if len(packed) != -(-count * grid.bits // 8) or data.get("check") != _check(grid, packed):
            raise ConfigError("the codes are not those of this grid: one was edited", where=where, remedy=_REMEDY)
        codes = unpack_codes(packed, count, grid.bits, signed=grid.code_range[0] < 0).reshape(shape)
        try:
            return cls(codes=codes, method=str(data.get("method", "edited")), grid=grid)
        except ConfigError as error:
            raise error.at(where) from None


def pack_codes(codes: Codes, bits: int) -> bytes:
    """Codes of 1 to 16 bits in C order, without gaps: of each code and of each byte the lowest bit first."""
    flat, places = codes.reshape(-1), np.arange(bits, dtype=np.uint16)
    parts = []
    # Whole bytes at a time: each bit takes a byte of memory on the way.
    for start in range(0, flat.size, _BLOCK):
        words = flat[start : start + _BLOCK].astype(np.uint16)  # two's complement
        found = ((words[:, None] >> places) & 1).astype(np.uint8)
        parts.append(np.packbits(found, bitorder="little").tobytes())
    return b"".join(parts)


def unpack_codes(packed: bytes, count: int, bits: int, *, signed: bool) -> npt.NDArray[np.int32]:
    """The codes that `pack_codes` packed, int32 `[count]`."""
    codes = np.empty(count, np.int32)
    weights = (1 << np.arange(bits)).astype(np.int32)
    for start in range(0, count, _BLOCK):
        size = min(_BLOCK, count - start)
        part = np.frombuffer(packed, np.uint8, count=-(-size * bits // 8), offset=start * bits // 8)
        found = np.unpackbits(part, count=size * bits, bitorder="little")
        codes[start : start + size] = found.reshape(size, bits).astype(np.int32) @ weights
    if signed:
        codes[codes >= 1 << (bits - 1)] -= 1 << bits
    return codes


def _check(grid: Grid, packed: bytes) -> str:
    described = json.dumps(grid.to_dict(), sort_keys=True).encode("utf-8")
    return f"{zlib.crc32(packed, zlib.crc32(described)):08x}"
