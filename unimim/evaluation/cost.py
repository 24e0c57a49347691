"""What a training step costs: time, memory, and operations, in all and by axis (Table 7). `Workload` measures it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..engine.run import Run, split
from ..recipe import Recipe

WORDS = (
    "random uint8 images in memory, cropped and masked by the recipe's own sampling; forward, backward, clipping, optimizer and "
    "teacher updates, without loader and logs; targets that a recipe replays lie in the batch, as from a full cache; warm-up "
    "left out; median"
)
SHARES = {
    "teacher": "its forward passes, and what it does before and after the step, as a momentum update (codebooks with it)",
    "student": "its forward passes and their backward",
    "head": "the rest of forward and backward: head, norm of the target, loss",
    "optimizer": "clipping, the optimizer, clearing gradients",
}
"""What each share of a step is."""
OPTIONS = ("compile", "recompute", "parallel", "shard_teachers")
"""Fields of Run that change what a step costs, and that `Workload` heeds."""
FEWEST = 3
"""Fewer clean steps than these are no sample."""


@dataclass(frozen=True)
class Case:
    """What is measured: a recipe, whose batch is that of one step over all processes, on a device.

    options: fields of Run among OPTIONS, and their values.  script: a Python file whose own kind of `Workload` is measured
    instead: it hands its argument to `turns.main`.
    """

    recipe: Recipe
    device: str = "cpu"
    procs: int = 1
    model: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    script: str = ""

    def __post_init__(self) -> None:
        split(self.recipe.batch, self.procs, None)

    @property
    def run(self) -> Run:
        return Run(out=Path(), device=self.device, **self.options)

    def data(self) -> dict[str, Any]:
        return {**vars(self), "recipe": self.recipe.data()}

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Case:
        return cls(**{**data, "recipe": Recipe.model_validate(data["recipe"])})


@dataclass(frozen=True)
class Timing:
    """One step: wall seconds, CPU seconds of all its processes, and whether others left the machine alone meanwhile.

    clean: all other programs together took less than a quarter of a core, so far as a clock of hundredths can tell.
    """

    wall: float
    cpu: float
    clean: bool


@dataclass(frozen=True)
class Cost:
    """Of one step of `batch` images over all processes; MB are 10^6 bytes, shares are fractions.

    step_time_median_s, cpu_time_median_s: over the clean steps among `steps`, or over all where fewer than three are.
    peak_rss_mb: of the largest process, from its start on.  cuda_allocated_mb, cuda_reserved_mb: peaks of the device with
    most, None on a CPU.  flops_per_step: of matrix products and convolutions that were executed, a multiplication and an
    addition being two; attention counts.  flops: the same by axis.  shares: of the step, see SHARES; they add up to 1.
    data_s: one process's seconds to make the batch from images in memory, on one thread. Loader processes do so beside the
    step, so data_share, its ratio to the step's time, is no part of `shares`; above 1 one such process is too slow.
    matmul_gflops_per_s: best rate of a large square product in the same run, dtype and threads; matmul_share: of it.
    """

    recipe: str
    hash: str
    model: str
    batch: int
    dtype: str
    device: str
    procs: int
    threads: int
    steps: int
    clean_steps: int
    step_time_median_s: float
    cpu_time_median_s: float
    images_per_s: float
    peak_rss_mb: float
    cuda_allocated_mb: float | None
    cuda_reserved_mb: float | None
    flops_per_step: int
    flops: dict[str, int]
    teacher_share: float
    shares: dict[str, float]
    data_s: float
    data_share: float
    gflops_per_s: float
    matmul_gflops_per_s: float
    matmul_share: float
    timings: tuple[Timing, ...]

    def data(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Cost:
        return cls(**{**data, "timings": tuple(Timing(**timing) for timing in data["timings"])})

    @property
    def memory_mb(self) -> float:
        """What decides whether it fits: allocated on CUDA, resident on a CPU."""
        return self.peak_rss_mb if self.cuda_allocated_mb is None else self.cuda_allocated_mb


@dataclass(frozen=True)
class Ratio:
    """A cost over another's. time: median over rounds of the ratio of wall seconds; low, high: its quartiles; cpu: median of
    the ratio of CPU seconds."""

    recipe: str
    to: str
    time: float
    low: float
    high: float
    cpu: float
    memory: float
    flops: float
    rounds: int


def ratios(costs: Sequence[Cost], to: str | None = None) -> list[Ratio]:
    """Each of `costs` that took turns (`measure`), over that of the recipe `to` (None: the first).

    Step i of one is set against step i of the other, so that what slowed a round slows both. Rounds in which either was
    disturbed are left out unless fewer than three stay.
    """
    names = [cost.recipe for cost in costs]
    if to is not None and to not in names:
        raise ValueError(f"{to!r} was not measured, only {', '.join(names)}")
    first = costs[0 if to is None else names.index(to)]
    return [_ratio(cost, first) for cost in costs]


def _ratio(cost: Cost, first: Cost) -> Ratio:
    rounds = [*zip(cost.timings, first.timings, strict=True)]
    kept = undisturbed(rounds, lambda pair: pair[0].clean and pair[1].clean)
    walls = sorted(mine.wall / other.wall for mine, other in kept)
    low, time_ratio, high = statistics.quantiles(walls, method="inclusive") if len(walls) > 1 else walls * 3
    cpu = statistics.median(mine.cpu / other.cpu for mine, other in kept)
    memory, flops = cost.memory_mb / first.memory_mb, cost.flops_per_step / max(first.flops_per_step, 1)
    return Ratio(cost.recipe, first.recipe, time_ratio, low, high, cpu, memory, flops, len(kept))


def undisturbed(items: Sequence[Any], is_clean: Callable[[Any], bool]) -> Sequence[Any]:
    """The clean ones, or all where they are too few."""
    clean = [item for item in items if is_clean(item)]
    return clean if len(clean) >= FEWEST else items
