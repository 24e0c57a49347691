"""Commands that train: train and compare."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import remark, say, show_card, show_table
from .errors import INTERRUPTED, Failed, Interrupted, Problems, run_errors
from .inputs import (
    Data,
    Device,
    DryRun,
    Job,
    ProbeImages,
    changes_of,
    check_out,
    make_job,
    open_data,
    read_recipe,
    refuse_torchrun,
    run_options,
    split_changes,
)

if TYPE_CHECKING:
    from ..comparison import Comparison
    from ..recipe import Recipe
    from ..report.data import Report

Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Required: the folder to write, or to go on with.", show_default=False),
]
Procs = Annotated[int, typer.Option(metavar="N", help="Processes on this machine, e.g. one a GPU.")]
MicroBatch = Annotated[
    int | None, typer.Option(metavar="N", help="Images a process takes at once.", show_default="its whole share")
]
Workers = Annotated[int | None, typer.Option(metavar="N", help="Loader processes for each process.", show_default="1")]
Compile = Annotated[bool, typer.Option("--compile", help="torch.compile the blocks.")]
InMemory = Annotated[bool, typer.Option("--in-memory", help="Decode every image once and keep it.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad-images", help="Replace unreadable images and list them.")]
LogEvery = Annotated[int | None, typer.Option(metavar="N", help="Steps between log lines.", show_default="20")]
Minutes = Annotated[float | None, typer.Option(metavar="X", help="Minutes between checkpoints.", show_default="10")]

Loggers = Annotated[
    list[str] | None,
    typer.Option("--logger", metavar="NAME", help="Also log there: see unimim list loggers.", show_default=False),
]

AGAIN = "the same command goes on from there"
FROM_LAST = "the same command goes on from the last checkpoint"
MAX_SEEDS = 1000


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A name from unimim list recipes, or a YAML file.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Changes, e.g. loss=l1 epochs=5 run.parallel=fsdp.", show_default=False
        ),
    ] = None,
    data: Data = "",
    out: Out = None,
    procs: Procs = 1,
    micro_batch: MicroBatch = None,
    workers: Workers = None,
    device: Device = None,
    compile_blocks: Compile = False,
    in_memory: InMemory = False,
    skip_bad_images: SkipBad = False,
    log_every: LogEvery = None,
    checkpoint_minutes: Minutes = None,
    logger: Loggers = None,
    allow_changed: Annotated[
        str,
        typer.Option(
            metavar="PATH,...",
            help="Fields that may differ from the run in --out; theirs is the new value.",
            show_default=False,
        ),
    ] = "",
    dry_run: DryRun = False,
) -> None:
    """Train one recipe, or go on where it was stopped.

    The same command goes on with a run that was stopped.
    Exit code 0: done; 1: failed; 2: the command is wrong; 75: stopped on request.
    """
    from ..engine.slurm import join_slurm

    join_slurm()
    problems = Problems()
    if procs > 1 and "WORLD_SIZE" in os.environ:
        problems.add("--procs: torchrun has started the processes already; leave it out")
    changes, of_run = split_changes(changes or [])
    found = read_recipe(problems, recipe, changes)
    source = open_data(problems, data, "train")
    check_out(problems, out)
    options: dict[str, Any] = {"micro_batch": micro_batch, "workers": workers, "device": device}
    options |= {"log_every": log_every, "checkpoint_minutes": checkpoint_minutes, "loggers": tuple(logger or ())}
    run = run_options(problems, out, procs, of_run, compile=compile_blocks, skip_bad_images=skip_bad_images, **options)
    allowed = [path.strip() for path in allow_changed.split(",") if path.strip()]
    job = None
    if found and source and run and out:
        job = make_job(problems, found, data, source, run, int(os.environ.get("WORLD_SIZE", max(procs, 1))), allowed)
    problems.refuse()
    assert job is not None
    if dry_run:
        _show_plan([job])
    elif job.done:
        _finished(job, f"already trained, {job.plan.total_steps} steps")
    elif procs > 1:
        launch_processes(procs, sys.argv[1:])
    else:
        _train(job, in_memory, allowed)


def _train(job: Job, in_memory: bool, allowed: Sequence[str]) -> None:
    from ..training import train_recipe

    try:
        with run_errors(f"what is saved in {job.run.out} stays; {AGAIN}"):
            outcome = train_recipe(job.recipe, job.data, job.run, in_memory, allowed=allowed)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped at once; {FROM_LAST}") from None
    if outcome.status == "preempted":  # the log has said so
        raise typer.Exit(INTERRUPTED)
    if os.environ.get("RANK", "0") == "0":
        _finished(job, f"trained {outcome.step} steps")


def _finished(job: Job, what: str) -> None:
    weights = job.run.out / "weights"
    say(f"{what}: {weights}", "green")
    say(f"next: {shlex.join(['unimim', 'eval', str(job.run.out), '--data', job.data])}")


def launch_processes(procs: int, arguments: Sequence[str]) -> None:
    """This command in `procs` processes. Each says itself what went wrong; the agent's own log would only repeat it."""
    import logging

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from ..engine.distributed import launch

    logging.disable(logging.CRITICAL)
    try:
        launch(procs, without(arguments, "--procs"))
    except SignalException:
        raise Interrupted(f"stopped; {FROM_LAST}") from None
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        killed = [f"process {rank} was ended by signal {-code}" for rank, code in codes.items() if code < 0]
        if killed and max(codes.values()) < 0:
            raise Failed(f"{', '.join(killed)}; {FROM_LAST}") from None
        raise typer.Exit(INTERRUPTED if INTERRUPTED in codes.values() else max(codes.values())) from None


def without(arguments: Sequence[str], option: str) -> list[str]:
    """`arguments` without `option VALUE` and `option=VALUE`."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument != option and not argument.startswith(f"{option}="):
            kept.append(argument)
        skip = not skip and argument == option
    return kept


def compare(
    words: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE|KEY=VALUE", help="Recipes; changes for all, or for one as RECIPE:KEY=VALUE."),
    ],
    data: Data = "",
    out: Out = None,
    seeds: Annotated[str, typer.Option(metavar="S", help="How many (3: 0, 1 and 2), or which (0,4,7).")] = "1",
    probe_images: ProbeImages = None,
    micro_batch: MicroBatch = None,
    workers: Workers = None,
    device: Device = None,
    compile_blocks: Compile = False,
    in_memory: InMemory = False,
    skip_bad_images: SkipBad = False,
    log_every: LogEvery = None,
    checkpoint_minutes: Minutes = None,
    logger: Loggers = None,
    dry_run: DryRun = False,
) -> None:
    """Train several recipes alike, score them alike, and report.

    All see the same data and get the same seeds. Writes report.html.
    The same command goes on with a comparison that was stopped.
    """
    from ..comparison import Comparison

    problems = Problems()
    refuse_torchrun(problems, "compare")
    words, of_run = split_changes(words)
    recipes = _recipes(problems, words)
    numbers = _seeds(problems, seeds)
    source = open_data(problems, data, "train", labelled=True)
    test = open_data(problems, data, "val", labelled=True) if source else None
    check_out(problems, out)
    options: dict[str, Any] = {"micro_batch": micro_batch, "workers": workers, "device": device}
    options |= {"log_every": log_every, "checkpoint_minutes": checkpoint_minutes, "loggers": tuple(logger or ())}
    run = run_options(problems, out, 1, of_run, compile=compile_blocks, skip_bad_images=skip_bad_images, **options)
    if not (recipes and numbers and source and test and run and out):
        problems.refuse()
        return
    command = shlex.join(["unimim", *sys.argv[1:]])
    comparison = Comparison(tuple(recipes), data, out, run, numbers, in_memory, probe_images, command)
    runs = [(recipe, run.model_copy(update={"out": folder})) for recipe, folder in comparison.variants()]
    jobs = [make_job(problems, recipe, data, source, variant) for recipe, variant in runs]
    problems.refuse()
    if dry_run:
        _show_plan([job for job in jobs if job])
        probed = min(probe_images or len(source), len(source))
        say(f"then k-NN and linear probes on {probed} training images and {len(test)} test images")
    else:
        _compare(comparison)


def _compare(comparison: Comparison) -> None:
    from ..comparison import compare
    from ..report.tables import leaderboard

    try:
        with run_errors(f"what is done in {comparison.out} stays; {AGAIN}"):
            page: Report = compare(comparison, remark)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {AGAIN}") from None
    show_table(leaderboard(page))
    say(f"report: {comparison.out / 'report.html'}", "green")
    if not page.recipes:
        raise Failed("no recipe could be trained; the reasons stand above and in the report")


def _recipes(problems: Problems, words: Sequence[str]) -> list[Recipe]:
    """The recipes of a comparison, each with the changes for all and its own."""
    seeds = [word for word in words if word.partition("=")[0].rpartition(":")[2] == "seed"]
    problems.found += [f"{word}: the seeds of a comparison are given by --seeds" for word in seeds]
    own = changes_of(problems, [word for word in words if word not in seeds])
    names = [word for word in words if word in own]
    if not names:
        problems.add("no recipe to compare; unimim list recipes shows their names")
    found = [recipe for name in dict.fromkeys(names) if (recipe := read_recipe(problems, name, own[name]))]
    called = [recipe.name for recipe in found]
    for name in dict.fromkeys([*names, *called]):
        if called.count(name) > 1 or names.count(name) > 1:
            hint = f"unimim show {name} loss=l1 name=mine > mine.yaml"
            problems.add(f"{name!r} is compared twice; save a variant under a name: {hint}")
    return found


def _seeds(problems: Problems, text: str) -> tuple[int, ...]:
    """ "3" is 0, 1, 2; "0,4,7" is just these."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    numbers = [int(part) for part in parts if part.isdecimal() and len(part) <= 10]
    if not parts or len(set(numbers)) < len(parts) or max(numbers) >= 2**32:
        problems.add(f"--seeds: {text!r:.80} is neither a count, like 3, nor a list of different seeds, like 0,1,2")
        return ()
    if "," not in text and not 1 <= numbers[0] <= MAX_SEEDS:
        problems.add(f"--seeds: 1 to {MAX_SEEDS}; a list, like 0,1,2, names them")
        return ()
    return tuple(numbers) if "," in text else tuple(range(numbers[0]))


def _show_plan(jobs: Sequence[Job]) -> None:
    """Every job, its teacher loaded once to know that it can be."""
    from ..training import build

    problems = Problems()
    seen: dict[str, list[tuple[str, str]]] = {}
    for job in jobs:
        if job.recipe.name not in seen:
            with problems.of(job.recipe.name), run_errors("a smaller student or more memory is needed"):
                seen[job.recipe.name] = _sizes(build(job.recipe))
    problems.refuse()
    for number, job in enumerate(jobs):
        show_card([*job.rows(), *seen[job.recipe.name], ("seed", str(job.recipe.seed))])
        if job.recipe.name not in [other.recipe.name for other in jobs[:number]]:
            say(job.recipe.model_copy(update={"provenance": {}}).yaml(), "dim")
    say("dry run: nothing was started", "green")


def _sizes(objective: Any) -> list[tuple[str, str]]:
    def millions(module: Any) -> str:
        return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.2f} M"

    parts = {"student": objective.student, "head": objective.branches, "teacher": objective.teachers}
    return [("parameters", ", ".join(f"{name} {millions(module)}" for name, module in parts.items()))]
