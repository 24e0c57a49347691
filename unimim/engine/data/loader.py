"""Batches by address: which images a step reads, and reading them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...address import rng
from ...types import Batch
from ...world import rank, world_size
from ..run import Plan, Run, split
from .decode import BadImage
from .quarantine import Quarantine, max_bad
from .sources import ImageSource

Address = tuple[int, int]
"""(epoch, index)."""
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that ask a run to save and stop; clusters send the last two before they take a machine away."""
Bad = dict[int, BadImage]
"""Unreadable images by index. They travel as values: raised in a worker, one would arrive as text with a traceback."""
ORDER = 0
"""Purpose of a draw: the order of images; crops and masks have others."""


class Sampler(Protocol):
    """What turns a decoded image into a sample and samples into a batch (`unimim.Sampling`)."""

    def __call__(self, image: Tensor, epoch: int, index: int) -> Any: ...

    def collate(self, samples: Sequence[Any]) -> Batch: ...


class Samples(Dataset[Any]):
    """(epoch, index) -> (sample, {index: why} of the images that could not be read on the way to it).

    With `skip`, an unreadable image is replaced by the next readable one, crops and masks being that one's. The sample is
    None when there is none within reach: the image itself, or with `skip` more images in a row than may be bad in all.
    """

    def __init__(self, source: ImageSource, sampling: Sampler, skip: bool) -> None:
        self.source, self.sampling = source, sampling
        self.reach = max_bad(len(source)) + 1 if skip else 1

    def __getitem__(self, address: Address) -> tuple[Any, Bad]:
        epoch, index = address
        bad: Bad = {}
        for position in ((index + step) % len(self.source) for step in range(self.reach)):
            try:
                return self.sampling(self.source.read(position), epoch, position), bad
            except BadImage as error:
                bad[position] = error
        return None, bad


def order(seed: int, epoch: int, num_images: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The order of images in an epoch; the same for any number of processes and workers."""
    return rng(seed, epoch, ORDER, ORDER).permutation(num_images)


def addresses(plan: Plan, micro: int, repeats: int, start: int) -> Iterator[list[Address]]:
    """The micro-batches of this process from step `start` on: a slice of each step's global batch."""
    epoch, images = -1, np.empty(0, dtype=np.int64)
    for step in range(start, plan.total_steps):
        if step // plan.steps_per_epoch != epoch:
            epoch = step // plan.steps_per_epoch
            images = order(plan.seed, epoch, plan.num_images)
        first = step % plan.steps_per_epoch * plan.batch + rank() * micro * repeats
        for part in range(repeats):
            chosen = images[first + part * micro : first + (part + 1) * micro]
            yield [(epoch, int(index)) for index in chosen]


def steps(
    source: ImageSource,
    sampling: Sampler,
    plan: Plan,
    run: Run,
    start: int = 0,
    complete: Callable[[Batch], Batch] | None = None,
) -> Generator[list[Batch], None, None]:
    """For every step from `start` on, the micro-batches of this process (on the host). Close it to end its workers.

    complete: what a worker still does to a batch.
    Raises BadImage at an unreadable image; with run.skip_bad_images it is replaced and listed in the run folder, and
    TooManyBadImages is raised when the list grows too long.
    """
    micro, repeats = split(plan.batch, world_size(), run.micro_batch)
    quarantine = Quarantine(run.out / "skipped_images.txt", len(source)) if run.skip_bad_images else None
    loader = DataLoader(
        Samples(source, sampling, run.skip_bad_images),
        batch_sampler=_Addresses(plan, micro, repeats, start),
        collate_fn=partial(_collate, sampling, complete=complete),
        num_workers=run.workers,
        pin_memory=run.device.startswith("cuda"),
        worker_init_fn=_calm if run.workers else None,
        prefetch_factor=4 if run.workers else None,
    )
    parts = iter(loader)
    try:
        for _ in range(start, plan.total_steps):
            step = [next(parts) for _ in range(repeats)]
            for _, bad in step:
                _judge(bad, quarantine)
            yield [batch for batch, _ in step]
    finally:
        if run.workers:  # they ignore the signal that would end them at exit
            parts._shutdown_workers()  # type: ignore[attr-defined]


def _judge(bad: Bad, quarantine: Quarantine | None) -> None:
    if bad and quarantine is None:
        raise next(iter(bad.values()))
    if bad and quarantine is not None:
        quarantine.add(bad)


FIT_IMAGES, FIT_BATCH = 4096, 64
"""Images of the first epoch that teachers learn from before training, if they need to, and how many at a time."""


def first_images(source: ImageSource, sampling: Sampler, plan: Plan, skip: bool = False) -> Iterator[Batch]:
    """The first images of the first epoch, the same on every process and for any number of them.

    skip: replace unreadable ones as in training, which lists them later.
    """
    chosen = order(plan.seed, 0, plan.num_images)[:FIT_IMAGES]
    samples = Samples(source, sampling, skip)
    for first in range(0, len(chosen), FIT_BATCH):
        batch, bad = _collate(sampling, [samples[0, int(index)] for index in chosen[first : first + FIT_BATCH]])
        if batch is None:
            raise next(iter(bad.values()))
        yield batch


def _collate(
    sampling: Sampler, samples: Sequence[tuple[Any, Bad]], complete: Callable[[Batch], Batch] | None = None
) -> tuple[Batch | None, Bad]:
    """None in place of the batch when a sample is missing."""
    bad = {index: error for _, errors in samples for index, error in errors.items()}
    found = [sample for sample, _ in samples if sample is not None]
    if len(found) < len(samples):
        return None, bad
    batch = sampling.collate(found)
    return (complete(batch) if complete else batch), bad


class _Addresses:
    """`addresses` as the re-iterable that DataLoader wants."""

    def __init__(self, plan: Plan, micro: int, repeats: int, start: int) -> None:
        self.arguments = plan, micro, repeats, start

    def __iter__(self) -> Iterator[list[Address]]:
        return addresses(*self.arguments)


def _calm(worker: int) -> None:
    """Workers leave signals to the training process, which saves before it stops."""
    torch.set_num_threads(1)
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
