"""A Python file run by several processes of one group, and whether they compute what one does at the same global batch."""

from __future__ import annotations

import multiprocessing
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..objective import Objective
from ..recipe import Recipe, load
from ..sampling import Sampling
from ..types import Progress
from ..world import all_reduce_sum, rank, world_size
from .contracts.rules import require
from .contracts.toys import stirred, toy_pixels


def in_processes(script: str | Path, *arguments: object, procs: int = 2, seconds: float = 240) -> None:
    """`main(*arguments)` of the Python file `script`, its arguments as str, in `procs` processes of one gloo group.

    RuntimeError with what they wrote to stderr if one fails; subprocess.TimeoutExpired after `seconds`.
    """
    _start(_run_script, str(Path(script).resolve()), *map(str, arguments), procs=procs, seconds=seconds)


def check_processes(recipe: Recipe | str, overrides: Sequence[str] = (), procs: int = 2) -> None:
    """One training step of a recipe, its batch of 2 `procs` images split over processes (gloo, CPU): every term's loss
    within 1e-5, and every parameter's gradient within 1e-4 of its largest entry, are those of one process. Rounding is
    allowed 5e-6 of the largest number of all: the bias before a BatchNorm has a gradient of nothing else.

    For terms that look beyond their own images, which a sum over processes alone does not make right. Drop path and
    dropout must be off, because each process draws its own.
    """
    recipe = load(recipe if isinstance(recipe, str) else recipe.data(), overrides)
    must = partial(require, f"recipe {recipe.name!r}")
    one = _step(recipe, 2 * procs)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipe.yaml").write_text(recipe.yaml(), encoding="utf-8")
        try:
            _start(_save_step, name, procs=procs)
        except RuntimeError as error:
            must(False, str(error))
        several: dict[str, Tensor] = torch.load(folder / "step.pt", weights_only=True)
    noise = 5e-6 * max(float(value.abs().max()) for value in one.values())
    for what, value in one.items():
        allowed = (1e-4 if value.ndim else 1e-5) * float(value.abs().max()) + noise
        off = float((several[what] - value).abs().max())
        must(off <= allowed, f"{what} in {procs} processes differs from that in one by {off:.2g}, not {allowed:.2g}")


def _step(recipe: Recipe, num_images: int) -> dict[str, Tensor]:
    """{loss and gradient, by name} of this process's share of the batch, summed over processes."""
    torch.manual_seed(0)
    objective = stirred(Objective(recipe)).train()
    sampling = Sampling(recipe, objective.student.geometry, objective.renditions)
    images = toy_pixels((num_images, objective.student.geometry.channels, 80, 96), 5)
    samples = [sampling(image, 0, index) for index, image in enumerate(images)]
    objective.fit([sampling.collate(samples)])
    objective.on_step_start(Progress(0, 10, 5))
    batch = sampling.collate(samples[rank() :: world_size()])
    losses = objective(batch, all_reduce_sum(objective.count(batch)))
    torch.autograd.backward(losses["loss"])
    found = {f"the loss {name!r}": value.detach() for name, value in losses.items()}
    found |= {f"the gradient of {name}": p.grad for name, p in objective.named_parameters() if p.grad is not None}
    return {name: all_reduce_sum(value) for name, value in found.items()}


def _save_step(folder: str) -> None:
    """The step of the recipe in `folder`, which the first process also writes there."""
    found = _step(load(f"{folder}/recipe.yaml"), 2 * world_size())
    if rank() == 0:
        torch.save(found, f"{folder}/step.pt")


def _run_script(path: str, *arguments: str) -> None:
    runpy.run_path(path)["main"](*arguments)


def _start(act: Callable[..., None], *arguments: str, procs: int, seconds: float = 240) -> None:
    """`act(*arguments)` in `procs` processes, which a new one starts: this one may hold threads, which forks lack."""
    with tempfile.TemporaryDirectory() as name:
        call = (f"{name}/meet", procs, act.__name__, arguments)
        code = f"from unimim.testing import processes; processes._join_all{call!r}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds)
    if done.returncode:
        raise RuntimeError(f"one of {procs} processes failed: {done.stderr[-4000:]}")


def _join_all(meet: str, procs: int, act: str, arguments: Sequence[str]) -> None:
    """`_join` in `procs` processes: forks of this one where that is safe, for loading torch takes longer than the step.

    Forks also end without the interpreter's clean-up, during which threads of gloo would still run.
    """
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    parts = [context.Process(target=_join, args=(meet, procs, number, act, arguments)) for number in range(procs)]
    for part in parts:
        part.start()
    for part in parts:
        part.join()
    sys.exit(any(part.exitcode for part in parts))


def _join(meet: str, procs: int, number: int, act: str, arguments: Sequence[str]) -> None:
    torch.set_num_threads(torch.get_num_threads())  # makes the pool of threads anew after a fork
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=number, world_size=procs)
    globals()[act](*arguments)
    dist.destroy_process_group()
