"""Steps that gave no number: not taken, and what is left behind where there are too many of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..world import rank, world_size
from .checkpoint import Checkpoints, write_text
from .data.loader import addresses
from .data.sources import ImageSource
from .run import Plan, Run, split
from .state import student_state, training_state


class NonFinite(RuntimeError):
    """The loss or its gradient stopped being a number; the step was not taken."""


class Guard:
    """Keeps steps that gave no number from being taken, on the device, and learns of them without waiting for it.

    Up to `allowed` such steps in a row are left out. With one more the guard is stuck: from there on no step is taken.
    """

    def __init__(self, device: torch.device, allowed: int) -> None:
        self.allowed = allowed
        self._run, self._stuck = torch.zeros((), device=device), torch.zeros((), device=device)
        self._copy: tuple[Tensor, torch.cuda.Event] | None = None

    def judge(self, loss: Tensor, grad_norm: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        """Whether the step is sound, () bool, the same on every process; if not, optimizer.step() will do nothing."""
        bad = (~(torch.isfinite(loss) & torch.isfinite(grad_norm))).float()
        if world_size() > 1:
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        self._run = (self._run + 1) * bad
        self._stuck = torch.maximum(self._stuck, (self._run > self.allowed).float())
        optimizer.found_inf = torch.maximum(bad, self._stuck)  # type: ignore[attr-defined]
        return bad == 0

    def stuck(self, wait: bool = False) -> bool:
        """On CUDA what was so a call ago, unless `wait`; asking for now would stop the host until the device is done."""
        if wait or self._stuck.device.type != "cuda":
            return bool(self._stuck)
        seen, copied = self._copy = self._copy or (torch.zeros((), pin_memory=True), torch.cuda.Event())
        copied.synchronize()
        before = bool(seen)
        seen.copy_(self._stuck, non_blocking=True)
        copied.record()
        return before


def give_up(
    objective: Any,
    optimizer: torch.optim.Optimizer,
    source: ImageSource,
    plan: Plan,
    run: Run,
    step: int,
    losses: Mapping[str, Tensor],
    grad_norm: Tensor,
) -> None:
    """Leave what is needed to see the step again in run.out/nonfinite, and raise NonFinite.

    A checkpoint from before the step (CUDA tells a step late, so `step` is the one after; no step was taken since), and
    a file that names every image of the process's share.
    """
    folder = run.out / "nonfinite"
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(step, training_state(objective, optimizer), student_state(objective), {})
    checkpoints.wait()
    checkpoints.close()
    micro, repeats = split(plan.batch, world_size(), run.micro_batch)
    shares = addresses(plan, micro, repeats, step)
    terms = {name: value for name, value in losses.items() if name == "loss" or len(losses) > 2}
    values = {name: value.item() for name, value in {**terms, "grad_norm": grad_norm}.items()}
    epoch = step // plan.steps_per_epoch
    names = [source.name(index) for _ in range(repeats) for _, index in next(shares)]
    about = {"step": step, "epoch": epoch, "rank": rank(), "values": {k: str(v) for k, v in values.items()}}
    write_text(folder / f"step-{step}-rank-{rank()}.json", json.dumps(about | {"images": names}, indent=1))
    listed = ", ".join(f"{name} {value:g}" for name, value in values.items())
    raise NonFinite(
        f"not a number by step {step} ({listed}); the step was not taken. {folder} holds the state before it and the "
        f"names of its images. Lower optimization.lr, lengthen the warm-up, set optimization.clip_norm, or try "
        f"precision=float32 in a new folder; or go on here and leave such steps out, with run.skip_nonfinite=1."
    )
