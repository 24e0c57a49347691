"""Run in two processes: the teacher of a sharded objective answers and follows as that of a whole one."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from unimim import Objective, Progress, Sampling, load


def build(*overrides: str) -> Any:
    torch.manual_seed(0)
    return Objective(load("sdae-micro", overrides))


def main(*overrides: str) -> None:
    whole, sharded = build(*overrides), build(*overrides)
    mesh = init_device_mesh("cpu", (2,))
    for part in [*sharded.blocks(), sharded]:
        fully_shard(part, mesh=mesh)
    sampling = Sampling(whole.recipe, whole.student.geometry, whole.renditions)
    image = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = sampling.collate([sampling(image, 0, index) for index in range(4)])
    for epoch in range(2):
        torch.testing.assert_close(sharded(batch)["loss"], whole(batch)["loss"])
        for objective in (sharded, whole):
            objective.on_epoch_end(Progress(epoch, 3, 1))
    halves, state = 0, whole.state_dict()
    for name, tensor in sharded.state_dict().items():
        halves += hasattr(tensor, "full_tensor")
        value = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        torch.testing.assert_close(value, state[name], rtol=0, atol=1e-7, msg=name)
    assert halves > 50, "hardly anything was sharded"
