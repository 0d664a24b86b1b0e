"""Regrouping: all samples once, in order, never more held than needed, whatever the batches were."""

from __future__ import annotations

import pytest
import torch

from detent.graph import InputSpec
from detent.statistics.batches import SampleDigest, SampleQueue, pad


def spec(axis=0, name="x"):
    return InputSpec(name=name, key=None, shape=(2, 3), dtype=torch.float32, batch_axis=axis)


def rows(count):
    return torch.arange(count * 3, dtype=torch.float32).reshape(count, 3)


@pytest.mark.parametrize("given", [[10], [1] * 10, [3, 3, 4], [7, 2, 1]])
@pytest.mark.parametrize("wanted", [1, 4, 10, 64])
def test_every_sample_once_in_order(given, wanted):
    data = rows(10)
    queue = SampleQueue(([part] for part in data.split(given)), [spec()])
    pulled = []
    while batch := queue.pull(wanted):
        pulled.append(batch[0])
    assert torch.equal(torch.cat(pulled), data)
    assert [len(batch) for batch in pulled[:-1]] == [wanted] * (len(pulled) - 1)
    assert queue.pull(wanted) == []


def test_samples_on_another_axis_and_a_shared_input():
    data, shared = rows(10).T.contiguous(), rows(1)
    specs = [spec(axis=1), spec(axis=None, name="mask")]
    queue = SampleQueue(([part, shared] for part in data.split(3, dim=1)), specs)
    first = queue.pull(4)
    assert queue.size(first) == 4
    assert torch.equal(first[0], data[:, :4])
    assert torch.equal(first[1], shared)
    assert torch.equal(queue.pull(64)[0], data[:, 4:])


def test_reads_no_further_than_it_must():
    taken = []

    def source():
        for index in range(100):
            taken.append(index)
            yield [rows(8)]

    queue = SampleQueue(source(), [spec()])
    queue.pull(8)
    assert len(taken) == 1
    queue.pull(12)
    assert len(taken) == 3


def test_pulled_batches_are_copies():
    data = rows(4)
    SampleQueue(iter([[data]]), [spec()]).pull(4)[0].zero_()
    assert torch.equal(data, rows(4))


def test_padding_repeats_the_last_sample():
    (padded,) = pad([rows(2)], [spec()], 3)
    assert torch.equal(padded, rows(2)[[0, 1, 1, 1, 1]])
    (padded,) = pad([rows(2).T], [spec(axis=1)], 1)
    assert torch.equal(padded, rows(2).T[:, [0, 1, 1]])
    assert pad([rows(2)], [spec(axis=None)], 3)[0].shape == (2, 3)


def test_digest_depends_on_samples_and_order_only():
    def digest(parts):
        running = SampleDigest([spec()])
        for part in parts:
            running.update([part])
        return running.hexdigest()

    data = rows(10)
    assert digest(data.split(3)) == digest([data]) == digest(data.t().contiguous().t().split(1))
    assert digest([data.flip(0)]) != digest([data])
    partial = SampleDigest([spec()])
    partial.update([data], 4)
    assert partial.hexdigest() == digest([data[:4]])
    branch = partial.copy()
    branch.update([data[4:]])
    assert branch.hexdigest() == digest([data])
    assert partial.hexdigest() == digest([data[:4]])
