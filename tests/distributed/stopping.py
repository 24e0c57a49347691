"""Called twice: processes train toy recipes to the end, and others to a step; new processes go on with the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.engine import toys
from unimim import Sampling
from unimim.engine.distributed import process_group
from unimim.engine.log import Log
from unimim.engine.loop import Outcome, train
from unimim.engine.run import Run
from unimim.training import build, plan_of

STEPS, LOG_EVERY = 6, 3
"""Most stops lie between two lines of the log, whose means are then of steps before and after."""
RECIPES = ("data2vec-micro", "beit-micro")
"""Between them: a momentum copy, drop path, and a codebook that was fitted before the first step."""
WAYS = ("ddp", "fsdp")


class Case(NamedTuple):
    """A recipe stopped after `stop` steps (None: never), with `workers`."""

    recipe: str
    parallel: str
    stop: int | None = None
    workers: int = 0

    def folder(self, out: Path) -> Path:
        return out / self.recipe / self.parallel / ("whole" if self.stop is None else str(self.stop))

    def train(self, out: Path, device: torch.device, **options: Any) -> Outcome:
        recipe = toys.recipe(self.recipe, "epochs=2")
        run = toys.run(self.folder(out), parallel=self.parallel, log_every=LOG_EVERY, **options)
        run.out.mkdir(parents=True, exist_ok=True)
        objective = build(recipe)
        sampling = Sampling(recipe, objective.student.geometry, objective.renditions)
        plan = plan_of(recipe, toys.Noise())
        with Log(run.out, recipe.name, plan.total_steps, plan.batch, quiet=True) as log:
            return train(objective, toys.Noise(), sampling, plan, run, device, log, {})


WHOLE = [Case(recipe, way) for recipe in RECIPES for way in WAYS]
STOPPED = [whole._replace(stop=stop, workers=stop % 3) for whole in WHOLE for stop in range(1, STEPS)]


def main(out: Path) -> None:
    """The first time all that is whole, and the others up to their stop; the second time the rest of them."""
    begun = STOPPED[0].folder(out).exists()
    with process_group(Run(out=out, device="cpu")) as device:
        for case in [] if begun else WHOLE:
            assert case.train(out, device, workers=0) == Outcome("done", STEPS)
        for case in STOPPED:
            if begun:
                assert case.train(out, device, workers=(case.workers + 1) % 3) == Outcome("done", STEPS)
            else:
                stopped = case.train(out, device, workers=case.workers, stop_after=case.stop)
                assert stopped == Outcome("preempted", case.stop)
