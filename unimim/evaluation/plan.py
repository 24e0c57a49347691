"""What a training would cost on GPUs that are not at hand: a model, not a measurement.

t_step = F / (T u) + F1 / (T1 u) + B / M + max(0, t_reduce - o t_backward),  t_reduce = 2 (n - 1) / n G / W

F operations of matrix products and convolutions; F1 those in float32, where the recipe computes in bfloat16; B bytes that
everything else reads and writes; G bytes of gradients: all counted for one of n processes (`count`). T and T1 peak rates;
u the share of them that matrix products reach; M memory bandwidth; W bandwidth of the all-reduce; o the share of the backward
pass behind which it hides (`Machine`).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..engine.run import Plan, split
from ..recipe import Recipe
from .counting import PHASES, Work, count

OVERLAP = 0.8
"""Of the backward pass: the first gradients come late, and the last ones have nothing left to hide behind."""


@dataclass(frozen=True)
class Machine:
    """Of each of `gpus` processes with a device of its own: T `peak` (of the recipe's precision) and T1 `single` (of
    float32) in operations/s, u `utilization`, M `memory` and W `network` in bytes/s, o `overlap`. network is the bus bandwidth
    that benchmarks of all-reduce tell."""

    peak: float
    single: float
    utilization: float
    memory: float
    network: float = math.inf
    gpus: int = 1
    overlap: float = OVERLAP


@dataclass(frozen=True)
class Step:
    """Seconds of one step: matrix products, everything else, the all-reduce, and what of it hides behind nothing."""

    products: float
    rest: float
    reduce: float
    exposed: float

    @property
    def seconds(self) -> float:
        return self.products + self.rest + self.exposed


def reduced(work: Work, gpus: int) -> float:
    """Bytes that each process sends in a ring all-reduce of the gradients: 2 (n - 1) / n G."""
    return 2 * (gpus - 1) / gpus * work.gradients


def step_time(work: Work, machine: Machine) -> Step:
    """The model above."""
    products, rest = ({phase: seconds(work, machine, phase) for phase in PHASES} for seconds in (_products, _rest))
    reduce = reduced(work, machine.gpus) / machine.network
    hidden = machine.overlap * (products["backward"] + rest["backward"])
    return Step(sum(products.values()), sum(rest.values()), reduce, max(0.0, reduce - hidden))


def _products(work: Work, machine: Machine, phase: str) -> float:
    single = work.single[phase]
    return ((work.flops[phase] - single) / machine.peak + single / machine.single) / machine.utilization


def _rest(work: Work, machine: Machine, phase: str) -> float:
    return work.moved[phase] / machine.memory


@dataclass(frozen=True)
class Forecast:
    """A training of `steps` steps of `batch` images."""

    recipe: str
    hash: str
    dtype: str
    epochs: float
    images: int
    batch: int
    steps: int
    work: Work
    machine: Machine

    @property
    def step(self) -> Step:
        return step_time(self.work, self.machine)

    @property
    def hours(self) -> float:
        return self.steps * self.step.seconds / 3600

    @property
    def memory(self) -> int:
        """Bytes on each device, without what the library, its caches and kernels need."""
        return self.work.held + self.work.passing

    def data(self) -> dict[str, Any]:
        machine = {**asdict(self.machine), "network": self.machine.network if self.machine.gpus > 1 else None}
        step = {**asdict(self.step), "seconds": self.step.seconds}
        totals = {"hours": self.hours, "gpu_hours": self.hours * self.machine.gpus, "memory": self.memory}
        reduce_bytes = reduced(self.work, self.machine.gpus)
        return {**asdict(self), "machine": machine, "step": step, "reduce_bytes": reduce_bytes, **totals}


def forecast(recipe: Recipe, images: int, machine: Machine) -> Forecast:
    """The whole training of a recipe on `images` images. Raises ValueError if its batch does not divide over the GPUs."""
    share, _ = split(recipe.batch, machine.gpus, None)
    run = Plan(images, recipe.batch, recipe.epochs, recipe.seed, recipe.precision, recipe.optimization)
    work = count(recipe.model_copy(update={"batch": share}))
    dtype = "fp32" if recipe.precision == "float32" else "bf16"
    return Forecast(
        recipe.name, recipe.hash, dtype, recipe.epochs, images, recipe.batch, run.total_steps, work, machine
    )
