"""A recorded run done again: where does it first differ, and what differs around it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .drift import undone
from .engine.log import PACE
from .engine.run import Run
from .recipe import Recipe, load
from .training import environment, train_recipe
from .world import rank

MOST = 50
"""Steps that are repeated unless more are asked for."""


@dataclass(frozen=True)
class Difference:
    """The first column that differs, at the first logged step where one does."""

    step: int
    column: str
    recorded: float
    repeated: float

    @property
    def relative(self) -> float:
        """|recorded - repeated| / |recorded|; infinite where that is no number."""
        if not (math.isfinite(self.recorded) and math.isfinite(self.repeated) and self.recorded):
            return math.inf
        return abs(self.recorded - self.repeated) / abs(self.recorded)


@dataclass(frozen=True)
class Replay:
    """steps: how many were repeated and compared.  environment: `what: recorded -> now`.  difference: None if identical."""

    steps: int
    environment: tuple[str, ...]
    difference: Difference | None

    def data(self) -> dict[str, Any]:
        found = self.difference and {**asdict(self.difference), "relative": self.difference.relative}
        return {"steps": self.steps, "identical": found is None, "environment": self.environment, "difference": found}


@dataclass(frozen=True)
class Recorded:
    """A run as its folder tells it: run.json, and the lines of metrics.jsonl."""

    path: Path
    record: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    recipe: Recipe

    @classmethod
    def read(cls, path: Path) -> Recorded:
        """From run.json or its folder. Raises ValueError if that is not the record of a run, or nothing was logged."""
        path = path / "run.json" if path.is_dir() else path
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            lines = path.with_name("metrics.jsonl").read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines]
            recipe = undone(record["recipe"], record.get("changed", []))
            steps = [row["step"] for row in rows]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not the record of a run ({type(error).__name__}: {error})") from None
        if not steps:
            raise ValueError(f"{path.parent} has logged no step, so there is nothing to compare with")
        return cls(path, record, rows, load(recipe))

    def last(self, steps: int | None) -> int:
        """The last logged step up to `steps` (None: MOST) and before any change of the recipe; at least the first one."""
        limits = [steps or MOST, *(change["at_step"] for change in self.record.get("changed", []))]
        logged: list[int] = [row["step"] for row in self.rows]
        return max([step for step in logged if step <= min(limits)], default=logged[0])

    def run(self, out: Path, stop_after: int) -> Run:
        """The recorded Run, in another folder. Raises ValueError if its device is not here."""
        run = Run.model_validate({**self.record["run"], "out": out, "stop_after": stop_after})
        if run.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"{self.path} was recorded on {run.device}, and this machine has no CUDA device")
        return run


def replay(recorded: Recorded, out: Path, steps: int | None = None, data: str | None = None) -> Replay:
    """Train the recorded recipe again in `out`, a new folder, with the recorded Run and number of threads.

    data: where the images are now, if they have moved. Only rank 0 compares; the others report no difference.
    """
    spec, last = data or recorded.record["data"]["spec"], recorded.last(steps)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; a replay needs a folder of its own")
    run = recorded.run(out, last)
    torch.set_num_threads(recorded.record["threads"])
    train_recipe(recorded.recipe, spec, run, quiet=True)
    if rank() != 0:
        return Replay(last, (), None)
    now = json.loads((out / "run.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return Replay(last, tuple(environment(recorded.record, now)), first_difference(recorded.rows, rows))


def first_difference(recorded: Sequence[Mapping[str, Any]], repeated: Sequence[Mapping[str, Any]]) -> Difference | None:
    """Of two logs, over the steps and columns both have; how fast it went does not count. Two NaN are equal."""
    before = {row["step"]: row for row in recorded}
    for row in repeated:
        old = before.get(row["step"], {})
        for column in old:
            if column in PACE or column not in row:
                continue
            a, b = old[column], row[column]
            if a != b and not (math.isnan(a) and math.isnan(b)):
                return Difference(row["step"], column, a, b)
    return None
