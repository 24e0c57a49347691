"""The training loop."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..types import Batch, Progress
from ..world import all_reduce_sum, rank, world_size
from .checkpoint import Checkpoints
from .data.loader import Sampler, first_images, steps
from .data.sources import ImageSource
from .distributed import replicate
from .log import Log
from .optim import adamw, set_rate
from .run import Plan, Run


class Trainable(Protocol):
    """What the loop sees of an objective; `unimim.Objective` is one."""

    def forward(self, batch: Batch, totals: Tensor | None = None) -> dict[str, Tensor]: ...
    def count(self, batch: Batch) -> Tensor: ...
    def depth_of(self, parameter: str) -> int: ...
    def compile_blocks(self) -> None: ...
    def training_state(self) -> dict[str, Tensor]: ...
    def load_training_state(self, state: Mapping[str, Tensor]) -> None: ...
    @property
    def needs_fit(self) -> bool: ...
    def fit(self, batches: Iterable[Batch]) -> None: ...
    def on_step_start(self, progress: Progress) -> None: ...
    def on_step_end(self, progress: Progress) -> None: ...
    def on_epoch_end(self, progress: Progress) -> None: ...


class NonFinite(RuntimeError):
    """The loss or its gradient stopped being a number; the step was not taken."""


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

    meta: plain data stored in every checkpoint. Raises NonFinite, and whatever reading the data raises; checkpoints
    written before stay.
    """
    trainable: Trainable = objective
    # Set up
    objective.to(device).train()
    checkpoints = Checkpoints(run.out / "checkpoints", run.keep)
    optimizer = adamw(objective, plan.optimization, trainable.depth_of)
    start = resume(objective, optimizer, checkpoints, device, log)
    if start == 0 and trainable.needs_fit:
        log.say("fitting the teacher to the data")
        trainable.fit(batch.to(device) for batch in first_images(source, sampling, plan, run.skip_bad_images))
    if run.compile:
        trainable.compile_blocks()
    model = replicate(objective, device)
    log.restart(start)
    meters = Meters(device)
    saved_at = time.monotonic()

    with interruptible() as interrupted, closing(steps(source, sampling, plan, run, start)) as feed:
        for step in range(start, plan.total_steps):
            progress = plan.progress(step)
            # Data
            waiting = time.perf_counter()
            batches = [batch.to(device) for batch in next(feed)]
            log.waited += time.perf_counter() - waiting
            # Step
            trainable.on_step_start(progress)
            set_rate(optimizer, plan.rate(step))
            losses = backward(model, trainable, batches, plan, step)
            grad_norm = clip(objective, plan.optimization.clip_norm)
            meters.add(losses, grad_norm)
            if device.type == "cpu":
                meters.check(step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            trainable.on_step_end(progress)
            done = step + 1
            if done % plan.steps_per_epoch == 0:
                trainable.on_epoch_end(progress)
            # Log
            last = done == plan.total_steps
            if done % run.log_every == 0 or last:
                values = meters.read(step)
                log.scalars(done, {"epoch": round(done / plan.steps_per_epoch, 4), "lr": plan.rate(step), **values})
            # Checkpoint
            due = last or time.monotonic() - saved_at > run.checkpoint_minutes * 60
            stop = not last and (interrupted() or done == run.stop_after)
            if world_size() > 1 and (done % run.log_every == 0 or done in (run.stop_after, plan.total_steps)):
                stop, due = agree([stop, due], device)
            elif world_size() > 1:
                stop, due = False, False
            if stop or due:
                meters.check(step)
                save(objective, optimizer, checkpoints, done, meta)
                saved_at = time.monotonic()
            if stop:
                log.say(f"stopped at step {done}; the same command goes on from there")
                return Outcome("preempted", done)
    return Outcome("done", plan.total_steps)


def backward(model: nn.Module, trainable: Trainable, batches: list[Batch], plan: Plan, step: int) -> dict[str, Tensor]:
    """Gradients of the global batch's loss, accumulated over micro-batches with one synchronisation; the losses."""
    totals = all_reduce_sum(torch.stack([trainable.count(batch) for batch in batches]).sum(0)) / world_size()
    sums: dict[str, Tensor] = {}
    for part, batch in enumerate(batches):
        torch.manual_seed(_seed(plan.seed, step, rank() * len(batches) + part))  # drop path, dropout
        last = part == len(batches) - 1
        with (
            _no_sync(model, last),
            torch.autocast(batch.index.device.type, torch.bfloat16, plan.precision == "bfloat16"),
        ):
            losses = model(batch, totals)
            losses["loss"].backward()
        sums = {name: value.detach() + sums.get(name, 0.0) for name, value in losses.items()}
    return sums


def clip(module: nn.Module, limit: float | None) -> Tensor:
    """The gradient's norm, before it is clipped to `limit`."""
    parameters = [p for p in module.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm, foreach=True)
    return norm


class Meters:
    """Losses and gradient norms, kept on the device until they are read."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, losses: Mapping[str, Tensor], grad_norm: Tensor) -> None:
        terms = {f"loss/{name}": value for name, value in losses.items() if name != "loss"}
        values = {"loss": losses["loss"], **(terms if len(terms) > 1 else {}), "grad_norm": grad_norm.detach()}
        self.sums = {name: self.sums[name] + value if self.sums else value for name, value in values.items()}
        self.count += 1

    def read(self, step: int) -> dict[str, float]:
        """Means since the last reading, losses over all processes; then start anew. Raises NonFinite."""
        self.check(step)
        stacked = torch.stack([value.float() for value in self.sums.values()])
        means = (all_reduce_sum(stacked) / world_size() / self.count).tolist()
        named = dict(zip(self.sums, means, strict=True))
        self.sums, self.count = {}, 0
        return named

    def check(self, step: int) -> None:
        """NonFinite if anything added was not a number. On CPU this is asked before every optimizer step; on CUDA, where
        asking waits for the device, at every log line and before every checkpoint."""
        if self.sums and not all(bool(torch.isfinite(value)) for value in self.sums.values()):
            values = ", ".join(f"{name} {value.item():g}" for name, value in self.sums.items())
            raise NonFinite(
                f"not a number by step {step} ({values}). The last checkpoint is sound. Lower optimization.lr, lengthen the "
                f"warm-up, set optimization.clip_norm, or try precision=float32; then start again in a new folder."
            )


def resume(
    objective: Any, optimizer: torch.optim.Optimizer, checkpoints: Checkpoints, device: torch.device, log: Log
) -> int:
    """Load the newest whole checkpoint; the number of steps it holds."""
    found = checkpoints.load(device)
    if found is None:
        return 0
    state, _, warnings = found
    for warning in warnings:
        log.say(warning)
    objective.load_training_state(state["objective"])
    groups = [(group["weight_decay"], group["rate_scale"]) for group in optimizer.param_groups]
    optimizer.load_state_dict(state["optimizer"])
    for group, (weight_decay, rate_scale) in zip(optimizer.param_groups, groups, strict=True):
        group["weight_decay"], group["rate_scale"] = weight_decay, rate_scale
    step: int = state["step"]
    log.say(f"going on from step {step}")
    return step


def save(
    objective: Any, optimizer: torch.optim.Optimizer, checkpoints: Checkpoints, step: int, meta: Mapping[str, Any]
) -> None:
    """One checkpoint, by rank 0; the others wait, so that none outlives a write it counts on."""
    if rank() == 0:
        state = {"step": step, "objective": objective.training_state(), "optimizer": optimizer.state_dict()}
        checkpoints.save(step, state, meta)
    if world_size() > 1:
        torch.distributed.barrier()


def agree(wishes: Sequence[bool], device: torch.device) -> list[bool]:
    """Each wish, True on every process if any of them has it. Waits for all processes and for the device."""
    flags = torch.tensor(wishes, dtype=torch.float32, device=device)
    torch.distributed.all_reduce(flags)
    return [bool(flag > 0) for flag in flags]


@contextmanager
def interruptible() -> Iterator[Any]:
    """SIGINT and SIGTERM only set a flag here, read by the returned function; a second SIGINT interrupts at once."""
    seen: list[int] = []

    def remember(number: int, frame: object) -> None:
        if seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        seen.append(number)

    try:
        before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals are someone else's
        before = {}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _no_sync(model: nn.Module, last: bool) -> AbstractContextManager[Any]:
    return nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()


def _seed(*address: int) -> int:
    """A 64-bit seed of an address."""
    value = 0
    for part in address:
        value = (value * 6364136223846793005 + part + 1442695040888963407) % 2**63
    return value
