"""The command that measures what was trained: eval."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..evaluation import PROTOCOLS, protocol_of
from ..registry import did_you_mean
from .console import emit, remark, say, show_card, show_table, table
from .errors import Interrupted, Problems, run_errors
from .inputs import Data, Device, DryRun, ProbeImages, open_data, refuse_torchrun, run_options, split_changes
from .listing import Json
from .running import AGAIN, InMemory, LogEvery, MicroBatch, Minutes, Procs, Workers, launch_processes

if TYPE_CHECKING:
    from ..evaluation.protocol import Protocol, Setting, Subject
    from ..evaluation.score import Score


def evaluate(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A weights folder, or the folder of a run that is done.")
    ],
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TASK.KEY=VALUE]...", help="Changes of a task's settings: finetune.epochs=5.", show_default=False
        ),
    ] = None,
    data: Data = "",
    task: Annotated[
        str, typer.Option(metavar="T", help=f"Measurements, separated by commas: {', '.join(PROTOCOLS)}.")
    ] = "knn,linear",
    momentum: Annotated[
        bool, typer.Option("--momentum", help="Measure the momentum copy instead of the student.")
    ] = False,
    probe_images: ProbeImages = None,
    block: Annotated[
        int | None, typer.Option(metavar="K", help="0-based block that probes read.", show_default="final norm")
    ] = None,
    pool: Annotated[
        str | None, typer.Option(metavar="P", help="What probes read: mean (of the patch tokens) or class (token).")
    ] = None,
    procs: Procs = 1,
    micro_batch: MicroBatch = None,
    workers: Workers = None,
    device: Device = None,
    in_memory: InMemory = False,
    log_every: LogEvery = None,
    checkpoint_minutes: Minutes = None,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Measure a trained student.

    Scores are appended to PATH/eval.jsonl. What a task trains is kept in PATH/eval, and the same command goes on there.
    """
    problems = Problems()
    changes, of_run = split_changes(changes or [])
    tasks = _tasks(problems, task)
    kinds = [protocol_of(name) for name in tasks]
    if procs > 1 or not all(kind.trains for kind in kinds):
        refuse_torchrun(problems, "eval" if procs == 1 else "--procs")
    if procs > 1 and not all(kind.trains for kind in kinds):
        several = ", ".join(name for name in PROTOCOLS if protocol_of(name).trains)
        problems.add(f"--procs: only {several} run in several processes")
    subject = _subject(problems, path, momentum)
    chosen = _chosen(problems, subject, tasks, changes, {"block": block, "pool": pool}) if subject else []
    images = _images(problems, data, kinds, probe_images)
    options: dict[str, Any] = {"micro_batch": micro_batch, "workers": workers, "log_every": log_every}
    options |= {"checkpoint_minutes": checkpoint_minutes, "device": device}
    run = run_options(problems, path, procs, of_run, **options)
    setting = _setting(data, run, in_memory, probe_images) if run and images is not None else None
    if subject and setting:
        for one in chosen:
            with problems.of():
                one.check(subject, setting)
    problems.refuse()
    assert subject
    assert setting
    assert images is not None
    if dry_run:
        rows: list[tuple[str, object]] = [("weights", subject.folder)]
        rows += [("recipe", f"{subject.recipe.name} ({subject.recipe.hash})")]
        rows += [(type(one).task, one.model_dump_json()) for one in chosen]
        show_card([*rows, *images.items(), ("device", setting.run.device)])
        say("dry run: nothing was started", "green")
    elif procs > 1:
        launch_processes(procs, sys.argv[1:])
    else:
        _measure(chosen, subject, setting, images, as_json)


def _measure(
    chosen: Sequence[Protocol], subject: Subject, setting: Setting, images: dict[str, Any], as_json: bool
) -> None:
    """Each score is kept as soon as it is there."""
    from ..engine.distributed import process_group
    from ..evaluation.protocol import keep
    from ..evaluation.supervised import Preempted

    first, scores = os.environ.get("RANK", "0") == "0", []
    try:
        # One group for all tasks: processes cannot meet twice in the same place.
        with run_errors(f"what is measured stays; {AGAIN}"), process_group(setting.run):
            for one in chosen:
                found = one.measure(subject, setting)
                if first:
                    keep(subject, one, found, images)
                scores += found
    except Preempted:
        raise Interrupted(f"stopped; {AGAIN}") from None
    if first and as_json:
        emit({"path": str(subject.home), **subject.about(), **images, "scores": [score.data() for score in scores]})
    elif first:
        _print(scores)
        shown = f"{images['test']} test images, {images['train']} training images; " if images else ""
        say(f"{shown}kept in {subject.home / 'eval.jsonl'}", "dim")


def _subject(problems: Problems, path: Path, momentum: bool) -> Subject | None:
    from .. import weights
    from ..evaluation.protocol import Subject

    with problems.of():
        folder = weights_folder(path)
        return Subject(
            path, folder, weights.read_recipe(folder), weights.load_student(folder, momentum).eval(), momentum
        )
    return None


def _images(
    problems: Problems, data: str, kinds: Sequence[type[Protocol]], probe_images: int | None
) -> dict[str, Any] | None:
    """What is told of --data; {} where no task reads it, None where it cannot be read."""
    if kinds and not any(kind.reads_data for kind in kinds):
        return {}
    labelled = any(kind.labelled and kind.reads_data for kind in kinds)
    train = open_data(problems, data, "train", labelled)
    test = open_data(problems, data, "val", labelled) if train else None
    if not train or not test:
        return None
    counts = {"train": min(len(train), probe_images or len(train)), "test": len(test)}
    return {"data": data, "fingerprint": test.fingerprint(), **counts}


def _setting(data: str, run: Any, in_memory: bool, probe_images: int | None) -> Setting:
    from ..evaluation.protocol import Setting

    return Setting(data, run, in_memory, probe_images, lambda text: remark(text, "dim"))


def _tasks(problems: Problems, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in (name for name in names if name not in PROTOCOLS):
        problems.add(f"--task: unknown task {name!r}{did_you_mean(name, PROTOCOLS)}; tasks: {', '.join(PROTOCOLS)}")
    return [name for name in dict.fromkeys(names) if name in PROTOCOLS]


def _chosen(
    problems: Problems, subject: Subject, tasks: Sequence[str], changes: Sequence[str], reading: dict[str, Any]
) -> list[Protocol]:
    """The settings of each task, with the changes that name it."""
    own: dict[str, list[str]] = {name: [] for name in tasks}
    for change in changes:
        name, dot, rest = change.partition(".")
        if dot and name in own:
            own[name].append(rest)
        else:
            problems.add(
                f"{change}: changes begin with a task of this command: {', '.join(f'{t}.KEY=VALUE' for t in tasks)}"
            )
    found = []
    for name in tasks:
        kind = protocol_of(name)
        read = [f"features.{key}={value}" for key, value in reading.items() if value is not None]
        with problems.of():
            found.append(kind.of(subject.recipe, (*(read if "features" in kind.model_fields else ()), *own[name])))
    return found


def weights_folder(path: Path) -> Path:
    """`path`, or the weights of the run that it holds. ValueError if there are none."""
    if (path / "weights").is_dir():
        return path / "weights"
    if (path / "run.json").is_file():
        raise ValueError(f"{path} holds a run that is not done and has no weights yet; give its train command again")
    if (path / "runs").is_dir():
        runs = ", ".join(str(run) for run in sorted((path / "runs").iterdir()))
        raise ValueError(f"{path} holds a comparison; give one of its runs: {runs}")
    if not path.is_dir():
        raise ValueError(f"no folder {path}")
    return path


def _print(scores: Sequence[Score]) -> None:
    rows = []
    for score in scores:
        known = f"{score.interval[0]:.1f} to {score.interval[1]:.1f}" if score.interval else ""
        rows.append((score.task, score.metric, f"{score.value:.4g} {score.unit}", known, score.protocol))
    show_table(table(["task", "metric", "value", "95 % interval", "protocol"], rows, fold="protocol"))
