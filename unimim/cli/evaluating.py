"""The command that scores what was trained: eval."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..registry import did_you_mean
from .console import emit, say, show_card, show_table, table
from .errors import Problems, run_errors
from .inputs import Data, Device, DryRun, ProbeImages, open_data, refuse_torchrun, run_options
from .listing import Json

if TYPE_CHECKING:
    from ..axes import Student
    from ..engine.data.sources import ImageSource
    from ..evaluation.features import Features
    from ..evaluation.score import Score
    from ..recipe import Recipe


def evaluate(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A weights folder, or the folder of a run that is done.")
    ],
    data: Data = "",
    task: Annotated[str, typer.Option(metavar="T", help="Protocols, separated by commas.")] = "knn,linear",
    probe_images: ProbeImages = None,
    block: Annotated[
        int | None, typer.Option(metavar="K", help="0-based block to read.", show_default="final norm")
    ] = None,
    pool: Annotated[str, typer.Option(metavar="P", help="mean (of the patch tokens) or class (token).")] = "mean",
    device: Device = None,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Score the frozen features of a trained student.

    Scores are also appended to PATH/eval.jsonl.
    """
    problems = Problems()
    refuse_torchrun(problems, "eval")
    tasks = _tasks(problems, task)
    if pool not in ("mean", "class"):
        problems.add(f"--pool: {pool!r} is neither mean nor class")
    trained = _trained(problems, path, block)
    images = _images(problems, data, probe_images)
    run = run_options(problems, path, 1, device=device)
    problems.refuse()
    assert trained
    assert images
    assert run
    about = _about(trained, data, images)
    if dry_run:
        rows = [("weights", trained.folder), ("recipe", f"{trained.recipe.name} ({trained.recipe.hash})")]
        what = f"{data}: {about['train']} training images, {about['test']} test images"
        show_card([*rows, ("tasks", ", ".join(tasks)), ("data", what), ("device", run.device)])
        say("dry run: nothing was started", "green")
        return
    features = _features(trained, images, pool, block, run.device)
    scores = [protocol(*features) for protocol in tasks.values()]
    _keep(path / "eval.jsonl", about, scores)
    if as_json:
        emit({"path": str(path), **about, "scores": [score.data() for score in scores]})
    else:
        _print(scores)
        say(f"{about['test']} test images, {about['train']} training images; kept in {path / 'eval.jsonl'}", "dim")


@dataclass(frozen=True)
class Trained:
    """A student, and the recipe and folder it came from."""

    folder: Path
    recipe: Recipe
    student: Student


def _trained(problems: Problems, path: Path, block: int | None) -> Trained | None:
    from .. import weights

    with problems.of():
        folder = weights_folder(path)
        recipe = weights.read_recipe(folder)
        if block is not None and not 0 <= block < recipe.student.num_blocks:
            problems.add(f"--block: the student has blocks 0 to {recipe.student.num_blocks - 1}, not {block}")
        return Trained(folder, recipe, weights.load_student(folder))
    return None


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


def _images(problems: Problems, data: str, most: int | None) -> tuple[ImageSource, ImageSource] | None:
    """Training images for the probes (at most so many) and test images."""
    from ..evaluation.probes import Spread

    train = open_data(problems, data, "train", labelled=True)
    test = open_data(problems, data, "val", labelled=True) if train else None
    return (Spread(train, most), test) if train and test else None


def _tasks(problems: Problems, text: str) -> dict[str, Callable[[Features, Features], Score]]:
    """{name: score of training and test features}, for the names in `text`."""
    from ..evaluation.knn import knn
    from ..evaluation.linear import linear_probe

    known: dict[str, Callable[[Features, Features], Score]] = {"knn": knn, "linear": linear_probe}
    names = [name.strip() for name in text.split(",")]
    for name in (name for name in names if name not in known):
        problems.add(f"--task: unknown task {name!r}{did_you_mean(name, known)}; tasks: {', '.join(known)}")
    return {name: known[name] for name in names if name in known}


def _features(
    trained: Trained, images: tuple[ImageSource, ImageSource], pool: Any, block: int | None, device: str
) -> list[Features]:
    from ..evaluation.features import student_features

    with run_errors("nothing was written"):
        read = partial(student_features, trained.student, precision=trained.recipe.precision)
        return [read(source, pool, block, device) for source in images]


def _about(trained: Trained, data: str, images: tuple[ImageSource, ImageSource]) -> dict[str, Any]:
    train, test = images
    about = {"recipe": trained.recipe.name, "hash": trained.recipe.hash, "data": data}
    return {**about, "fingerprint": test.fingerprint(), "train": len(train), "test": len(test)}


def _keep(path: Path, about: dict[str, Any], scores: list[Score]) -> None:
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({"time": now, **about, **score.data()}) + "\n" for score in scores)


def _print(scores: list[Score]) -> None:
    rows = []
    for score in scores:
        low, high = score.interval
        rows.append((score.task, f"{score.value:.1f} {score.unit}", f"{low:.1f} to {high:.1f}", score.protocol))
    show_table(table(["task", "top-1", "95 % interval", "protocol"], rows, fold="protocol"))
