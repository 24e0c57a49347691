"""What commands that train or evaluate are given: read, checked and described before anything starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..registry import did_you_mean, plugins
from .errors import Problems

if TYPE_CHECKING:
    from ..engine.data.sources import ImageSource
    from ..engine.run import Plan, Run
    from ..recipe import Recipe


Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="D",
        help="Required: a folder, a .zip, shards:DIR, torchvision:CIFAR10 or shapes.",
        show_default=False,
    ),
]
Device = Annotated[
    str | None, typer.Option(metavar="D", help="cpu, cuda, cuda:1.", show_default="cuda if there is one")
]
ProbeImages = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Training images for the probes.", show_default="all")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would be done, and stop.")]


def read_recipe(problems: Problems, name: str, assignments: Sequence[str]) -> Recipe | None:
    from ..recipe import load

    with problems.of():
        return load(name, assignments)
    return None


def changes_of(problems: Problems, words: Sequence[str]) -> dict[str, list[str]]:
    """{recipe: its changes}: KEY=VALUE is for all, RECIPE:KEY=VALUE for one."""
    assignments = [word for word in words if "=" in word and not Path(word).is_file()]
    own: dict[str, list[str]] = {word: [] for word in words if word not in assignments}
    for word in assignments:
        key, _, value = word.partition("=")
        name, colon, key = key.rpartition(":")
        if colon and name not in own:
            near = did_you_mean(name, own)
            problems.add(f"{word}: {name!r} is not among the recipes{near}; given: {', '.join(own)}")
        else:
            for each in [name] if colon else own:
                own[each].append(f"{key}={value}")
    return own


def open_data(
    problems: Problems, spec: str, split: Literal["train", "val"], labelled: bool = False
) -> ImageSource | None:
    """One split of --data; `labelled` for commands that need classes."""
    from ..engine.data.sources import open_source

    if not spec:
        problems.add("--data is missing: a folder of images, a .zip, torchvision:CIFAR10, or shapes")
        return None
    with problems.of("--data"):
        source = open_source(spec, split)
        if labelled and not source.classes:
            raise ValueError(f"{spec} has no labels, which the probes need; put the images into folders by class")
        return source
    return None


def check_out(problems: Problems, out: Path | None) -> None:
    """`out` was given, and is a folder that can be written or made."""
    if out is None:
        problems.add("--out is missing: the folder to write, new or of a run to go on with")
        return
    nearest = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        problems.add(f"--out: {nearest} is a file, not a folder")
    elif not os.access(nearest, os.W_OK | os.X_OK):
        problems.add(f"--out: cannot write to {nearest}")


def split_changes(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(changes of the recipe, run.KEY=VALUE changes of how it is run)."""
    of_run = [word for word in words if word.startswith("run.")]
    return [word for word in words if word not in of_run], of_run


def run_options(
    problems: Problems, out: Path | None, procs: int, changes: Sequence[str] = (), **options: Any
) -> Run | None:
    """The options as a Run, then run.KEY=VALUE; what neither gives keeps its default."""
    import torch
    from pydantic import ValidationError

    from ..engine.run import Run

    given = {name: value for name, value in options.items() if value is not None}
    for word in changes:
        key, _, text = word.removeprefix("run.").partition("=")
        if key == "out" or key not in Run.model_fields:
            problems.add(f"run.{key}: no such setting{did_you_mean(key, Run.model_fields)}")
        else:
            given[key] = None if text == "null" else text
    found = None
    try:
        found = Run(out=out or Path(), **given)
    except ValidationError as error:
        for item in error.errors():
            name = str(item["loc"][0]).replace("_", "-")
            problems.add(f"--{name}: {item['msg'][0].lower()}{item['msg'][1:]}, got {item['input']}")
    for name in found.loggers if found else ():
        with problems.of("--logger"):
            plugins()["loggers"][name]()
    if procs < 1:
        problems.add(f"--procs: at least 1, got {procs}")
    device = str(found.device if found else given.get("device", "cpu"))
    try:
        kind, count = torch.device(device).type, torch.cuda.device_count()
        if kind == "cuda" and count < procs:
            problems.add(f"--device: {procs} GPUs are needed, one for each process, but torch sees {count}")
    except RuntimeError:
        problems.add(f"--device: unknown device {device!r}; e.g. cpu, cuda, cuda:1")
    return found


def refuse_torchrun(problems: Problems, command: str) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        problems.add(f"{command} runs in one process; start it without torchrun")


@dataclass(frozen=True)
class Job:
    """One training as it would run: the recipe on the data, in `procs` processes, into the folder run.out."""

    recipe: Recipe
    data: str
    source: ImageSource
    run: Run
    plan: Plan
    procs: int
    before: dict[str, Any]

    @property
    def done(self) -> bool:
        from ..drift import differences

        same = bool(self.before) and not differences(self.before["recipe"], self.recipe.data())
        return same and self.before.get("status") == "done" and (self.run.out / "weights" / "recipe.yaml").is_file()

    def rows(self) -> list[tuple[str, str]]:
        """What it is and what it will do, with the arithmetic."""
        from ..engine.run import split

        plan, policy = self.plan, self.recipe.optimization
        micro, repeats = split(plan.batch, self.procs, self.run.micro_batch)
        rate = f"{policy.lr:g}"
        if policy.lr_per_256:
            rate += f" x {plan.batch} / 256 = {policy.peak(plan.batch):.4g}"
        warmup = round(policy.warmup_epochs * plan.steps_per_epoch)
        state = "done" if self.done else f"goes on from {self._step}" if self.before else "new"
        return [
            ("recipe", f"{self.recipe.name} ({self.recipe.hash})"),
            *((name, value) for name, value in self.recipe.axes().items()),
            ("data", f"{self.data}: {len(self.source)} training images"),
            ("steps", f"{self.recipe.epochs:g} epochs x {plan.steps_per_epoch} = {plan.total_steps}"),
            ("batch", f"{plan.batch} = {self.procs} process{'es' * (self.procs > 1)} x {micro} images x {repeats}"),
            ("rate", f"peak {rate}; {warmup} steps of warm-up, then a cosine to {policy.min_lr:g}"),
            ("device", f"{self.run.device}, {self.recipe.precision}"),
            ("out", f"{self.run.out} ({state})"),
        ]

    @property
    def _step(self) -> str:
        from ..training import last_step

        step = last_step(self.run.out)
        return f"step {step}" if step else "the start"


def make_job(
    problems: Problems,
    recipe: Recipe,
    data: str,
    source: ImageSource,
    run: Run,
    procs: int = 1,
    allowed: Sequence[str] = (),
) -> Job | None:
    """The job, if recipe, data, processes and folder go together."""
    from ..engine.run import split
    from ..training import data_record, held, plan_of

    before: dict[str, Any] = {}
    plan = None
    with problems.of("--procs, --micro-batch"):
        split(recipe.batch, procs, run.micro_batch)
    with problems.of(recipe.name):
        plan = plan_of(recipe, source)
    with problems.of("--out"):
        if run.out.exists():
            total_steps = plan.total_steps if plan else None
            before = held(run.out, recipe.data(), data_record(data, source), allowed, total_steps)
    return Job(recipe, data, source, run, plan, procs, before) if plan else None
