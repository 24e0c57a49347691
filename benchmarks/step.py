"""Images per second of a training step, for several recipes interleaved, and the ratios to the first.

    python benchmarks/step.py mae-micro beit-micro data2vec-micro precision=bfloat16

Random images in memory; forward, backward, AdamW and teacher hooks; no loader. The median over rounds, in which the recipes take
turns, so that a busy machine slows all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from unimim import Objective, Progress, Sampling, load
from unimim.engine.optim import adamw
from unimim.types import Batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arguments", nargs="+", metavar="RECIPE | key=value")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    assignments = [argument for argument in options.arguments if "=" in argument]
    names = [argument for argument in options.arguments if "=" not in argument]
    steps = {name: Step(name, assignments, options.batch, options.device) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(options.rounds + 1):
        for name, step in steps.items():
            taken = step()
            if number:  # the first round warms up
                seconds[name].append(taken)
    first = statistics.median(seconds[names[0]])
    for name in names:
        median = statistics.median(seconds[name])
        spread = f"{min(seconds[name]):.3f} to {max(seconds[name]):.3f} s"
        print(
            f"{name}: {options.batch / median:.1f} images/s ({median:.3f} s a step, {spread}), {median / first:.2f} x {names[0]}"
        )


class Step:
    """One optimizer step of a recipe on a fixed batch; called, it returns the seconds it took."""

    def __init__(self, name: str, assignments: list[str], batch: int, device: str) -> None:
        torch.manual_seed(0)
        recipe = load(name, assignments)
        self.device = torch.device(device)
        self.objective = Objective(recipe).to(self.device).train()
        self.bfloat16 = recipe.precision == "bfloat16"
        sampling = Sampling(recipe, self.objective.student.geometry, self.objective.renditions)
        image = torch.randint(0, 256, (3, *self.objective.student.geometry.image), dtype=torch.uint8)
        self.batch: Batch = sampling.collate([sampling(image, 0, index) for index in range(batch)]).to(self.device)
        if self.objective.needs_fit:
            self.objective.fit([self.batch] * 8)
        self.optimizer = adamw(self.objective, recipe.optimization, self.objective.depth_of)
        self.number = 0

    def __call__(self) -> float:
        self._wait()
        start = time.perf_counter()
        progress = Progress(self.number, 1000, 100)
        self.objective.on_step_start(progress)
        with torch.autocast(self.device.type, torch.bfloat16, self.bfloat16):
            loss = self.objective(self.batch)["loss"]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.on_step_end(progress)
        self.number += 1
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


if __name__ == "__main__":
    main()
