"""What a training step of the recipe behind some weights costs."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from .cost import SHARES, WORDS, Case, Cost
from .protocol import Protocol, Setting, Subject
from .score import Score
from .turns import Unmeasured, measure


class TrainingCost(Protocol):
    """Table 7: a step of the recipe in a fresh process, with new weights.

    batch: images a step.  steps: that count, after three that do not.
    """

    task: ClassVar[str] = "cost"
    reads_data: ClassVar[bool] = False

    batch: int = Field(8, gt=0, le=2**20)
    steps: int = Field(20, ge=2)

    def measure(self, subject: Subject, setting: Setting) -> list[Score]:
        recipe = subject.recipe.model_copy(update={"batch": self.batch})
        try:
            return scores(measure([Case(recipe, setting.run.device)], self.steps, say=setting.say)[0])
        except Unmeasured as error:
            raise ValueError(f"{error}; if memory was short: cost.batch={max(1, self.batch // 2)}") from error


def scores(cost: Cost) -> list[Score]:
    """Time, images, memory and operations of a step, then the share of each part in percent, and data's beside it."""
    memory = "peak resident" if cost.cuda_allocated_mb is None else "peak allocated on the device"
    rows: list[tuple[str, float, str, str]] = [
        ("step time", cost.step_time_median_s, "s", WORDS),
        ("images", cost.images_per_s, "images/s", "of that step time"),
        ("memory", cost.memory_mb, "MB", memory),
        ("operations", cost.flops_per_step / 1e9, "GFLOP/step", "matrix products and convolutions; attention counts"),
    ]
    if cost.cuda_reserved_mb is not None:
        rows.append(("memory, reserved", cost.cuda_reserved_mb, "MB", "peak reserved on the device"))
    rows += [(f"share of {part}", 100 * cost.shares[part], "%", what) for part, what in SHARES.items()]
    rows.append(
        ("data", 100 * cost.data_share, "%", "time to make the batch, on one thread beside the step, over the step's")
    )
    how = f"batch {cost.batch}, {cost.dtype}, {cost.device}, {cost.threads} threads, {cost.clean_steps} of {cost.steps}"
    return [
        Score("cost", name, value, unit, None, f"{what}; {how} steps undisturbed") for name, value, unit, what in rows
    ]
