"""A sweep: one file of runs that answer one question, trained and measured one after the other or side by side.

Any number of processes may work on the same sweep, on any machines that see its folder: each takes the next run that no other
holds. What is done is kept in results.jsonl beside the file and never done again.
"""

from __future__ import annotations

import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from . import weights
from .engine.folder import only_writer
from .engine.run import Run
from .evaluation import PROTOCOLS, protocol_of
from .evaluation.protocol import Protocol, Setting, Subject, explained, keep
from .evaluation.score import mean_over_seeds
from .evaluation.supervised import Preempted
from .plain import read_yaml
from .recipe import Recipe, load
from .schedule import Frozen
from .training import build, train_recipe

RESULTS = "results.jsonl"
Say = Callable[[str], None]


class Cell(Frozen):
    """One run. recipe, changes: what to train, beside the sweep's own.  measure: instead of the sweep's own tasks.
    untrained: measure the start values.  paper: what the paper has for it, by what it measured."""

    recipe: str = ""
    changes: tuple[str, ...] = ()
    measure: tuple[str, ...] = ()
    untrained: bool = False
    paper: Mapping[str, float] = Field(default_factory=dict)


class Command(Frozen):
    """`unimim ARGUMENTS --out FOLDER` (or `python ARGUMENTS --out FOLDER`), once: teachers that runs learn from."""

    out: str
    arguments: str
    program: Literal["unimim", "python"] = "unimim"


class Sweep(Frozen):
    """question: in words.  data: of every run.  recipe, changes: what runs have in common.  seeds: how many.
    runs: by name.  grid: beside them, one run for each combination of one {label: change} from every mapping.
    prepare: commands to run first.  measure: tasks with their changes, "finetune finetune.epochs=5".
    show: patterns of "task/metric" for the columns of the table, all if empty.
    primary: the column by which runs are compared with the paper's `against`.

    {out} in changes, measure and arguments stands for the folder of the runs, {data} for the data.
    """

    question: str
    data: str
    recipe: str = ""
    changes: tuple[str, ...] = ()
    seeds: int = Field(1, ge=1, le=1000)
    prepare: tuple[Command, ...] = ()
    runs: Mapping[str, Cell] = Field(default_factory=dict)
    grid: tuple[Mapping[str, str], ...] = ()
    measure: tuple[str, ...] = ("linear",)
    show: tuple[str, ...] = ()
    primary: str = "linear/top-1"
    against: str = ""

    def cells(self) -> dict[str, Cell]:
        made = {}
        for labels in product(*self.grid) if self.grid else ():
            changes = tuple(mapping[label] for mapping, label in zip(self.grid, labels, strict=True))
            made[", ".join(labels)] = Cell(changes=changes)
        return {**made, **{name: cell for name, cell in self.runs.items() if name not in made}} | {
            name: made[name].model_copy(update={"paper": cell.paper})
            for name, cell in self.runs.items()
            if name in made
        }


def read(path: Path) -> Sweep:
    """The sweep of a YAML file. ValueError that names the fields at fault."""
    if not path.is_file():
        raise ValueError(f"no file {path}")
    try:
        return Sweep.model_validate(read_yaml(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise ValueError(f"{path}: " + "\n".join(explained(error, Sweep))) from None


@dataclass(frozen=True)
class Task:
    """One run of a sweep with one seed, ready to be trained and measured."""

    name: str
    recipe: Recipe
    untrained: bool
    protocols: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def key(self) -> str:
        """Its recipe's hash; for start values marked as such."""
        return f"{self.recipe.hash}{'-untrained' if self.untrained else ''}"


@dataclass(frozen=True)
class Sweeping:
    """A sweep with the folder of its runs.  data: where its images are here.  images: their fingerprint."""

    file: Path
    sweep: Sweep
    out: Path
    run: Run
    data: str
    images: str
    cached: bool
    opened: dict[Any, Any] = field(default_factory=dict, compare=False)

    @property
    def results(self) -> Path:
        return self.file.with_name(RESULTS)

    def rows(self) -> list[dict[str, Any]]:
        """The scores so far on these images, each with what it is of; a line that was cut short is left out."""
        text = self.results.read_text(encoding="utf-8") if self.results.exists() else ""
        found = [json.loads(line) for line in text.splitlines() if line.endswith("]}")]
        mine = [row for row in found if row["images"] == self.images]
        return [{**row, **score} for row in mine for score in row["scores"]]

    def add(self, row: Mapping[str, Any]) -> None:
        """One measurement, as a line of its own even after one that was cut short."""
        with self.results.open("a+b") as file:
            file.seek(max(0, file.tell() - 1))
            start = b"" if file.read(1) in (b"", b"\n") else b"\n"
            file.write(start + json.dumps(row).encode() + b"\n")

    def fill(self, text: str) -> str:
        return text.replace("{out}", str(self.out)).replace("{data}", self.data)

    def tasks(self) -> list[Task]:
        """Every run with every seed, seeds outermost. ValueError that lists every run that is wrong."""
        sweep, found, problems = self.sweep, [], []
        for seed in range(sweep.seeds):
            for name, cell in sweep.cells().items():
                changes = [self.fill(change) for change in (*sweep.changes, *cell.changes)]
                measures = [shlex.split(self.fill(text)) for text in cell.measure or sweep.measure]
                try:
                    recipe = load(cell.recipe or sweep.recipe, [*changes, f"seed={seed}"])
                    recipe = recipe.model_copy(update={"title": name})
                    protocols = tuple((words[0], tuple(words[1:])) for words in measures)
                    for task, own in protocols:
                        chosen(recipe, task, own)
                except ValueError as error:
                    problems.append(f"{name}: {error}")
                    continue
                found.append(Task(name, recipe, cell.untrained, protocols))
        if problems:
            raise ValueError(f"{self.file}: " + "\n".join(dict.fromkeys(problems)))
        return found

    def done(self, task: Task) -> bool:
        """Whether every measurement of `task` stands in the results."""
        have = {(row["key"], row["measure"]) for row in self.rows()}
        return all((task.key, " ".join((name, *own))) in have for name, own in task.protocols)


def chosen(recipe: Recipe, task: str, changes: Sequence[str]) -> Protocol:
    """The protocol of "task" with changes "task.key=value". ValueError for an unknown task or setting."""
    if task not in PROTOCOLS:
        raise ValueError(f"measure: unknown task {task!r}; tasks: {', '.join(PROTOCOLS)}")
    wrong = [change for change in changes if not change.startswith(f"{task}.")]
    if wrong:
        raise ValueError(f"measure: {wrong[0]!r} does not begin with {task}.")
    return protocol_of(task).of(recipe, tuple(change.removeprefix(f"{task}.") for change in changes))


def work(sweeping: Sweeping, say: Say) -> list[str]:
    """Do every run that is neither done nor held by another process; the reasons of those that failed.

    KeyboardInterrupt when a run was stopped on request.
    """
    prepare(sweeping, say)
    tasks, failed = sweeping.tasks(), []
    for number, task in enumerate(tasks, 1):
        if sweeping.done(task):
            continue
        folder = sweeping.out / f"{task.recipe.name}-{task.key}"  # shared by sweeps that have the same run
        try:
            with only_writer(folder / "sweep"):
                say(f"{number} of {len(tasks)}: {task.name}, seed {task.recipe.seed}")
                _do(sweeping, task, folder, say)
        except ValueError as error:
            if "is being written by" in str(error):
                continue
            failed.append(f"{task.name}: {error}")
            say(f"{task.name} is left out: {error}")
    return failed


def prepare(sweeping: Sweeping, say: Say) -> None:
    """Run the sweep's commands that have not been run yet. ValueError when one fails."""
    for command in sweeping.sweep.prepare:
        folder = Path(sweeping.fill(command.out))
        with only_writer(folder.with_name(f".{folder.name}.sweep")):
            mark = folder.with_name(f".{folder.name}.prepared")
            if mark.exists():
                continue
            words = [*shlex.split(sweeping.fill(command.arguments)), "--out", str(folder)]
            told = f"{command.program} {shlex.join(words)}"
            say(f"preparing {folder}: {told}")
            program = [sys.executable, *(["-m", "unimim"] if command.program == "unimim" else [])]
            done = subprocess.run([*program, *words], check=False, stdout=subprocess.DEVNULL)
            if done.returncode:
                raise ValueError(f"{told} ended with exit code {done.returncode}")
            mark.touch()


def _do(sweeping: Sweeping, task: Task, folder: Path, say: Say) -> None:
    if task.untrained:
        if not (folder / "weights" / weights.RECIPE).is_file():
            weights.save(build(task.recipe), folder / "weights")
    else:
        run = sweeping.run.model_copy(update={"out": folder})
        outcome = train_recipe(task.recipe, sweeping.data, run, sweeping.cached, quiet=True)
        if outcome.status != "done":
            raise KeyboardInterrupt
    student = weights.load_student(folder / "weights").eval()
    subject = Subject(folder, folder / "weights", task.recipe, student)
    setting = Setting(sweeping.data, sweeping.run, sweeping.cached, None, say, opened=sweeping.opened)
    have = {(row["key"], row["measure"]) for row in sweeping.rows()}
    for name, own in task.protocols:
        measure, measured = " ".join((name, *own)), chosen(task.recipe, name, own)
        known = (task.key, measure) in have
        if known and not measured.trains:  # what is trained is there already, and later measurements may ask for it
            continue
        measured.check(subject, setting)
        try:
            scores = measured.measure(subject, setting)
        except Preempted:
            raise KeyboardInterrupt from None
        if known:
            continue
        keep(subject, measured, scores, {"data": sweeping.data, "fingerprint": sweeping.images})
        about = {"run": task.name, "key": task.key, "seed": task.recipe.seed, "measure": measure}
        sweeping.add({**about, "images": sweeping.images, "scores": [score.data() for score in scores]})


@dataclass(frozen=True)
class Column:
    """One measured quantity of every run: {run: the values of its seeds} and {run: interval}, the latter for one seed."""

    title: str
    unit: str
    values: Mapping[str, Sequence[float]]
    intervals: Mapping[str, tuple[float, float]]

    def mean(self, run: str) -> float:
        return statistics.fmean(self.values[run])

    def cell(self, run: str) -> str:
        """The value; with several seeds their mean and its 95 % interval, with one that of the test images."""
        own = self.values.get(run, ())
        if not own:
            return ""
        if len(own) > 1:
            score = mean_over_seeds("", own, "", "")
            assert score.interval
            return f"{score.value:.1f} ({score.interval[0]:.1f} to {score.interval[1]:.1f})"
        known = self.intervals.get(run)
        return f"{own[0]:.4g}" + (f" ({known[0]:.1f} to {known[1]:.1f})" if known else "")


def columns(sweep: Sweep, found: Sequence[Mapping[str, Any]]) -> list[Column]:
    """What was measured, in the order of the results; runs that the sweep no longer has are left out."""
    names, made = sweep.cells(), []
    for title in dict.fromkeys(f"{row['task']}/{row['metric']}" for row in found):
        own = [row for row in found if f"{row['task']}/{row['metric']}" == title and row["run"] in names]
        values = {name: [row["value"] for row in own if row["run"] == name] for name in names}
        intervals = {row["run"]: tuple(row["interval"]) for row in own if row["interval"]}
        made.append(Column(title, own[0]["unit"] if own else "", {n: v for n, v in values.items() if v}, intervals))
    return made


def table(sweep: Sweep, found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Header and a row for each run: the columns to show of what was measured here, then what the paper has."""
    cells, shown = sweep.cells(), sweep.show or ("*",)
    measured = [column for column in columns(sweep, found) if any(fnmatchcase(column.title, name) for name in shown)]
    published = list(dict.fromkeys(name for cell in cells.values() for name in cell.paper))
    head = ["run", *(f"{column.title} {column.unit}" for column in measured), *(f"paper: {name}" for name in published)]
    body = [
        [
            name,
            *(column.cell(name) for column in measured),
            *(f"{cell.paper[p]:g}" if p in cell.paper else "" for p in published),
        ]
        for name, cell in cells.items()
    ]
    return [head, *body]


def ordering(sweep: Sweep, found: Sequence[Mapping[str, Any]]) -> str:
    """Whether the paper's order held, in a sentence; "" if the sweep does not ask, or has too little."""
    column = next((column for column in columns(sweep, found) if column.title == sweep.primary), None)
    paper = {name: cell.paper[sweep.against] for name, cell in sweep.cells().items() if sweep.against in cell.paper}
    if column is None or not sweep.against:
        return ""
    alike, pairs = agreement({name: column.mean(name) for name in column.values}, paper)
    return (
        f"{alike} of {pairs} pairs stand in the paper's order ({sweep.primary} here, {sweep.against} there)"
        if pairs
        else ""
    )


def agreement(mine: Mapping[str, float], paper: Mapping[str, float]) -> tuple[int, int]:
    """(pairs that both order alike, pairs that the paper orders) of the runs that both have."""
    names = [name for name in mine if name in paper]
    pairs = [(a, b) for place, a in enumerate(names) for b in names[place + 1 :] if paper[a] != paper[b]]
    alike = [(a, b) for a, b in pairs if (mine[a] - mine[b]) * (paper[a] - paper[b]) > 0]
    return len(alike), len(pairs)
