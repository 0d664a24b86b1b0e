"""`calibrate`: the only pass over the data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from detent.errors import CalibrationError, ConfigError, FormatError
from detent.graph import Graph
from detent.graph.executor import Executor
from detent.graph.names import RANGE
from detent.graph.side_by_side import worker_count
from detent.records.files import check_writable
from detent.records.moving import require_momentum
from detent.records.statistics import Statistics, TensorStatistics
from detent.statistics.batches import Batch, SampleDigest, SampleQueue, pad
from detent.statistics.checkpoint import Checkpoint, read_checkpoint
from detent.statistics.collector import Collector, merge
from detent.statistics.data import Data, checked_batches, comes_whole, expected_samples
from detent.statistics.diagnosis import check_weights, describe_node, nonfinite_error
from detent.statistics.inputs import note
from detent.statistics.moving import MovingMaxima
from detent.statistics.observation import observed_values
from detent.statistics.progress import progress_bar
from detent.statistics.workers import Counted, Job, Workers

__all__ = ["calibrate"]


def calibrate(
    graph: Graph,
    data: Data,
    *,
    progress: bool = True,
    batch_size: int = 64,
    values: Collection[str] | None = None,
    channels: bool = True,
    moving_maximum: float | None = None,
    resume: str | Path | None = None,
    save_every: int = 8,
) -> Statistics:
    """Run the model over the calibration data once and collect the statistics of every value a target may quantize.

    Samples are regrouped into batches of `batch_size` (the last one padded, the padding not counted), so the result is
    the same bits whatever batches the data come in, in any order of the samples, and for any number of threads. Memory
    does not grow with the number of samples.

    Args:
        graph: the captured model.
        data: a DataLoader, any iterable of batches or a function that returns one; an array or tensor, a dict of them
            by input name, or the path of an `.npz` file. A batch is a tensor, an array, a tuple, a list or a dict;
            labels next to the inputs are ignored with a note.
        progress: show a progress bar, if the error output is a terminal.
        batch_size: samples run at a time; a model captured with a fixed batch runs with that one.
        values: names of the values to observe; None for all.
        channels: also collect minimum, maximum and mean per channel.
        moving_maximum: also collect a moving maximum of the magnitudes with this momentum, as QuantizeML does with 0.9,
            for `activation_metric="moving_maximum"`. It depends on order and size of the batches, so the model then
            runs on the batches as they come, one after the other; only data in one piece are divided by `batch_size`.
            Such statistics cannot be merged.
        resume: file for partial statistics. If it exists, the samples it has counted are skipped and counting goes on;
            the result is the same bits as without the interruption. It is kept when the run is complete.
        save_every: batches between two writes of the `resume` file.

    Raises:
        CalibrationError: the data are empty or do not fit the model, a value or parameter is NaN or infinite, or the
            `resume` file belongs to another run.
        ConfigError: an option is out of range, or a name in `values` is not a value of the graph.
        FormatError: an `.npz` or `resume` file is damaged or cannot be written.
    """
    if not isinstance(graph, Graph):
        raise ConfigError(f"`graph` must be a Graph, got a {type(graph).__name__}", remedy="call detent.capture first")
    for name, number in (("batch_size", batch_size), ("save_every", save_every)):
        if number < 1:
            raise ConfigError(f"`{name}` must be at least 1, got {number}")
    notes: list[str] = []
    if moving_maximum is not None:
        require_momentum(moving_maximum)
    if not graph.batch.dynamic:
        batch_size = graph.batch.size
        note(notes, f"the model was captured with a fixed batch and ran on {batch_size} samples at a time")
    check_weights(graph)
    path, own = None if resume is None else Path(resume), moving_maximum is not None and not comes_whole(data)
    run = _Run(graph, batch_size, (values, channels), path, save_every, notes, moving_maximum, own)
    queue = SampleQueue(checked_batches(data, graph, notes), graph.inputs)
    with progress_bar("calibrating", "samples", expected_samples(data, graph), wanted=progress) as show:
        run.skip_counted(queue)
        run.count_rest(queue, show)
    return run.statistics()


class _Run:
    """One pass over the data, with its checkpoints."""

    def __init__(
        self,
        graph: Graph,
        batch_size: int,
        observed: tuple[Collection[str] | None, bool],
        path: Path | None,
        save_every: int,
        notes: list[str],
        momentum: float | None,
        own_batches: bool,
    ) -> None:
        self._graph = graph
        self._batch_size = batch_size
        self._momentum = momentum
        self._own_batches = own_batches
        self._path = path
        self._save_every = save_every
        self._notes = notes
        self._fingerprint = graph.fingerprint()
        values, channels = observed
        observations = observed_values(graph, values, notes)
        if not channels:
            observations = [replace(observation, channel_axis=None) for observation in observations]
        self._observations = observations
        self._separable = all(observation.attributed or observation.constant for observation in observations)
        nodes = [observation.value.node for observation in observations]
        self._executor = Executor(graph.module, nodes, lambda node: describe_node(graph, node))
        self._checkpoint = None if path is None else self._read_checkpoint(path)
        self._collectors: list[Collector] = []
        self._counted = Counted(0, "")
        self._digest = SampleDigest(graph.inputs, of_batches=momentum is not None)

    def statistics(self) -> Statistics:
        """What has been counted so far; no batch may be on its way."""
        collected = self._collectors[0].moving
        moving = None if collected is None else collected.record()
        merged = merge(self._collectors)
        notes = (*self._notes, *self._beyond_declared(merged), *(() if moving is None else (moving.note,)))
        return Statistics(merged, self._counted.samples, self._fingerprint, notes, moving)

    def _beyond_declared(self, seen: Mapping[str, TensorStatistics]) -> Iterator[str]:
        """A note for each input whose values leave the range that was declared for it."""
        for observation in self._observations:
            name, limits = observation.name, observation.value.node.meta.get(RANGE)
            if limits is not None and (seen[name].minimum < limits[0] or seen[name].maximum > limits[1]):
                yield (
                    f"{name}: values from {seen[name].minimum:g} to {seen[name].maximum:g} were seen, and the declared "
                    f"range ends at {limits[0]:g} and {limits[1]:g}: what lies beyond is clipped"
                )

    def _pull(self, queue: SampleQueue, most: int) -> Batch:
        """The next batch: of at most so many samples, or the user's own."""
        if not self._own_batches:
            return queue.pull(most)
        batch = queue.pull_own()
        if batch and not self._graph.batch.dynamic and queue.size(batch) != self._batch_size:
            raise CalibrationError(
                f"the model takes exactly {self._batch_size} samples at a time, and a batch has {queue.size(batch)}",
                remedy=f"give batches of {self._batch_size}, or capture the model with a dynamic batch",
            )
        return batch

    def skip_counted(self, queue: SampleQueue) -> None:
        """Pass over the samples the checkpoint has counted, making sure that they are the same.

        Raises:
            CalibrationError: they are not.
        """
        if self._checkpoint is None:
            return
        missing = self._checkpoint.statistics.samples
        while missing > 0:
            batch = self._pull(queue, min(missing, self._batch_size))
            if not batch:
                break
            self._digest.update(batch)
            missing -= queue.size(batch)
        if missing or self._digest.hexdigest() != self._checkpoint.data_digest:
            samples = self._checkpoint.statistics.samples
            raise CalibrationError(
                f"the data do not begin with the {samples} samples that were counted before the interruption",
                where=str(self._path),
                remedy="give the same data in the same order (a DataLoader without shuffle), or another `resume` path",
            )
        self._counted = Counted(self._checkpoint.statistics.samples, self._digest.hexdigest())

    def count_rest(self, queue: SampleQueue, show: Callable[[int], None]) -> None:
        """Count everything the queue still has, and save what is counted if the run ends early."""
        # A moving maximum must see the batches in their order too.
        in_order = self._executor.draws_random_numbers or self._momentum is not None
        earlier = None if self._checkpoint is None else self._checkpoint.statistics
        moving = None
        if self._momentum is not None:
            names = [observation.name for observation in self._observations]
            moving = MovingMaxima(self._momentum, names, None if earlier is None else earlier.moving)
        self._collectors = [
            Collector(self._observations, None if worker else earlier, moving)
            for worker in range(worker_count(in_order=in_order))
        ]
        self._executor.show_constants(self._collectors[0].observe)
        show(self._counted.samples)
        with Workers(self._collectors, self._count, self._counted, show) as workers:
            try:
                self._hand_out(queue, workers)
            except KeyboardInterrupt:
                if self._path is not None and workers.stop():
                    self._save(workers)
                raise KeyboardInterrupt(self._interruption(workers.counted.samples)) from None
            self._counted = workers.counted

    def _hand_out(self, queue: SampleQueue, workers: Workers) -> None:
        handed_out, batches = self._counted.samples, 0
        while True:
            try:
                batch = self._pull(queue, self._batch_size)
            except Exception:
                # The data source failed, not the model: what is counted is sound.
                workers.drain()
                self._save(workers)
                raise
            if not batch:
                break
            job = self._job(batch, queue.size(batch), handed_out)
            workers.submit(job)
            handed_out, batches = handed_out + job.samples, batches + 1
            if self._path is not None and batches % self._save_every == 0:
                workers.drain()
                self._save(workers)
        workers.drain()
        try:
            self._save(workers)
        except FormatError as error:
            # The work is finished; it is not thrown away because the way back to it could not be stored.
            note(self._notes, f"the `resume` file was not brought up to date: {error}")

    def _job(self, batch: Batch, samples: int, before: int) -> Job:
        # A batch that no other is mixed with needs no padding.
        missing = 0 if self._momentum is not None and self._graph.batch.dynamic else self._batch_size - samples
        if missing and not self._separable:
            self._refuse_fixed_rest(samples)
            missing = 0
            note(self._notes, "some values mix samples: the last batch was not padded, and they depend on the batching")
        padded = pad(batch, self._graph.inputs, missing)
        if self._path is None:
            return Job(padded, samples, before, "")
        self._digest.update(padded, samples)
        return Job(padded, samples, before, self._digest.hexdigest())

    def _count(self, job: Job, collector: Collector) -> None:
        collector.begin(job.samples)
        self._executor.run(job.batch, collector.observe)
        bad = collector.nonfinite()
        if bad is not None:
            raise nonfinite_error(self._graph, bad, job.batch, job.before)

    def _save(self, workers: Workers) -> None:
        self._counted = workers.counted
        if self._path is not None and self._counted.samples:
            digest = self._counted.digest
            Checkpoint(statistics=self.statistics(), batch_size=self._batch_size, data_digest=digest).save(self._path)

    def _read_checkpoint(self, path: Path) -> Checkpoint | None:
        check_writable(path)
        names = [observation.name for observation in self._observations]
        checkpoint = read_checkpoint(path, fingerprint=self._fingerprint, names=names, batch_size=self._batch_size)
        if checkpoint is not None and any(
            (checkpoint.statistics[one.name].channel_mean is None) != (one.channel_axis is None)
            for one in self._observations
        ):
            raise CalibrationError(
                "the interrupted run collected other figures per channel",
                where=str(path),
                remedy="continue with the same `channels`, or with another `resume` path",
            )
        if checkpoint is not None:
            moving = checkpoint.statistics.moving
            before = None if moving is None else moving.momentum
            if before != self._momentum:
                raise CalibrationError(
                    f"the interrupted run had moving_maximum={before}, this one has {self._momentum}",
                    where=str(path),
                    remedy="continue with the same one, or with another `resume` path",
                )
        return checkpoint

    def _refuse_fixed_rest(self, samples: int) -> None:
        if not self._graph.batch.dynamic:
            raise CalibrationError(
                f"the model takes exactly {self._batch_size} samples at a time, and {samples} are left over",
                remedy=f"give a multiple of {self._batch_size} samples, or capture the model with a dynamic batch",
            )

    def _interruption(self, samples: int) -> str:
        if self._path is None:
            return f"calibration stopped after {samples} samples; give `resume` a path to be able to continue"
        return f"calibration stopped after {samples} samples; the same call with resume={str(self._path)!r} continues"
