"""One process of several: its share of a batch through a tiny vqkd-micro, as the engine would do it; see test_vqkd.py."""

from __future__ import annotations

import contextlib
import inspect
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from unimim import Batch, Mask, Objective, Progress, View, all_reduce_sum, load

IMAGES = 8
NEWER = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
KEEP_BUFFERS: Any = {"forward_sync_buffers" if NEWER else "broadcast_buffers": False}
"""As the engine has it: each process counts the codes of its own images."""
TINY = [
    *("student.image_size=16", "student.patch_size=4", "student.dim=16", "student.depth=1", "student.num_heads=2"),
    *("teacher=pixel", "precision=float32"),
    "head={name: vqkd, num_codes: 24, code_dim: 4, dim: 8, depth: 1, num_heads: 2, decay: 0.5}",
]


def batch(first: int, last: int) -> Batch:
    """These of the IMAGES images."""
    pixels = torch.rand(IMAGES, 3, 16, 16, generator=torch.Generator().manual_seed(1))[first:last]
    mask = Mask.from_hidden(torch.zeros(len(pixels), 16, dtype=torch.bool), 0)
    return Batch({"main": View(pixels)}, {"main": (mask,)}, torch.arange(first, last))


def objective(*overrides: str) -> Any:
    torch.manual_seed(0)
    made = Objective(load("vqkd-micro", [*TINY, *overrides])).train()
    made.fit([batch(0, IMAGES)])
    return made


def step(made: Any, rank: int = 0, world: int = 1, parts: int = 1) -> dict[str, Tensor]:
    """Loss, gradients, codes, their sizes and the report after one step over all images."""
    share = IMAGES // world // parts
    batches = [
        batch(first, first + share) for first in (rank * IMAGES // world + part * share for part in range(parts))
    ]
    made.on_step_start(Progress(0, 1, 1))
    totals = all_reduce_sum(torch.stack([made.count(part) for part in batches]).sum(0)) / world
    model = DistributedDataParallel(made, **KEEP_BUFFERS) if world > 1 else made
    loss = torch.zeros(())
    for number, part in enumerate(batches):
        last = number == parts - 1
        with contextlib.nullcontext() if last or world == 1 else model.no_sync():
            own = model(part, totals)["loss"]
            own.backward()
        loss += own.detach()
    made.on_step_end(Progress(0, 1, 1))
    book = made.terms["mim"].head.codebook
    found = {f"grad/{name}": parameter.grad for name, parameter in made.named_parameters()}
    found |= {"loss": all_reduce_sum(loss) / world, "codes": book.codes, "cluster_size": book.cluster_size}
    return found | {"report": book.report[:3], "report/objective": torch.stack([*made.health.values()][-4:-1])}


def main(folder: str) -> None:
    """Whole shares, then two micro-batches each."""
    steps = [step(objective(), dist.get_rank(), dist.get_world_size(), parts) for parts in (1, 2)]
    torch.save(steps, Path(folder) / f"{dist.get_rank()}.pt")
