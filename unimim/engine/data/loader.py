"""Batches by address: which images a step reads, and reading them."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
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
from .sources import ImageSource

Address = tuple[int, int]
"""(epoch, index)."""
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that ask a run to save and stop; clusters send the last two before they take a machine away."""
ORDER = 0
"""Purpose of a draw: the order of images; crops and masks have others."""


class Sampler(Protocol):
    """What turns a decoded image into a sample and samples into a batch (`unimim.Sampling`)."""

    def __call__(self, image: Tensor, epoch: int, index: int) -> Any: ...

    def collate(self, samples: Sequence[Any]) -> Batch: ...


class Samples(Dataset[Any]):
    """(epoch, index) -> sample. With `skipped`, an unreadable image is replaced by the next readable one and listed there."""

    def __init__(self, source: ImageSource, sampling: Sampler, skipped: Path | None) -> None:
        self.source, self.sampling, self.skipped = source, sampling, skipped

    def __getitem__(self, address: Address) -> Any:
        epoch, index = address
        for step in range(len(self.source)):
            position = (index + step) % len(self.source)
            try:
                return self.sampling(self.source.read(position), epoch, position)
            except BadImage as error:
                if self.skipped is None:
                    raise
                with self.skipped.open("a", encoding="utf-8") as file:
                    file.write(f"{error}\n")
        raise ValueError("not one image of the data set can be read")


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
    source: ImageSource, sampling: Sampler, plan: Plan, run: Run, start: int = 0
) -> Generator[list[Batch], None, None]:
    """For every step from `start` on, the micro-batches of this process (on the host). Close it to end its workers."""
    micro, repeats = split(plan.batch, world_size(), run.micro_batch)
    skipped = run.out / "skipped_images.txt" if run.skip_bad_images else None
    loader = DataLoader(
        _Handed(source, sampling, skipped),
        batch_sampler=_Addresses(plan, micro, repeats, start),
        collate_fn=partial(_collate, sampling),
        num_workers=run.workers,
        pin_memory=run.device.startswith("cuda"),
        worker_init_fn=_calm if run.workers else None,
        prefetch_factor=4 if run.workers else None,
    )
    parts = iter(loader)
    try:
        for _ in range(start, plan.total_steps):
            step = [next(parts) for _ in range(repeats)]
            for part in step:
                if isinstance(part, BadImage):
                    raise part
            yield step
    finally:
        if run.workers:  # they ignore the signal that would end them at exit
            parts._shutdown_workers()  # type: ignore[attr-defined]


FIT_IMAGES, FIT_BATCH = 4096, 64
"""Images of the first epoch that teachers learn from before training, if they need to, and how many at a time."""


def first_images(source: ImageSource, sampling: Sampler, plan: Plan) -> Iterator[Batch]:
    """The first images of the first epoch, the same on every process and for any number of them."""
    chosen = order(plan.seed, 0, plan.num_images)[:FIT_IMAGES]
    samples = Samples(source, sampling, None)
    for first in range(0, len(chosen), FIT_BATCH):
        yield sampling.collate([samples[0, int(index)] for index in chosen[first : first + FIT_BATCH]])


class _Handed(Samples):
    """An unreadable image as a value: raised in a worker, it would arrive as a RuntimeError with its traceback as text."""

    def __getitem__(self, address: Address) -> Any:
        try:
            return super().__getitem__(address)
        except BadImage as error:
            return error


def _collate(sampling: Sampler, samples: Sequence[Any]) -> Batch | BadImage:
    bad = next((sample for sample in samples if isinstance(sample, BadImage)), None)
    return bad or sampling.collate(samples)


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
