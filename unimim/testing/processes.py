"""Whether several processes compute what one computes at the same global batch."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ..objective import Objective
from ..recipe import Recipe, load
from ..sampling import Sampling
from ..types import Progress
from ..world import all_reduce_sum, rank, world_size
from .contracts import _pixels, _require, _stirred


def check_processes(recipe: Recipe | str, overrides: Sequence[str] = (), procs: int = 2) -> None:
    """One training step of a recipe, its batch of 2 `procs` images split over processes (gloo, CPU): every term's loss
    within 1e-5, and every parameter's gradient within 1e-4 of its largest entry, are those of one process. Rounding is
    allowed 5e-6 of the largest number of all: the bias before a BatchNorm has a gradient of nothing else.

    For terms that look beyond their own images, which a sum over processes alone does not make right. Drop path and
    dropout must be off, because each process draws its own.
    """
    recipe = load(recipe if isinstance(recipe, str) else recipe.data(), overrides)
    must = partial(_require, f"recipe {recipe.name!r}")
    one = _step(recipe, 2 * procs)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipe.yaml").write_text(recipe.yaml(), encoding="utf-8")
        call = f"from unimim.testing.processes import _join; _join({name!r}, {procs}, "
        parts = [
            subprocess.Popen([sys.executable, "-c", f"{call}{number})"], stderr=subprocess.PIPE, text=True)
            for number in range(procs)
        ]
        said = [part.communicate(timeout=240)[1] for part in parts]
        failed = "".join(text[-2000:] for part, text in zip(parts, said, strict=True) if part.returncode)
        must(not failed, f"a process failed: {failed}")
        several: dict[str, Tensor] = torch.load(folder / "step.pt", weights_only=True)
    noise = 5e-6 * max(float(value.abs().max()) for value in one.values())
    for what, value in one.items():
        allowed = (1e-4 if value.ndim else 1e-5) * float(value.abs().max()) + noise
        off = float((several[what] - value).abs().max())
        must(off <= allowed, f"{what} in {procs} processes differs from that in one by {off:.2g}, not {allowed:.2g}")


def _step(recipe: Recipe, num_images: int) -> dict[str, Tensor]:
    """{loss and gradient, by name} of this process's share of the batch, summed over processes."""
    torch.manual_seed(0)
    objective = _stirred(Objective(recipe)).train()
    sampling = Sampling(recipe, objective.student.geometry, objective.renditions)
    images = _pixels((num_images, objective.student.geometry.channels, 80, 96), 5)
    samples = [sampling(image, 0, index) for index, image in enumerate(images)]
    objective.fit([sampling.collate(samples)])
    objective.on_step_start(Progress(0, 10, 5))
    batch = sampling.collate(samples[rank() :: world_size()])
    losses = objective(batch, all_reduce_sum(objective.count(batch)))
    torch.autograd.backward(losses["loss"])
    found = {f"the loss {name!r}": value.detach() for name, value in losses.items()}
    found |= {f"the gradient of {name}": p.grad for name, p in objective.named_parameters() if p.grad is not None}
    return {name: all_reduce_sum(value) for name, value in found.items()}


def _join(folder: str, procs: int, number: int) -> None:
    """The step of one of `procs` processes; the first writes what all of them made."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=procs)
    found = _step(load(f"{folder}/recipe.yaml"), 2 * procs)
    if number == 0:
        torch.save(found, f"{folder}/step.pt")
    dist.destroy_process_group()
