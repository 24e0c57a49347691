"""How a training is run: everything that must not change its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from ..schedule import Frozen, Optimization
from ..types import Progress


class Run(Frozen):
    """Devices, files and pace.

    out: run folder.  micro_batch: images a process takes at once (None: its whole share of the batch).
    workers: loader processes for each training process.
    parallel: "ddp", every process holds all of the objective, or "fsdp", each a part.  shard_teachers: with "fsdp", frozen
    teachers too.  recompute: keep only the inputs of blocks for the backward pass; less memory, one more forward pass.
    checkpoint_minutes: time between checkpoints; the last `keep` stay, and the one with the lowest loss.
    stop_after: stop at this step as if interrupted.  hang_minutes: a step, a batch or a checkpoint that takes longer ends
    the run.  skip_nonfinite: so many steps in a row may give no number and are not taken, before the run stops.
    skip_bad_images: replace unreadable images by the next one and list them, instead of stopping;
    more than 5 % of them stop the run all the same.  loggers: names of where scalars go beside metrics.jsonl.
    target_cache: a folder that keeps what frozen teachers say of replayed crops, for this run and others.  target_cache_gb:
    10^9 bytes that all caches in it may take; those opened longest ago make room.
    """

    out: Path
    device: str = Field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")
    micro_batch: int | None = Field(None, gt=0)
    workers: int = Field(1, ge=0)
    parallel: Literal["ddp", "fsdp"] = "ddp"
    shard_teachers: bool = False
    recompute: bool = False
    compile: bool = False
    checkpoint_minutes: float = Field(10.0, gt=0)
    keep: int = Field(2, ge=1)
    log_every: int = Field(20, gt=0)
    stop_after: int | None = Field(None, gt=0)
    hang_minutes: float = Field(10.0, gt=0)
    skip_nonfinite: int = Field(0, ge=0)
    skip_bad_images: bool = False
    loggers: tuple[str, ...] = ()
    target_cache: Path | None = None
    target_cache_gb: float = Field(100.0, gt=0)


@dataclass(frozen=True)
class Plan:
    """What the loop needs of a recipe and a data set."""

    num_images: int
    batch: int
    epochs: float
    seed: int
    precision: Literal["float32", "bfloat16"]
    optimization: Optimization

    def __post_init__(self) -> None:
        if self.num_images < self.batch:
            raise ValueError(
                f"{self.num_images} training images make no batch of {self.batch}; lower batch (e.g. batch={self.num_images})"
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.num_images // self.batch

    @property
    def total_steps(self) -> int:
        return max(1, round(self.epochs * self.steps_per_epoch))

    def progress(self, step: int) -> Progress:
        return Progress(step, self.total_steps, self.steps_per_epoch)

    def rate(self, step: int) -> float:
        return self.optimization.rate(step, self.total_steps, self.steps_per_epoch, self.batch)


def split(batch: int, world: int, micro_batch: int | None) -> tuple[int, int]:
    """(images a process takes at once, how often in a step) for a global batch."""
    share, rest = divmod(batch, world)
    if rest:
        raise ValueError(f"batch {batch} does not divide over {world} processes; choose a multiple of {world}")
    micro = min(micro_batch or share, share)
    if share % micro:
        raise ValueError(
            f"micro_batch {micro} does not divide each process's share of {share} images ({batch} / {world})"
        )
    return micro, share // micro
