"""The training loop."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ..targets import Replayed
from ..types import Batch, Progress, Target
from ..world import all_reduce_sum, local, rank, world_size
from .checkpoint import CheckpointError, Checkpoints, Found
from .data.loader import STOPPING, Sampler, first_images, steps
from .data.sources import ImageSource
from .distributed import Agreement, accumulating, parallel
from .folder import read_status, write_status
from .guard import Guard, give_up
from .log import Log
from .meters import Meters
from .optim import make_optimizer, set_decay, set_rate
from .run import Plan, Run
from .state import awaited_state, student_state, training_state
from .targets import open_cache
from .watch import Watch


class Trainable(Protocol):
    """What the loop sees of an objective; `unimim.Objective` is one."""

    def forward(self, batch: Batch, totals: Tensor | None = None) -> dict[str, Tensor]: ...
    def count(self, batch: Batch) -> Tensor: ...
    def depth_of(self, parameter: str) -> int: ...
    def blocks(self) -> Iterable[nn.Module]: ...
    def frozen_teachers(self) -> Iterable[nn.Module]: ...
    def replayed(self) -> Mapping[str, Replayed]: ...
    def ask(self, batch: Batch) -> dict[str, Target]: ...
    def training_state(self) -> dict[str, Tensor]: ...
    @property
    def health(self) -> Mapping[str, Tensor]: ...
    @property
    def needs_fit(self) -> bool: ...
    def fit(self, batches: Iterable[Batch]) -> None: ...
    def warnings(self, values: Mapping[str, float]) -> list[str]: ...
    def on_step_start(self, progress: Progress) -> None: ...
    def on_step_end(self, progress: Progress) -> None: ...
    def on_epoch_end(self, progress: Progress) -> None: ...


class OutOfMemory(RuntimeError):
    """A step did not fit into memory; the last checkpoint stays."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended and where it stands."""

    status: Literal["done", "preempted"]
    step: int


def train(
    objective: Any,
    source: ImageSource,
    sampling: Sampler,
    plan: Plan,
    run: Run,
    device: torch.device,
    log: Log,
    meta: Mapping[str, Any],
) -> Outcome:
    """Train `objective` (an nn.Module that is Trainable) to the end of `plan`, from the newest checkpoint in run.out.

    meta: plain data stored in every checkpoint. Raises NonFinite, OutOfMemory, CheckpointError (an OSError) when the last
    checkpoint cannot be written, and whatever reading the data raises; checkpoints written before stay.
    """
    watch = Watch(run.hang_minutes * 60, run.out, lambda reason: _hung(run, log, reason))
    with watch, interruptible() as interrupted:
        # Set up
        checkpoints, agreement = Checkpoints(run.out / "checkpoints", run.keep), Agreement()
        model, optimizer, found = prepare(objective, source, sampling, plan, run, device, checkpoints, log)
        start = found.step if found else 0
        meters, guard = Meters(found.meta.get("meters") if found else None, device), Guard(device, run.skip_nonfinite)
        fused = bool(optimizer.defaults.get("fused"))
        log.restart(start)
        saved_at = time.monotonic()
        loss = found.meta.get("loss") if found else None
        with (
            finishing(checkpoints),
            open_cache(objective, source.fingerprint, sampling, plan, run, device, log.say) as cache,
            closing(steps(source, sampling, plan, run, start, cache.read)) as feed,
        ):
            for step in range(start, plan.total_steps):
                progress = plan.progress(step)
                # Data
                watch.enter("data", step)
                waiting = time.perf_counter()
                batches = [batch.to(device) for batch in next(feed)]
                log.waited += time.perf_counter() - waiting
                # Step
                watch.enter("step", step)
                objective.on_step_start(progress)
                set_rate(optimizer, plan.rate(step))
                set_decay(optimizer, plan.optimization.weight_decay(progress.fraction))
                with memory_advice(batches):
                    losses = backward(model, objective, [cache.complete(batch) for batch in batches], plan, step)
                grad_norm = clip(objective, plan.optimization.clip_norm)
                good = guard.judge(losses["loss"], grad_norm, optimizer)
                if guard.stuck():
                    give_up(objective, optimizer, source, plan, run, step, losses, grad_norm)
                meters.add(losses, grad_norm, good)
                if fused or good:  # fused optimizers know themselves when not to step
                    optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                objective.on_step_end(progress)
                done = step + 1
                if done % plan.steps_per_epoch == 0:
                    objective.on_epoch_end(progress)
                # Log
                last = done == plan.total_steps
                if done % run.log_every == 0 or last:
                    values = meters.read(objective.health)
                    loss = values["loss"] if "skipped" not in values else loss
                    for warning in objective.warnings(values):
                        log.warn(done, warning)
                    log.scalars(done, {"epoch": round(done / plan.steps_per_epoch, 4), "lr": plan.rate(step), **values})
                # Checkpoint
                stop, due = agreement.on(interrupted(), time.monotonic() - saved_at > run.checkpoint_minutes * 60)
                stop = not last and (stop or done == run.stop_after)
                if stop or due or last:
                    watch.enter("save", step)
                    if guard.stuck(wait=True):
                        give_up(objective, optimizer, source, plan, run, step, losses, grad_norm)
                    save(objective, optimizer, checkpoints, done, {**meta, "loss": loss, "meters": meters.state()}, log)
                    saved_at = time.monotonic()
                if stop or last:
                    checkpoints.wait()
                if stop:
                    log.say(f"stopped at step {done}; the same command goes on from there")
                    return Outcome("preempted", done)
    return Outcome("done", plan.total_steps)


def prepare(
    objective: Any,
    source: ImageSource,
    sampling: Sampler,
    plan: Plan,
    run: Run,
    device: torch.device,
    checkpoints: Checkpoints,
    log: Log,
) -> tuple[nn.Module, torch.optim.Optimizer, Found | None]:
    """The objective as the processes train it, its optimizer, and the checkpoint that both go on from."""
    trainable: Trainable = objective
    objective.to(device).train()
    found = checkpoints.newest()
    if found is None and trainable.needs_fit:
        log.say("fitting the teacher to the data")
        trainable.fit(batch.to(device) for batch in first_images(source, sampling, plan, run.skip_bad_images))
    model = arranged(objective, run, device)
    optimizer = make_optimizer(objective, plan.optimization, trainable.depth_of)
    if found is None:
        return model, optimizer, None
    for warning in found.warnings:
        log.say(warning)
    checkpoints.load(found, awaited_state(objective, optimizer, checkpoints.names(found)))
    log.say(f"going on from step {found.step}")
    return model, optimizer, found


def arranged(objective: Any, run: Run, device: torch.device) -> nn.Module:
    """The objective as the processes train it: blocks recomputed or compiled, copied or sharded."""
    for block in objective.blocks():
        if run.recompute:
            block.recompute = True
        if run.compile:
            block.compile()
    return parallel(objective, run, device)


def backward(model: nn.Module, trainable: Trainable, batches: list[Batch], plan: Plan, step: int) -> dict[str, Tensor]:
    """Gradients of the global batch's loss, accumulated over micro-batches with one synchronisation; the losses."""
    totals = all_reduce_sum(torch.stack([trainable.count(batch) for batch in batches]).sum(0)) / world_size()
    sums: dict[str, Tensor] = {}
    for part, batch in enumerate(batches):
        torch.manual_seed(_seed(plan.seed, step, rank() * len(batches) + part))  # drop path, dropout
        with accumulating(model, part == len(batches) - 1):
            with torch.autocast(batch.index.device.type, torch.bfloat16, plan.precision == "bfloat16"):
                losses = model(batch, totals)
            losses["loss"].backward()  # outside: autocast holds its copies of all weights until it is left
        sums = {name: value.detach() + sums.get(name, 0.0) for name, value in losses.items()}
    return sums


def clip(module: nn.Module, limit: float | None) -> Tensor:
    """The gradient's norm over all processes, before it is clipped to `limit`."""
    gradients = [(p.grad, local(p.grad)) for p in module.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([part for _, part in gradients], foreach=True)
    if any(part is not whole for whole, part in gradients):
        norm = all_reduce_sum(norm.square()).sqrt()
    if limit is not None:
        torch._foreach_mul_([part for _, part in gradients], (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def save(
    objective: Any,
    optimizer: torch.optim.Optimizer,
    checkpoints: Checkpoints,
    step: int,
    meta: Mapping[str, Any],
    log: Log,
) -> None:
    """Begin a checkpoint. If the one before could not be written that is said, and this one is the next attempt."""
    try:
        checkpoints.wait()
    except CheckpointError as error:
        log.say(f"{error}; training goes on")
    checkpoints.save(step, training_state(objective, optimizer), student_state(objective), meta)


@contextmanager
def finishing(checkpoints: Checkpoints) -> Iterator[None]:
    """Whatever ends the run, a checkpoint being written is finished."""
    try:
        yield
    finally:
        checkpoints.close()


@contextmanager
def memory_advice(batches: list[Batch]) -> Iterator[None]:
    """Running out of memory as OutOfMemory, with what to try."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        on_host = type(error) is RuntimeError and "alloc" in first  # which has no class of its own
        if not (on_host or isinstance(error, torch.OutOfMemoryError | MemoryError)):
            raise
        size = len(batches[0])
        advice = f"--micro-batch {size // 2}, " if size > 1 else ""
        raise OutOfMemory(
            f"out of memory with {size} images at once ({first}); try {advice}run.recompute=true, run.parallel=fsdp on several "
            f"devices, or a smaller student; neither of the first changes the result"
        ) from error


@contextmanager
def interruptible() -> Iterator[Any]:
    """Signals to stop only set a flag here, read by the returned function; a second SIGINT interrupts at once."""
    seen: list[int] = []

    def remember(number: int, frame: object) -> None:
        if seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        seen.append(number)

    try:
        before = {number: signal.signal(number, remember) for number in STOPPING}
    except ValueError:  # not in the main thread: signals are someone else's
        before = {}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _hung(run: Run, log: Log, reason: str) -> None:
    if read_status(run.out).get("status") == "running":
        log.say(reason)
        write_status(run.out, "failed", None, reason)


def _seed(*address: int) -> int:
    """A 64-bit seed of an address."""
    value = 0
    for part in address:
        value = (value * 6364136223846793005 + part + 1442695040888963407) % 2**63
    return value
