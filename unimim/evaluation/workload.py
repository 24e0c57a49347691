"""A recipe's training step on fixed images, and what of it can be measured: time, memory, operations, each part's share."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..engine.guard import Guard
from ..engine.loop import arranged, backward, clip
from ..engine.optim import make_optimizer, set_decay, set_rate
from ..engine.run import Plan, split
from ..objective import Objective
from ..recipe import Recipe
from ..sampling import Sampling
from ..types import Batch
from ..world import all_reduce_sum, rank, world_size
from .cost import SHARES, Case, Cost, Timing, undisturbed

AXES = {"T": "teacher", "S": "student", "H": "head"}
"""Axes by letter, and the parts of a step that stand for them; the rest of a step is the optimizer."""
GRAIN = 0.02
"""Seconds by which two readings of the machine's CPU clock may be off."""
FIT_IMAGES, INSTRUMENTED_STEPS = 64, 3
"""For teachers that learn from data first; steps that shares are of."""


class Ledger:
    """What a growing number (seconds, operations) grew by while each part of a step was at work."""

    def __init__(self, read: Callable[[], float]) -> None:
        self.read, self.part, self.last = read, "", read()
        self.amounts: Counter[str] = Counter()

    def to(self, part: str) -> str:
        """From now on `part` is at work; the one that was."""
        before, now = self.part, self.read()
        self.amounts[before] += now - self.last  # type: ignore[assignment]
        self.part, self.last = part, now
        return before


@contextmanager
def watched(objective: Objective, ledger: Ledger) -> Iterator[None]:
    """Tell `ledger` when student and teachers are at work, forward and backward.

    A student that its teacher asks is the teacher. Autograd goes back through what was computed last first, so what
    happens between two of the outputs below belongs to what made the later one.
    """
    outer: list[str] = []

    def enter(part: str) -> Callable[..., None]:
        return lambda *_: outer.append(ledger.to("teacher" if ledger.part == "teacher" else part))

    def leave(module: Any, arguments: Any, output: Any) -> None:
        mine = ledger.to(outer.pop())

        def reached(gradient: Tensor) -> None:
            ledger.to(mine)

        for tensor in _tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(reached)

    parts = [("student", objective.student), *(("teacher", teacher) for teacher in objective.teachers.values())]
    handles: list[Any] = []
    for name, module in parts:
        handles += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors of what a student (Encoded) or a teacher (Target) returned."""
    for value in vars(output).values():
        yield from (t for t in (value.values() if isinstance(value, Mapping) else [value]) if isinstance(t, Tensor))


def _ignore(part: str) -> None:
    """Nobody asks which part is at work."""


class Workload:
    """One training of a case on a fixed batch, step by step as the engine's loop takes them. Every process has its own.

    Targets that the recipe replays come with the batch, as they would from a cache that holds them all.
    """

    def __init__(self, case: Case, device: torch.device) -> None:
        torch.manual_seed(case.recipe.seed)
        self._see(case, device, Objective(case.recipe).to(device).train())
        if self.objective.needs_fit:
            self.objective.fit([self.batch.to(device)] * -(-FIT_IMAGES // len(self.images)))
        self._replay()
        self.model = arranged(self.objective, case.run, device)
        self._prepare()

    def _see(self, case: Case, device: torch.device, objective: Objective) -> None:
        recipe, self.case, self.device, self.objective = case.recipe, case, device, objective
        geometry = objective.student.geometry
        self.sampling = Sampling(recipe, geometry, objective.renditions)
        share, _ = split(recipe.batch, world_size(), None)
        shape = (share, geometry.channels, *geometry.image)
        self.images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(rank()), dtype=torch.uint8)
        self.batch = self.make_batch()

    def _replay(self) -> None:
        recipe = self.case.recipe
        with torch.autocast(self.device.type, torch.bfloat16, recipe.precision == "bfloat16"):
            told = self.objective.ask(self.batch.to(self.device)) if recipe.replay else {}
        self.batch = replace(self.batch, targets={name: target.to("cpu") for name, target in told.items()})

    def _prepare(self) -> None:
        recipe = self.case.recipe
        self.optimizer = make_optimizer(self.objective, recipe.optimization, self.objective.depth_of)
        self.plan = Plan(
            1000 * recipe.batch, recipe.batch, recipe.epochs, recipe.seed, recipe.precision, recipe.optimization
        )
        self.guard, self.taken = Guard(self.device, 0), 0

    def make_batch(self) -> Batch:
        first = rank() * len(self.images)
        return self.sampling.collate([self.sampling(image, 0, first + i) for i, image in enumerate(self.images)])

    def step(self, mark: Callable[[str], object] = _ignore) -> None:
        """One step; `mark` is told which part begins, where no hook of `watched` knows better."""
        progress = self.plan.progress(self.taken % self.plan.total_steps)
        mark("teacher")
        self.objective.on_step_start(progress)
        mark("head")
        losses = backward(self.model, self.objective, [self.batch.to(self.device)], self.plan, self.taken)
        mark("optimizer")
        set_rate(self.optimizer, self.plan.rate(progress.step))
        set_decay(self.optimizer, self.plan.optimization.weight_decay(progress.fraction))
        grad_norm = clip(self.objective, self.plan.optimization.clip_norm)
        self.guard.judge(losses["loss"], grad_norm, self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        mark("teacher")
        self.objective.on_step_end(progress)
        mark("")
        self.taken += 1

    def now(self) -> float:
        """Seconds, when all that was asked of the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def timed(self) -> Timing:
        """One step, begun by all processes together."""
        if world_size() > 1:
            dist.barrier()
        busy, cpu, wall = _busy(), time.process_time(), self.now()
        self.step()
        wall, cpu = self.now() - wall, time.process_time() - cpu
        ours = float(all_reduce_sum(torch.tensor(cpu, dtype=torch.float64, device=self.device)))
        later = _busy()
        others = 0.0 if busy is None or later is None else later - busy - ours
        return Timing(wall, ours, others < 0.25 * wall + GRAIN)

    def shares(self) -> dict[str, float]:
        """Parts of SHARES as fractions of a step's time, in steps that are watched and timed by nobody else."""
        ledger = Ledger(self.now)
        with watched(self.objective, ledger):
            for _ in range(INSTRUMENTED_STEPS):
                self.step(ledger.to)
        seconds = {part: ledger.amounts[part] for part in SHARES}
        return {part: amount / sum(seconds.values()) for part, amount in seconds.items()}

    def flops(self) -> dict[str, int]:
        """Operations of one step by axis, over all processes."""
        own = torch.tensor([*self.own_flops().values()], dtype=torch.float64, device=self.device)
        return {axis: round(count) for axis, count in zip(AXES, all_reduce_sum(own).tolist(), strict=True)}

    def own_flops(self) -> dict[str, int]:
        """Operations of one step of this process by axis.

        torch counts neither fused attention on a CPU nor the fast path of nn.MultiheadAttention, so both are off.
        """
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                ledger = Ledger(counter.get_total_flops)
                with watched(self.objective, ledger):
                    self.step(ledger.to)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
        return {axis: round(ledger.amounts[part]) for axis, part in AXES.items()}

    def data_seconds(self) -> float:
        """One thread's seconds to make this process's share of the batch, as a loader process does."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        taken = []
        for _ in range(INSTRUMENTED_STEPS):
            start = time.perf_counter()
            self.make_batch()
            taken.append(time.perf_counter() - start)
        torch.set_num_threads(threads)
        return statistics.median(taken)

    def cost(self, timings: Sequence[Timing], matrix: int | None = None) -> Cost:
        """Of steps that took `timings`. matrix: side of the product whose rate is measured."""
        memory = self._memory()  # first: what follows needs memory of its own
        shares, flops, data_s = self.shares(), self.flops(), self.data_seconds()
        recipe, dtype = self.case.recipe, getattr(torch, self.case.recipe.precision)
        own_rate = matmul_rate(dtype, self.device, matrix or (2048 if self.device.type == "cpu" else 8192))
        best = float(all_reduce_sum(torch.tensor(own_rate, dtype=torch.float64, device=self.device)))
        kept = undisturbed(timings, lambda timing: timing.clean)
        wall, total = statistics.median(timing.wall for timing in kept), sum(flops.values())
        return Cost(
            recipe=recipe.name,
            hash=recipe.hash,
            model=self.case.model or described(recipe),
            batch=recipe.batch,
            dtype={"float32": "fp32", "bfloat16": "bf16"}[recipe.precision],
            device=self.case.device,
            procs=world_size(),
            threads=torch.get_num_threads(),
            steps=len(timings),
            clean_steps=sum(timing.clean for timing in timings),
            step_time_median_s=wall,
            cpu_time_median_s=statistics.median(timing.cpu for timing in kept),
            images_per_s=recipe.batch / wall,
            peak_rss_mb=memory[0],
            cuda_allocated_mb=memory[1] if self.device.type == "cuda" else None,
            cuda_reserved_mb=memory[2] if self.device.type == "cuda" else None,
            flops_per_step=total,
            flops=flops,
            teacher_share=shares["teacher"],
            shares=shares,
            data_s=data_s,
            data_share=data_s / wall,
            gflops_per_s=total / wall / 1e9,
            matmul_gflops_per_s=best / 1e9,
            matmul_share=total / wall / best,
            timings=tuple(timings),
        )

    def _memory(self) -> list[float]:
        """MB: resident, and on CUDA allocated and reserved; peaks, of the process that has most."""
        cuda = self.device.type == "cuda"
        held = [torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()] if cuda else [0, 0]
        peaks = torch.tensor([_peak_rss(), *held], dtype=torch.float64, device=self.device)
        if world_size() > 1:
            dist.all_reduce(peaks, dist.ReduceOp.MAX)
        return [peak / 1e6 for peak in peaks.tolist()]


def described(recipe: Recipe) -> str:
    """The student's width and depth, for want of a name of its size."""
    return f"{recipe.student.name}-{recipe.student.geometry.dim}x{recipe.student.num_blocks}"


def matmul_rate(dtype: torch.dtype, device: torch.device, size: int, seconds: float = 1.0) -> float:
    """Best of several: operations a second of a product of two square matrices of side `size`."""
    a = torch.rand(size, size, device=device).to(dtype)
    best, end, turns = 0.0, time.perf_counter() + seconds, 0
    while turns < 4 or (time.perf_counter() < end and turns < 50):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best, turns = max(best, 2 * size**3 / (time.perf_counter() - start)), turns + 1
    return best


def _peak_rss() -> int:
    """Bytes. getrusage would do, but a child starts there with its parent's peak."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _busy() -> float | None:
    """CPU seconds of all processes of this machine so far; None where the system does not tell."""
    try:
        user, nice, system, _idle, _wait, irq, softirq, steal = (
            int(field) for field in Path("/proc/stat").read_text(encoding="ascii").split()[1:9]
        )
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
