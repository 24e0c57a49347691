"""A toy training in which one image makes something not a number: its pixels, its target, its loss or its gradient.

`main` does so for every kind, and each process writes what it saw to said-RANK.json.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from tests.engine import toys
from unimim import Objective, Sampling
from unimim.engine.checkpoint import Checkpoints
from unimim.engine.data.loader import order, steps
from unimim.engine.distributed import process_group
from unimim.engine.guard import NonFinite
from unimim.engine.log import Log
from unimim.engine.loop import backward, clip, train
from unimim.engine.optim import make_optimizer
from unimim.engine.run import Run
from unimim.engine.state import awaited_state
from unimim.training import build, plan_of
from unimim.world import rank

Kind = Literal["pixel", "teacher", "loss", "gradient"]
KINDS: tuple[Kind, ...] = get_args(Kind)
STEP = 2


class Poisoned(Sampling):
    """One image is not a number."""

    victim: int | None = None

    def __call__(self, image: torch.Tensor, epoch: int, index: int) -> Any:
        sample = super().__call__(image, epoch, index)
        view = sample.views["main"]
        pixels = view.image.float() / 255
        return replace(
            sample, views={"main": replace(view, image=pixels * (float("nan") if index == self.victim else 1))}
        )


class Training:
    """The toy; the victim is the last image of step STEP, which the last process holds."""

    def __init__(self, kind: Kind, out: Path, **options: Any) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.recipe = toys.recipe("mae-micro")
        self.objective: Objective = build(self.recipe)
        self.source, self.run = toys.Noise(), toys.run(out, **options)
        self.plan = plan_of(self.recipe, self.source)
        self.victim = int(order(self.plan.seed, 0, self.plan.num_images)[(STEP + 1) * self.plan.batch - 1])
        self.sampling = Poisoned(self.recipe, self.objective.student.geometry)
        self.sampling.victim = self.victim if kind == "pixel" else None
        self.hit = False
        self.objective.register_forward_pre_hook(self._look)
        branch = self.objective.terms["mim"]
        if kind == "teacher":
            branch.teacher[0].register_forward_hook(
                lambda module, given, target: replace(target, tokens=target.tokens * self._factor())
            )
        if kind == "loss":
            branch.loss.register_forward_hook(lambda module, given, distances: distances * self._factor())
        if kind == "gradient":
            next(self.objective.student.parameters()).register_hook(lambda gradient: gradient * self._factor())

    def _look(self, module: Any, given: tuple[Any, ...]) -> None:
        self.hit = self.victim in given[0].index.tolist()

    def _factor(self) -> float:
        return float("inf") if self.hit else 1.0

    def start(self, device: torch.device) -> str:
        """What the NonFinite said; raises if there was none."""
        with Log(self.run.out, "toy", self.plan.total_steps, self.plan.batch, quiet=True) as log:
            try:
                train(self.objective, self.source, self.sampling, self.plan, self.run, device, log, {})
            except NonFinite as error:
                return str(error)
        raise AssertionError("every step gave a number")

    def steps_taken(self) -> int:
        """Optimizer steps in the state that nonfinite/ holds."""
        _, state = self._state()
        return max(int(tensor) for name, tensor in state.items() if name.endswith("/step"))

    def replays(self) -> bool:
        """Whether that state, on the images of its step, gives no number again (in one process)."""
        step, _ = self._state()
        feed = steps(self.source, self.sampling, self.plan, self.run, step)
        losses = backward(self.objective, self.objective, next(feed), self.plan, step)
        return not bool(torch.isfinite(losses["loss"]) & torch.isfinite(clip(self.objective, None)))

    def _state(self) -> tuple[int, dict[str, torch.Tensor]]:
        checkpoints = Checkpoints(self.run.out / "nonfinite")
        optimizer = make_optimizer(self.objective, self.plan.optimization, self.objective.depth_of)
        found = checkpoints.newest()
        assert found is not None
        state = awaited_state(self.objective, optimizer, checkpoints.names(found))
        checkpoints.load(found, state)
        return found.step, state


def main(out: Path) -> None:
    with process_group(Run(out=out, device="cpu")) as device:
        said = {kind: Training(kind, out / kind).start(device) for kind in KINDS}
        (out / f"said-{rank()}.json").write_text(json.dumps(said))
