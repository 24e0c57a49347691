"""bench --plan: what a training would cost on GPUs that are not at hand."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from .console import emit, say, show_card
from .errors import Problems

if TYPE_CHECKING:
    from ..evaluation.plan import Forecast, Machine
    from ..recipe import Recipe

UTILIZATION, MEMORY_BANDWIDTH, IMAGENET = 0.5, 1500.0, 1_281_167
SINGLE = 1 / 16
"""Of the peak in bfloat16: float32 without TensorFloat-32, which torch does not use unless told to; an A100's share."""

Gpus = Annotated[int | None, typer.Option(metavar="N", help="--plan: GPUs that share the batch.", show_default="1")]
GpuTflops = Annotated[
    float | None,
    typer.Option(
        metavar="T", help="--plan: a GPU's dense peak in the recipe's precision, in 10^12/s.", show_default=False
    ),
]
Fp32Tflops = Annotated[
    float | None,
    typer.Option(
        metavar="T",
        help="--plan: the peak in float32, where a bf16 recipe has a teacher that computes in it.",
        show_default="a sixteenth",
    ),
]
Bandwidth = Annotated[
    float | None,
    typer.Option(
        metavar="B", help="--plan: each GPU's bus bandwidth in an all-reduce, in GB/s.", show_default="none for one GPU"
    ),
]
Utilization = Annotated[
    float | None,
    typer.Option(
        metavar="U", help="--plan: share of that peak which matrix products reach.", show_default=f"{UTILIZATION}"
    ),
]
MemoryBandwidth = Annotated[
    float | None,
    typer.Option(
        metavar="B",
        help="--plan: what all other operations read and write, in GB/s.",
        show_default=f"{MEMORY_BANDWIDTH:g}",
    ),
]
Images = Annotated[
    int | None, typer.Option(metavar="N", help="--plan: training images.", show_default=f"{IMAGENET}, ImageNet's")
]


@dataclass(frozen=True)
class Offered:
    """The options of a plan as they were given; None is what was not."""

    gpus: int | None
    gpu_tflops: float | None
    fp32_tflops: float | None
    bandwidth: float | None
    utilization: float | None
    memory_bandwidth: float | None
    images: int | None

    def check(self, problems: Problems, planned: bool) -> None:
        for name, value in vars(self).items():
            option = f"--{name.replace('_', '-')}"
            if value is not None and not planned:
                problems.add(f"{option}: says what to plan for; add --plan, or leave it out")
            elif value is not None and not (value > 0 and math.isfinite(value)):
                problems.add(f"{option}: above 0, got {value:g}")
        if not planned:
            return
        if self.gpu_tflops is None:
            problems.add(
                "--gpu-tflops is missing: the GPU's dense peak in the recipe's precision, e.g. 312 (A100, bf16)"
            )
        if self.bandwidth is None and (self.gpus or 1) > 1:
            problems.add(
                "--bandwidth is missing: what an all-reduce between the GPUs reaches, in GB/s, e.g. 200 (NVLink)"
            )
        if (self.utilization or 0) > 1:
            problems.add(f"--utilization: a share of the peak, at most 1, got {self.utilization:g}")

    def machine(self) -> Machine:
        from ..evaluation.plan import Machine

        assert self.gpu_tflops
        return Machine(
            peak=1e12 * self.gpu_tflops,
            single=1e12 * (self.fp32_tflops or SINGLE * self.gpu_tflops),
            utilization=self.utilization or UTILIZATION,
            memory=1e9 * (self.memory_bandwidth or MEMORY_BANDWIDTH),
            network=1e9 * (self.bandwidth or math.inf),
            gpus=self.gpus or 1,
        )


def show_plans(problems: Problems, recipes: Sequence[Recipe], offered: Offered, as_json: bool) -> None:
    """Each recipe's forecast, or every problem."""
    from ..engine.run import split
    from ..evaluation.plan import forecast

    images = offered.images or IMAGENET
    for recipe in recipes:
        with problems.of(f"{recipe.name}: --gpus"):
            split(recipe.batch, max(1, offered.gpus or 1), None)
        if images < recipe.batch:
            problems.add(f"{recipe.name}: --images: {images} make no batch of {recipe.batch}; give a smaller --batch")
    problems.refuse()
    found = []
    logging.disable(logging.WARNING)  # a library remarks on weights that nobody wanted
    try:
        for recipe in recipes:
            with problems.of(recipe.name):
                found.append(forecast(recipe, images, offered.machine()))
    finally:
        logging.disable(logging.NOTSET)
    problems.refuse()
    if as_json:
        emit(found[0].data() if len(found) == 1 else [each.data() for each in found])
        return
    for number, each in enumerate(found):
        if number:
            say()
        show_card(_lines(each))
    say("A model, not a measurement: docs/scaling.md says what it leaves out.", "dim")


def _lines(found: Forecast) -> Iterator[tuple[str, str]]:
    work, machine, step = found.work, found.machine, found.step
    flops, single, moved = (sum(parts.values()) for parts in (work.flops, work.single, work.moved))
    more = f" + in float32 {_product(single, machine.single, machine.utilization)}" if single else ""
    axes = " + ".join(f"{axis} {count / 1e9:.5g}" for axis, count in work.axes.items())
    yield "recipe", f"{found.recipe} ({found.hash})"
    yield "GPUs", f"{machine.gpus} x {work.images} images = batch {found.batch}, {found.dtype}"
    yield "operations", f"{axes} = {flops / 1e9:.5g} GFLOP a step and GPU; {_phases(work.flops)}"
    yield "bytes moved", f"{moved / 1e9:.4g} GB a step and GPU, besides those products; {_phases(work.moved)}"
    yield "products", f"{_product(flops - single, machine.peak, machine.utilization)}{more} = {_ms(step.products)}"
    yield "the rest", f"{moved / 1e9:.4g} GB / {machine.memory / 1e9:g} GB/s = {_ms(step.rest)}"
    if machine.gpus == 1:
        yield "all-reduce", "none on one GPU"
    else:
        ring = f"2 x {machine.gpus - 1} / {machine.gpus} x {work.gradients / 1e9:.4g} GB of gradients"
        yield (
            "all-reduce",
            f"{ring} / {machine.network / 1e9:g} GB/s = {_ms(step.reduce)}; not hidden behind {machine.overlap:.0%} of "
            f"the backward pass: {_ms(step.exposed)}",
        )
    yield "step", f"{_ms(step.products)} + {_ms(step.rest)} + {_ms(step.exposed)} = {_ms(step.seconds)}"
    yield "images", f"{found.batch / step.seconds:.4g} a second, which the loaders must keep up with"
    yield "training", f"{found.epochs:g} epochs of {found.images} images = {found.steps} steps"
    yield "time", f"{found.hours:.4g} hours, {found.hours * machine.gpus:.4g} GPU hours"
    yield (
        "memory",
        f"{work.held / 1e9:.3g} GB of weights and optimizer + {work.passing / 1e9:.3g} GB at the peak of a step "
        f"= {found.memory / 1e9:.3g} GB a GPU",
    )


def _product(flops: int, peak: float, utilization: float) -> str:
    return f"{flops / 1e9:.5g} GFLOP / ({peak / 1e12:g} TFLOP/s x {utilization:g})"


def _phases(parts: dict[str, int]) -> str:
    total = max(1, sum(parts.values()))
    return ", ".join(f"{name} {part / total:.0%}" for name, part in parts.items())


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.4g} ms"
