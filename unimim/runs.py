"""Run folders as entries of a report: scores, curves, cost, pictures, warnings and settings, read from their files."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from . import weights
from .engine.data.sources import ImageSource, open_source
from .engine.folder import read_status
from .evaluation.gallery import gallery
from .evaluation.score import Score, score_of
from .evaluation.sources import spread
from .objective import Objective
from .provenance import source_of
from .recipe import Recipe, leaves
from .report import data as report

NUM_EXAMPLES = 8
"""Images in the gallery."""


@dataclass(frozen=True)
class Trained:
    """One run: its folder, its recipe, run.json ({} for a weights folder), and the scores that were kept for it."""

    folder: Path
    recipe: Recipe
    record: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def weights(self) -> Path:
        return _weights(self.folder)


def rebuilt(paths: Sequence[Path], command: str, say: Callable[[str], None], pictures: bool = True) -> report.Report:
    """The report of run folders, weights folders and comparison folders, from their files alone: nothing is trained or scored.

    Runs that differ only in their seed become one entry. pictures: also make the gallery, which loads the weights.
    Raises ValueError, with every problem, if a path is none of these.
    """
    runs, floors = _found(paths)
    groups = _groups(runs)
    names = [group[0].recipe.name for group in groups]
    titles = [group[0].recipe.title or group[0].recipe.name for group in groups]
    entries = []
    for group in groups:
        first = group[0]
        suffix = f" ({first.folder.name})" if names.count(first.recipe.name) > 1 else ""
        title = first.recipe.title or first.recipe.name
        title += suffix if titles.count(title) > 1 else ""
        panels, problems = _gallery(first, say) if pictures else ((), [])
        scores = [score for run in group for score in _kept(run)]
        problems += [warning for run in group for warning in _doubts(run)]
        entries.append(
            entry(
                first.recipe, [run.folder for run in group], scores, panels, problems, first.recipe.name + suffix, title
            )
        )
    return report.Report(
        title="Masked image modeling, compared" if len(entries) > 1 else entries[0].title,
        command="\n".join([*dict.fromkeys(run.record["command"] for run in runs if run.record), command]),
        created=time.strftime("%Y-%m-%d %H:%M"),
        data=", ".join(dict.fromkeys(run.record["data"]["spec"] for run in runs if run.record)) or "not recorded",
        budget=budget([run.recipe for run in runs], sorted({run.recipe.seed for run in runs})),
        environment=environment([run.folder for run in runs]),
        entries=(*entries, *floors),
    )


def entry(
    recipe: Recipe,
    folders: Sequence[Path],
    scores: Iterable[report.Score],
    panels: tuple[report.Panel, ...] = (),
    problems: Sequence[str] = (),
    name: str = "",
    title: str = "",
) -> report.Entry:
    """One recipe: the scores of all its runs; curves and cost of the first.

    folders: of its runs, one a seed.  problems: warnings beside those in the folders.  name, title: instead of the recipe's,
    where several entries would have the same.
    """
    return report.Entry(
        name=name or recipe.name,
        title=title or recipe.title or recipe.name,
        axes=report.Axes(**recipe.axes()),
        scores=tuple(scores),
        curves=_curves(folders[0]),
        cost=_cost(folders[0], recipe.batch),
        panels=panels,
        warnings=(*problems, *(warning for folder in folders for warning in _warnings(folder)), *_unverified(recipe)),
        config_yaml=recipe.model_copy(update={"provenance": {}}).yaml(),
        provenance=tuple(
            report.Provenance(path, str(value), source_of(path, recipe.provenance)) for path, value in leaves(recipe)
        ),
    )


def panels(objective: Objective, source: ImageSource) -> tuple[report.Panel, ...]:
    """The gallery of an objective on the same images of `source` whatever the recipe."""
    indices = spread(source, NUM_EXAMPLES).places
    names = tuple(source.classes[source.label(i)] if source.classes else source.name(i) for i in indices)
    return tuple(
        report.Panel(row.title, tuple(map(report.Picture, row.captions or names, row.images)), row.note)
        for row in gallery(objective, source, indices)
    )


def reported(scores: Iterable[Score], seed: int) -> list[report.Score]:
    return [report.Score(s.task, s.metric, s.value, s.unit, s.interval, s.protocol, seed) for s in scores]


def budget(recipes: Sequence[Recipe], seeds: Sequence[int]) -> str:
    """Epochs, batch and seeds in words."""
    epochs = {recipe.epochs for recipe in recipes}
    spoken = f"{min(epochs):g} epochs" if len(epochs) == 1 else f"{min(epochs):g} to {max(epochs):g} epochs"
    batches = "/".join(str(batch) for batch in sorted({recipe.batch for recipe in recipes}))
    return f"{spoken} in batches of {batches}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def environment(folders: Iterable[Path]) -> dict[str, str]:
    """Versions and hardware of the first of these runs that recorded them."""
    nothing: dict[str, Any] = {"versions": {}, "hardware": {}}
    record = next((found for folder in folders if (found := _record(folder))), nothing)
    return {**record["versions"], **record["hardware"], "threads": str(record.get("threads", torch.get_num_threads()))}


def _found(paths: Sequence[Path]) -> tuple[list[Trained], list[report.Entry]]:
    """The runs in `paths`, each once, and the baselines that comparisons have scored."""
    runs: dict[Path, Trained] = {}
    floors: dict[str, report.Entry] = {}
    problems = []
    for path in paths:
        inside = sorted((path / "runs").iterdir()) if (path / "runs").is_dir() else [path]
        results = read_lines(path / "results.jsonl")
        floors |= {floor.name: floor for floor in _floors(results)}
        for folder in inside:
            try:
                runs[folder.resolve()] = _opened(folder, results)
            except ValueError as error:
                problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    return list(runs.values()), list(floors.values())


def _weights(folder: Path) -> Path:
    """The weights of a run (a sweep's start values have weights and no run), or `folder` itself."""
    return folder / "weights" if (folder / "weights").is_dir() else folder


def _opened(folder: Path, results: Sequence[dict[str, Any]]) -> Trained:
    record = _record(folder)
    if record:
        recipe = Recipe.model_validate(record["recipe"])
    elif (_weights(folder) / weights.RECIPE).is_file():
        recipe = weights.read_recipe(_weights(folder))
    else:
        raise ValueError(f"{folder} holds no run, no weights and no comparison: no run.json, {weights.RECIPE} or runs")
    own = [row for row in results if str(row.get("key", "")).startswith(recipe.hash)]
    later = [row for row in read_lines(folder / "eval.jsonl") if row.get("hash") == recipe.hash]
    return Trained(folder, recipe, record, [*own, *later])


def _groups(runs: Sequence[Trained]) -> list[list[Trained]]:
    """Runs of the same recipe on the same images with different seeds together."""
    groups: dict[tuple[object, ...], list[Trained]] = {}
    for run in runs:
        seedless = run.recipe.model_copy(update={"seed": 0}).hash
        images = run.record["data"]["fingerprint"] if run.record else ""
        key: tuple[object, ...] = (seedless, images)
        if any(run.recipe.seed == other.recipe.seed for other in groups.get(key, [])):
            key = (*key, run.folder)
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def _kept(run: Trained) -> list[report.Score]:
    """The latest score of each task and metric, larger being better: what a step costs is none."""
    latest = {(row["task"], row["metric"]): row for row in run.rows if row["task"] != "cost"}
    return reported(map(score_of, latest.values()), run.recipe.seed)


def _doubts(run: Trained) -> list[str]:
    """What makes the scores of a run incomplete, or only one of several."""
    found = []
    protocols: dict[tuple[str, str], set[str]] = {}
    for row in run.rows:
        protocols.setdefault((row["task"], row["metric"]), set()).add(f"{row.get('data', '')}: {row['protocol']}")
    many = [task for (task, _), kinds in protocols.items() if len(kinds) > 1]
    if many:
        found.append(
            f"{run.folder.name} was scored by several protocols or data at {', '.join(many)}; the latest is shown"
        )
    status = read_status(run.folder) if run.record else {}
    if run.record and run.record.get("status") != "done":
        reason = f": {status['reason']}" if status.get("reason") else ""
        found.append(f"{run.folder.name} is not done ({status.get('status', 'running')}{reason})")
    return found


def _floors(results: Sequence[dict[str, Any]]) -> list[report.Entry]:
    """The baselines in results.jsonl of a comparison."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in results:
        if str(row.get("key", "")).startswith(("random-", "pixels-")):
            rows.setdefault(row["recipe"], []).append(row)
    floors = []
    for name, own in rows.items():
        pixels = own[0]["key"].startswith("pixels-")
        latest = {(row["task"], row["metric"]): row for row in own}
        scores = reported(map(score_of, latest.values()), own[0]["seed"])
        title, kind = ("Raw pixels", "pixels") if pixels else (name, "random")
        floors.append(report.Entry(name, title, kind=kind, scores=tuple(scores)))  # type: ignore[arg-type]
    return floors


def _gallery(run: Trained, say: Callable[[str], None]) -> tuple[tuple[report.Panel, ...], list[str]]:
    """The pictures of a run, or why there are none."""
    if not (run.weights / weights.TENSORS).is_file() or not run.record:
        return (), []
    say(f"pictures of {run.folder.name}")
    try:
        return panels(weights.load(run.weights), _test_images(run.record["data"]["spec"])), []
    except (ValueError, OSError) as error:
        return (), [f"no pictures: {error}"]


@cache
def _test_images(spec: str) -> ImageSource:
    return open_source(spec, "val")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file; [] without one. A last line that a stopped program left half written is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    try:
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); remove the line at fault") from None


def _record(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    if not path.is_file():
        return {}
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return record if {"recipe", "data", "command", "versions", "hardware"} <= {*record} else {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); give its train command again") from None


def _curves(folder: Path) -> tuple[report.Curve, ...]:
    rows = read_lines(folder / "metrics.jsonl")
    names = dict.fromkeys(name for row in rows for name in row if name.startswith("loss"))
    steps = tuple(row["step"] for row in rows)
    return tuple(report.Curve(name, steps, tuple(row.get(name, math.nan) for row in rows)) for name in names)


def _cost(folder: Path, batch: int) -> report.Cost | None:
    rows = read_lines(folder / "metrics.jsonl")
    seconds = sum(row["seconds"] for row in rows)
    if not seconds:
        return None
    spent = _record(folder).get("seconds") or seconds
    seen = rows[-1]["step"] * batch
    return report.Cost(spent, seen / seconds, max(row["memory_mb"] for row in rows), rows[-1]["step"], seen)


def _warnings(folder: Path) -> list[str]:
    found = []
    skipped, said = folder / "skipped_images.txt", folder / "warnings.txt"
    if skipped.is_file() and (lines := skipped.read_text(encoding="utf-8").replace("\t", ": ").splitlines()):
        found.append(f"{folder.name}: {len(lines)} unreadable images were replaced, e.g. {lines[0]}")
    if said.is_file():
        found += [f"{folder.name}, {line}" for line in said.read_text(encoding="utf-8").splitlines()]
    return found


def _unverified(recipe: Recipe) -> list[str]:
    return ["not verified against official code"] if recipe.status == "unverified" else []
