"""One training step on a share of a batch; `main` is that of one of two processes, whose results go to a folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from unimim import Batch, Objective, Progress, Sampling, all_reduce_sum, load

SMALL = [
    "student.image_size=32",
    "student.patch_size=4",
    "student.dim=16",
    "student.depth=2",
    "student.num_heads=2",
    "head.hidden_dim=24",
    "teacher.head_dim=12",
    "precision=float32",
]


def objective(*changes: str) -> Any:
    torch.manual_seed(0)
    return Objective(load("conmim-micro", [*SMALL, *changes])).train()


def batches(made: Any, parts: int) -> list[Batch]:
    """Four images dealt to `parts`, every other one to the same of two."""
    draw = torch.Generator().manual_seed(1)
    sampling = Sampling(made.recipe, made.student.geometry, made.renditions)
    images = torch.randint(0, 256, (4, 3, 40, 48), dtype=torch.uint8, generator=draw)
    samples = [sampling(image, 0, index) for index, image in enumerate(images)]
    return [sampling.collate(samples[number::parts]) for number in range(parts)]


def step(made: Any, shares: Sequence[Batch]) -> dict[str, Tensor]:
    """The loss, every gradient, and weights of student, head and momentum copy after a step of plain descent."""
    totals = all_reduce_sum(torch.stack([made.count(share) for share in shares]).sum(0))
    losses = [made(share, totals)["loss"] for share in shares]
    torch.autograd.backward(losses)
    found = {"loss": all_reduce_sum(torch.stack(losses).sum().detach())}
    learning = {name: parameter for name, parameter in made.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for name, parameter in learning.items():
            found[f"gradient {name}"] = gradient = all_reduce_sum(parameter.grad)
            parameter.sub_(0.1 * gradient)
    made.on_step_end(Progress(0, 10, 5))
    return found | {name: parameter.detach() for name, parameter in made.named_parameters()}


def main(folder: str) -> None:
    rank = dist.get_rank()
    made = objective()
    torch.save(step(made, [batches(made, 2)[rank]]), f"{folder}/{rank}.pt")
