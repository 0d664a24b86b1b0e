"""Regrouping: whatever batches the user hands in, the model runs on batches of one size.

Torch's own kernels round differently at different batch sizes, so a fixed internal batch is what makes statistics the
same bits for any batching of the same samples.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence

import torch

from detent.errors import CalibrationError
from detent.graph import InputSpec

__all__ = ["Batch", "SampleDigest", "SampleQueue", "pad"]

Batch = list[torch.Tensor]
"""One tensor per model input, in the model's order."""


class SampleQueue:
    """Takes checked batches of any size and hands out batches of the size asked for.

    Args:
        batches: the user's batches, checked; at most one of them is held beyond what was asked for.
        specs: the model's inputs.
    """

    def __init__(self, batches: Iterator[Batch], specs: Sequence[InputSpec]) -> None:
        self._batches = batches
        self._specs = specs
        self._pending: deque[Batch] = deque()
        self._waiting = 0
        self._shared: Batch | None = None

    def pull(self, count: int) -> Batch:
        """The next `count` samples as fresh tensors; fewer at the end of the data, none (an empty list) after it."""
        while self._waiting < count:
            batch = next(self._batches, None)
            if batch is None:
                break
            self._check_shared(batch)
            self._pending.append(batch)
            self._waiting += self.size(batch)
        pieces = []
        missing = count
        while missing and self._pending:
            batch = self._pending.popleft()
            size = self.size(batch)
            if size > missing:
                self._pending.appendleft(self._part(batch, missing, size - missing))
                batch = self._part(batch, 0, missing)
                size = missing
            pieces.append(batch)
            missing -= size
        self._waiting -= count - missing
        return [_join(parts, spec) for parts, spec in zip(zip(*pieces, strict=True), self._specs, strict=False)]

    def pull_own(self) -> Batch:
        """The user's next batch as it came, as fresh tensors; an empty list after the last one.

        Not to be mixed with `pull`, which may leave a part of a batch behind.
        """
        batch = next(self._batches, None)
        if batch is None:
            return []
        self._check_shared(batch)
        return [tensor.clone() for tensor in batch]

    def size(self, batch: Batch) -> int:
        """Samples in a batch; a model none of whose inputs has a batch axis takes one sample at a time."""
        for tensor, spec in zip(batch, self._specs, strict=True):
            if spec.batch_axis is not None:
                return tensor.shape[spec.batch_axis]
        return 1

    def _part(self, batch: Batch, start: int, length: int) -> Batch:
        return [
            tensor if spec.batch_axis is None else tensor.narrow(spec.batch_axis, start, length)
            for tensor, spec in zip(batch, self._specs, strict=True)
        ]

    def _check_shared(self, batch: Batch) -> None:
        # An input without a batch axis is shared by all samples of a batch, and regrouping mixes the user's batches.
        if self._shared is None:
            self._shared = batch
        for first, tensor, spec in zip(self._shared, batch, self._specs, strict=True):
            shared = spec.batch_axis is None and any(other.batch_axis is not None for other in self._specs)
            if shared and not torch.equal(first, tensor):
                raise CalibrationError(
                    f"input {spec.name!r} has no batch axis, but its values differ between batches",
                    where=f"input {spec.name!r}",
                    remedy="give the same values in every batch, or make it an input with a batch axis",
                )


class SampleDigest:
    """A running hash of the samples in order, the same for any batching of them.

    Args:
        specs: the model's inputs.
        of_batches: hash where batches end too, so that another batching of the samples gives another hash.
    """

    def __init__(self, specs: Sequence[InputSpec], of_batches: bool = False) -> None:
        self._specs = specs
        self._of_batches = of_batches
        self._hashes = [hashlib.blake2b(digest_size=16) for _ in specs]

    def copy(self) -> SampleDigest:
        """An independent hash that has seen the same samples."""
        other = SampleDigest(self._specs, self._of_batches)
        other._hashes = [digest.copy() for digest in self._hashes]
        return other

    def update(self, batch: Batch, samples: int | None = None) -> None:
        """Add the first `samples` samples of a batch, by default all."""
        for tensor, spec, digest in zip(batch, self._specs, self._hashes, strict=True):
            if spec.batch_axis is not None:
                rows = tensor.movedim(spec.batch_axis, 0)[:samples]
                digest.update(rows.contiguous().numpy().data)
                if self._of_batches:
                    digest.update(len(rows).to_bytes(8, "little"))

    def hexdigest(self) -> str:
        """The hash of all samples so far."""
        return ".".join(digest.hexdigest() for digest in self._hashes)


def pad(batch: Batch, specs: Sequence[InputSpec], missing: int) -> Batch:
    """Repeat the last sample of a batch `missing` times."""
    padded = []
    for tensor, spec in zip(batch, specs, strict=True):
        if spec.batch_axis is not None and missing:
            last = tensor.narrow(spec.batch_axis, tensor.shape[spec.batch_axis] - 1, 1)
            tensor = torch.cat([tensor, *[last] * missing], dim=spec.batch_axis)
        padded.append(tensor)
    return padded


def _join(parts: Sequence[torch.Tensor], spec: InputSpec) -> torch.Tensor:
    # Always a copy: a model may write into its input, and the user's data must not change.
    if spec.batch_axis is None:
        return parts[0].clone()
    return torch.cat(list(parts), dim=spec.batch_axis)
