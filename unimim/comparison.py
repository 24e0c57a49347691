"""Several recipes on the same data with the same budget and seeds, compared in one table and one page."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import weights
from .engine.data.sources import ImageSource, in_memory, open_source
from .engine.loop import NonFinite
from .engine.run import Run
from .evaluation.features import Features, pixel_features, student_features
from .evaluation.gallery import gallery
from .evaluation.knn import knn
from .evaluation.linear import linear_probe
from .evaluation.score import Score
from .objective import Objective
from .provenance import source_of
from .recipe import Recipe, leaves
from .report import data as report
from .report import html
from .training import build, train_recipe

NUM_EXAMPLES = 8
"""Images in the gallery."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Comparison:
    """recipes: as named on the command line, each with its seeds' variants derived.  data: what `open_source` takes.

    run: how each is trained; its folder is replaced by one of each recipe's own.
    probe_images: at most so many training images for the probes (None: all), the same for every recipe.
    """

    recipes: tuple[Recipe, ...]
    data: str
    out: Path
    run: Run
    seeds: tuple[int, ...] = (0,)
    cached: bool = False
    probe_images: int | None = None
    command: str = ""

    def variants(self) -> list[tuple[Recipe, Path]]:
        """Every recipe with every seed, and its run folder."""
        pairs = [(recipe, seed) for seed in self.seeds for recipe in self.recipes]
        folder = self.out / "runs"
        return [
            (recipe.model_copy(update={"seed": seed}), folder / f"{recipe.name}-seed{seed}") for recipe, seed in pairs
        ]


def compare(comparison: Comparison, say: Say = print) -> report.Report:
    """Train what is not yet trained, evaluate what is not yet evaluated, and write results.jsonl and report.html.

    A recipe that cannot be trained is skipped with its reason, the others go on. KeyboardInterrupt and a preempted run
    end it; the same call continues.
    """
    results, skipped = Results(comparison.out / "results.jsonl"), {}
    for recipe, folder in comparison.variants():
        done = folder / "weights"
        if (done / weights.RECIPE).is_file() and weights.read_recipe(done).hash == recipe.hash:
            continue
        say(f"training {recipe.name}, seed {recipe.seed}")
        run = comparison.run.model_copy(update={"out": folder})
        try:
            outcome = train_recipe(recipe, comparison.data, run, comparison.cached)
        except (ValueError, NonFinite) as error:
            say(f"{recipe.name} is left out: {error}")
            skipped[recipe.name] = str(error)
            continue
        if outcome.status != "done":
            raise KeyboardInterrupt
    probes = Probes(comparison, results, say)
    entries = [probes.entry(recipe) for recipe in comparison.recipes if recipe.name not in skipped]
    page = report.Report(
        title="Masked image modeling, compared",
        command=comparison.command,
        created=time.strftime("%Y-%m-%d %H:%M"),
        data=f"{comparison.data}: {len(probes.train)} training images for the probes, {len(probes.test)} test images",
        budget=_budget(comparison),
        environment=_environment(comparison),
        entries=(*entries, *probes.baselines()),
        skipped=tuple(report.Skipped(name, reason) for name, reason in skipped.items()),
    )
    html.write(page, comparison.out / "report.html")
    return page


class Results:
    """results.jsonl: one score a line, keyed by what was evaluated."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def find(self, key: str) -> list[Score]:
        rows = [{**row} for row in self.rows if row["key"] == key]
        fields = Score.__dataclass_fields__
        return [
            Score(**{name: row[name] for name in fields if name != "interval"}, interval=tuple(row["interval"]))
            for row in rows
        ]

    def add(self, key: str, scores: Sequence[Score], **about: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"key": key, **about, **score.data()} for score in scores]
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        self.rows += rows


class Probes:
    """k-NN and the linear probe, with one set of images and one feature function for all."""

    def __init__(self, comparison: Comparison, results: Results, say: Say) -> None:
        self.comparison, self.results, self.say = comparison, results, say
        self.train: ImageSource = Head(_opened(comparison, "train"), comparison.probe_images)
        self.test: ImageSource = _opened(comparison, "val")
        self.data = f"{self.train.fingerprint()}-{len(self.train)}-{self.test.fingerprint()}"

    def entry(self, recipe: Recipe) -> report.Entry:
        """Scores of all seeds; curves, cost and gallery of the first."""
        scores: list[report.Score] = []
        for variant, folder in self.comparison.variants():
            if variant.name == recipe.name:
                found = self.scores(variant.hash, recipe.name, variant.seed, partial(weights.load, folder / "weights"))
                scores += [_reported(score, variant.seed) for score in found]
        folder = next(folder for variant, folder in self.comparison.variants() if variant.name == recipe.name)
        objective = weights.load(folder / "weights")
        return report.Entry(
            name=recipe.name,
            title=recipe.title or recipe.name,
            axes=report.Axes(**recipe.axes()),
            scores=tuple(scores),
            curves=_curves(folder),
            cost=_cost(folder, recipe.batch),
            panels=self._panels(objective),
            warnings=_warnings(recipe, folder),
            config_yaml=recipe.model_copy(update={"provenance": {}}).yaml(),
            provenance=_provenance(recipe),
        )

    def baselines(self) -> list[report.Entry]:
        """Each distinct student with its start values, and the pixels themselves."""
        entries, seen = [], set()
        for recipe in self.comparison.recipes:
            if recipe.student in seen:
                continue
            seen.add(recipe.student)
            name = f"random student ({recipe.name})"
            found = self.scores(f"random-{recipe.hash}", name, recipe.seed, partial(build, recipe))
            entries.append(
                report.Entry(name, name, kind="random", scores=tuple(_reported(s, recipe.seed) for s in found))
            )
        size = self.comparison.recipes[0].student.geometry.image
        key = f"pixels-{size[0]}x{size[1]}"
        found = self._scores(key, "raw pixels", 0, lambda source: pixel_features(source, size))
        entries.append(
            report.Entry("raw pixels", "Raw pixels", kind="pixels", scores=tuple(_reported(s, 0) for s in found))
        )
        return entries

    def scores(self, key: str, name: str, seed: int, make: Callable[[], Objective]) -> list[Score]:
        student = None

        def features(source: ImageSource) -> Features:
            nonlocal student
            student = student or make().student
            return student_features(student, source, device=self.comparison.run.device)

        return self._scores(key, name, seed, features)

    def _scores(self, key: str, name: str, seed: int, features: Callable[[ImageSource], Features]) -> list[Score]:
        key = f"{key}-{self.data}"
        found = self.results.find(key)
        if not found:
            self.say(f"evaluating {name}, seed {seed}")
            train, test = features(self.train), features(self.test)
            found = [knn(train, test), linear_probe(train, test)]
            self.results.add(key, found, recipe=name, seed=seed)
        return found

    def _panels(self, objective: Objective) -> tuple[report.Panel, ...]:
        indices = [number * len(self.test) // NUM_EXAMPLES for number in range(NUM_EXAMPLES)]
        names = [self.test.classes[self.test.label(i)] if self.test.classes else self.test.name(i) for i in indices]
        return tuple(
            report.Panel(row.title, tuple(map(report.Picture, names, row.images)), row.note)
            for row in gallery(objective, self.test, indices)
        )


class Head:
    """At most `count` images of a source, evenly spread over it."""

    def __init__(self, source: ImageSource, count: int | None) -> None:
        self.source, self.classes = source, source.classes
        self.count = min(count or len(source), len(source))

    def __len__(self) -> int:
        return self.count

    def _place(self, index: int) -> int:
        return index * len(self.source) // self.count

    def name(self, index: int) -> str:
        return self.source.name(self._place(index))

    def read(self, index: int) -> torch.Tensor:
        return self.source.read(self._place(index))

    def label(self, index: int) -> int:
        return self.source.label(self._place(index))

    def fingerprint(self) -> str:
        return self.source.fingerprint()


def _opened(comparison: Comparison, split: Any) -> ImageSource:
    source = open_source(comparison.data, split)
    if not source.classes:
        raise ValueError(
            f"{comparison.data} has no labels, which the probes need; put the images into folders by class"
        )
    return in_memory(source) if comparison.cached else source


def _reported(score: Score, seed: int) -> report.Score:
    return report.Score(score.task, score.metric, score.value, score.unit, score.interval, score.protocol, seed)


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _curves(folder: Path) -> tuple[report.Curve, ...]:
    rows = _rows(folder)
    names = [name for name in rows[0] if name.startswith("loss")]
    steps = tuple(row["step"] for row in rows)
    return tuple(report.Curve(name, steps, tuple(row[name] for row in rows)) for name in names)


def _cost(folder: Path, batch: int) -> report.Cost:
    rows, record = _rows(folder), json.loads((folder / "run.json").read_text(encoding="utf-8"))
    seconds = sum(row["seconds"] for row in rows)
    seen = rows[-1]["step"] * batch
    return report.Cost(record["seconds"], seen / seconds, max(row["memory_mb"] for row in rows), rows[-1]["step"], seen)


def _warnings(recipe: Recipe, folder: Path) -> tuple[str, ...]:
    found = []
    skipped = folder / "skipped_images.txt"
    if skipped.exists():
        lines = skipped.read_text(encoding="utf-8").splitlines()
        found.append(f"{len(set(lines))} unreadable images were replaced, e.g. {lines[0]}")
    if recipe.status == "unverified":
        found.append("not verified against official code")
    return tuple(found)


def _provenance(recipe: Recipe) -> tuple[report.Provenance, ...]:
    return tuple(
        report.Provenance(path, str(value), source_of(path, recipe.provenance)) for path, value in leaves(recipe)
    )


def _budget(comparison: Comparison) -> str:
    first = comparison.recipes[0]
    epochs = {recipe.epochs for recipe in comparison.recipes}
    spoken = f"{first.epochs:g} epochs" if len(epochs) == 1 else f"{min(epochs):g} to {max(epochs):g} epochs"
    batches = "/".join(str(batch) for batch in sorted({recipe.batch for recipe in comparison.recipes}))
    return f"{spoken} in batches of {batches}, seeds {', '.join(map(str, comparison.seeds))}"


def _environment(comparison: Comparison) -> dict[str, str]:
    path = next((folder / "run.json" for _, folder in comparison.variants() if (folder / "run.json").exists()), None)
    record = json.loads(path.read_text(encoding="utf-8")) if path else {"versions": {}, "hardware": {}}
    return {**record["versions"], **record["hardware"], "threads": str(torch.get_num_threads())}
