"""`InputMoments`: first and second moments of the input patches of every layer with a kernel.

With the covariance C of a layer's patches, an error E of a kernel row moves the layer's output by E C E^T on average,
squared and without its mean: what the output loses, where the error of the weights alone only tells what the weights
lose. GPTQ and OBQ use the same matrix (Frantar et al. 2022, arXiv:2208.11580, section 3: H = 2 X X^T).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from detent.errors import FormatError
from detent.kernels.products import forms
from detent.records.files import write_atomically
from detent.records.tensor_file import read_tensor_file, tensor_file

__all__ = ["Forms", "InputMoments", "LayerMoments"]

_FORMAT: Final = "detent.moments"
_VERSION: Final = 1
_REMEDY: Final = "collect the moments again with detent.collect_moments"

Array = npt.NDArray[np.float64]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerMoments:
    """Moments of the patches of one layer; a long patch is cut into blocks whose covariances are neglected.

    Args:
        count: patches seen.
        sums: float64 `[groups, blocks, size]`.
        products: float64 `[groups, blocks, size, size]`, the sum of all patches' outer products. A last block that is
            not full has zeros at its end.
    """

    count: int
    sums: Array
    products: Array

    def __post_init__(self) -> None:
        if self.sums.ndim != 3 or self.products.shape != (*self.sums.shape, self.sums.shape[-1]) or self.count < 1:
            raise ValueError(
                f"shapes {self.sums.shape} and {self.products.shape} of {self.count} patches do not belong together"
            )

    def second(self, *, central: bool) -> Array:
        """Mean outer product of the patches, or their covariance if `central`: `[groups, blocks, size, size]`."""
        raw = self.products / self.count
        if central:
            mean = self.sums / self.count
            raw -= mean[..., :, None] * mean[..., None, :]
        return raw

    def mean_of(self, rows: FloatArray) -> Array:
        """The mean of each row's product with the patches, float64 `[groups, n]`.

        Args:
            rows: float32 `[groups, n, d]`.
        """
        mean = self.sums / self.count
        return np.asarray((_blocks(rows, mean.shape) * mean[:, :, None]).sum(axis=(1, 3)))


@dataclass(frozen=True, eq=False)
class Forms:
    """The mean of (a x)(b x) over patches x, for kernel rows a and b.

    Args:
        second: float32 `[groups, blocks, size, size]`, second moments of the patches, or covariances.
    """

    second: FloatArray

    def of(self, a: FloatArray, b: FloatArray | None = None) -> Array:
        """The form of each row of `a` and the same row of `b`, float64 `[groups, n]`.

        Args:
            a: float32 `[groups, n, d]`, errors of kernel rows for instance.
            b: of the same shape; None if it is a.
        """
        shape = self.second.shape[:3]
        one = _blocks(a, shape)
        flat = (-1, *one.shape[2:])
        other = None if b is None else _blocks(b, shape).reshape(flat)
        found = forms(one.reshape(flat), self.second.reshape(-1, *self.second.shape[2:]), other)
        return np.asarray(found.reshape(one.shape[:3]).sum(axis=1))


def _blocks(rows: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """Rows `[groups, n, d]` cut as the patches are: `[groups, blocks, n, size]`, C order."""
    groups, blocks, size = shape
    lacking = blocks * size - rows.shape[2]
    padded = np.pad(rows, [(0, 0), (0, 0), (0, lacking)]) if lacking else rows
    return np.ascontiguousarray(padded.reshape(groups, rows.shape[1], blocks, size).transpose(0, 2, 1, 3))


@dataclass(frozen=True, eq=False, repr=False)
class InputMoments(Mapping[str, LayerMoments]):
    """The moments of all layers with a kernel, by layer name.

    Args:
        layers: moments by layer.
        samples: calibration samples seen.
        fingerprint: of the graph they belong to.
    """

    layers: Mapping[str, LayerMoments]
    samples: int
    fingerprint: str

    def __getitem__(self, name: str) -> LayerMoments:
        return self.layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, InputMoments) and self.to_bytes() == other.to_bytes()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"InputMoments({len(self.layers)} layers, {self.samples} samples)"

    def forms(self, layers: Sequence[str], *, central: bool) -> Forms:
        """Mean products of what two rows of a kernel make of the patches of all its users.

        Args:
            layers: the users; those with patches of another form than the first one's are left out.
            central: take deviations from each layer's means: covariances instead of products.

        Raises:
            KeyError: the moments do not have the first layer.
        """
        shape = self[layers[0]].products.shape
        used = [self[name] for name in layers if name in self and self[name].products.shape == shape]
        if len(used) == 1:
            return Forms(used[0].second(central=central).astype(np.float32))
        total = sum(layer.count for layer in used)
        second = sum(layer.second(central=central) * (layer.count / total) for layer in used)
        return Forms(np.asarray(second, np.float32))

    def to_bytes(self) -> bytes:
        """The file's content, the same bytes for the same moments."""
        arrays = {f"{name}/{part}": getattr(layer, part) for name, layer in self.items() for part in _PARTS}
        layers = [{"name": name, "count": layer.count} for name, layer in self.items()]
        meta = {"samples": self.samples, "fingerprint": self.fingerprint, "layers": layers}
        return tensor_file(_FORMAT, _VERSION, meta, arrays)

    def save(self, path: str | Path) -> None:
        """Write the moments to `path`, completely or not at all.

        Raises:
            FormatError: the file cannot be written.
        """
        write_atomically(Path(path), self.to_bytes())

    @classmethod
    def load(cls, path: str | Path) -> InputMoments:
        """Read moments written by `save`.

        Raises:
            FormatError: the file is missing, truncated, edited, or of another version.
        """
        meta, arrays = read_tensor_file(Path(path), _FORMAT, _VERSION, _REMEDY)
        try:
            layers = {
                str(entry["name"]): LayerMoments(
                    count=int(entry["count"]), **{part: arrays[f"{entry['name']}/{part}"] for part in _PARTS}
                )
                for entry in meta["layers"]
            }
            return cls(layers, int(meta["samples"]), str(meta["fingerprint"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(f"the moments contradict themselves: {error}", where=str(path), remedy=_REMEDY) from None


_PARTS: Final = ("sums", "products")
