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
from .evaluation.gallery import gallery
from .evaluation.probes import Probes, Results
from .evaluation.score import Score
from .evaluation.sources import spread
from .objective import Objective
from .provenance import source_of
from .recipe import Recipe, leaves
from .report import data as report
from .report import html
from .training import build_student, data_record, held, train_recipe

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
    images = data_record(comparison.data, open_source(comparison.data, "train"))
    for recipe, folder in comparison.variants():
        if held(folder, recipe.data(), images).get("status") == "done":
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
    train, test = spread(_opened(comparison, "train"), comparison.probe_images), _opened(comparison, "val")
    probes = Probes(train, test, results, comparison.run.device, say)
    entries = [_entry(comparison, recipe, probes) for recipe in comparison.recipes if recipe.name not in skipped]
    page = report.Report(
        title="Masked image modeling, compared",
        command=comparison.command,
        created=time.strftime("%Y-%m-%d %H:%M"),
        data=f"{comparison.data}: {len(train)} training images for the probes, {len(test)} test images",
        budget=_budget(comparison),
        environment=_environment(comparison),
        entries=(*entries, *_baselines(comparison, probes)),
        skipped=tuple(report.Skipped(name, reason) for name, reason in skipped.items()),
    )
    html.write(page, comparison.out / "report.html")
    return page


def _entry(comparison: Comparison, recipe: Recipe, probes: Probes) -> report.Entry:
    """Scores of all seeds; curves, cost and gallery of the first."""
    variants = [(variant, folder) for variant, folder in comparison.variants() if variant.name == recipe.name]
    scores: list[report.Score] = []
    for variant, folder in variants:
        make = partial(weights.load_student, folder / "weights")
        scores += _reported(probes.student(variant.hash, recipe.name, variant, make), variant.seed)
    folder = variants[0][1]
    return report.Entry(
        name=recipe.name,
        title=recipe.title or recipe.name,
        axes=report.Axes(**recipe.axes()),
        scores=tuple(scores),
        curves=_curves(folder),
        cost=_cost(folder, recipe.batch),
        panels=_panels(weights.load(folder / "weights"), probes.test),
        warnings=_warnings(recipe, folder),
        config_yaml=recipe.model_copy(update={"provenance": {}}).yaml(),
        provenance=_provenance(recipe),
    )


def _baselines(comparison: Comparison, probes: Probes) -> list[report.Entry]:
    """Each distinct student with its start values, and the pixels themselves."""
    entries = []
    for recipe in {recipe.student: recipe for recipe in reversed(comparison.recipes)}.values():
        name = f"random student ({recipe.name})"
        found = probes.student(f"random-{recipe.hash}", name, recipe, partial(build_student, recipe))
        entries.append(report.Entry(name, name, kind="random", scores=tuple(_reported(found, recipe.seed))))
    found = probes.pixels(comparison.recipes[0].student.geometry.image)
    return [*entries, report.Entry("raw pixels", "Raw pixels", kind="pixels", scores=tuple(_reported(found, 0)))]


def _panels(objective: Objective, source: ImageSource) -> tuple[report.Panel, ...]:
    indices = spread(source, NUM_EXAMPLES).places
    names = [source.classes[source.label(i)] if source.classes else source.name(i) for i in indices]
    return tuple(
        report.Panel(row.title, tuple(map(report.Picture, names, row.images)), row.note)
        for row in gallery(objective, source, indices)
    )


def _opened(comparison: Comparison, split: Any) -> ImageSource:
    source = open_source(comparison.data, split)
    if not source.classes:
        raise ValueError(
            f"{comparison.data} has no labels, which the probes need; put the images into folders by class"
        )
    return in_memory(source) if comparison.cached else source


def _reported(scores: Sequence[Score], seed: int) -> list[report.Score]:
    return [report.Score(s.task, s.metric, s.value, s.unit, s.interval, s.protocol, seed) for s in scores]


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
        lines = skipped.read_text(encoding="utf-8").replace("\t", ": ").splitlines()
        found.append(f"{len(lines)} unreadable images were replaced, e.g. {lines[0]}")
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
