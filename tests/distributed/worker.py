"""Run by torchrun: trains a toy recipe and saves what it became, on rank 0."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tests.engine import toys
from unimim import Sampling
from unimim.engine.distributed import process_group
from unimim.engine.log import Log
from unimim.engine.loop import train
from unimim.training import build, plan_of
from unimim.world import rank


def main(name: str, out: Path, *more: str) -> None:
    recipe = toys.recipe(name, *more)
    out.mkdir(parents=True, exist_ok=True)
    with process_group("cpu") as device:
        objective = build(recipe)
        sampling = Sampling(recipe, objective.student.geometry, objective.renditions)
        plan = plan_of(recipe, toys.Noise())
        with Log(out, name, plan.total_steps, plan.batch, quiet=True) as log:
            train(objective, toys.Noise(), sampling, plan, toys.run(out), device, log, {})
        if rank() == 0:
            torch.save(objective.state_dict(), out / "state.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
