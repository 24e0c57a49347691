"""Several recipes on the same data with the same budget and seeds, compared in one table and one page."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from . import runs, weights
from .engine.data.sources import ImageSource, in_memory, open_source
from .engine.guard import NonFinite
from .engine.run import Run
from .evaluation.probes import Probes, Results
from .evaluation.sources import spread
from .recipe import Recipe
from .report import data as report
from .report import html
from .training import build_student, data_record, held, train_recipe

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
        budget=runs.budget(comparison.recipes, comparison.seeds),
        environment=runs.environment(folder for _, folder in comparison.variants()),
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
        scores += runs.reported(probes.student(variant.hash, recipe.name, variant, make), variant.seed)
    folders = [folder for _, folder in variants]
    panels = runs.panels(weights.load(folders[0] / "weights"), probes.test)
    return runs.entry(recipe, folders, scores, panels)


def _baselines(comparison: Comparison, probes: Probes) -> list[report.Entry]:
    """Each distinct student with its start values, and the pixels themselves."""
    entries = []
    for recipe in {recipe.student: recipe for recipe in reversed(comparison.recipes)}.values():
        name = f"random student ({recipe.name})"
        found = probes.student(f"random-{recipe.hash}", name, recipe, partial(build_student, recipe))
        entries.append(report.Entry(name, name, kind="random", scores=tuple(runs.reported(found, recipe.seed))))
    found = probes.pixels(comparison.recipes[0].student.geometry.image)
    return [*entries, report.Entry("raw pixels", "Raw pixels", kind="pixels", scores=tuple(runs.reported(found, 0)))]


def _opened(comparison: Comparison, split: Any) -> ImageSource:
    source = open_source(comparison.data, split)
    if not source.classes:
        raise ValueError(
            f"{comparison.data} has no labels, which the probes need; put the images into folders by class"
        )
    return in_memory(source) if comparison.cached else source
