"""Commands about teachers: list, fetch and verify released ones, and train one."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..registry import plugins
from .console import emit, remark, say, show_card, show_table, table
from .errors import Failed, Problems, run_errors
from .inputs import Data, Device, DryRun, check_out, open_data, run_options
from .listing import Json

if TYPE_CHECKING:
    from ..engine.data.sources import ImageSource
    from ..releases import Release

app = typer.Typer(help="Released teachers, ahead of a run without a network; and one to train where none can be had.")


@app.callback(invoke_without_command=True)
def teachers(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("list", epilog="Example: unimim teachers list")
def list_releases(as_json: Json = False) -> None:
    """List released teachers; --json tells also where each comes from, and what a recipe says to use it."""
    found = _releases()
    if as_json:
        emit([{"name": name, **asdict(release)} for name, release in found.items()])
        return
    rows = [
        (name, release.about, release.license, release.pixels, _size(release), _published(release))
        for name, release in found.items()
    ]
    show_table(table(["name", "what", "license", "pixels", "size", "sha256"], rows, fold="what"))
    say("next: unimim teachers fetch NAME --to DIR", "dim")


def _releases() -> dict[str, Release]:
    """All that can be had: what a plugin cannot give does not hide the others."""
    found = {}
    for name in plugins()["releases"].entries:
        try:
            found[name] = plugins()["releases"][name]
        except ValueError as error:
            remark(f"left out: {error}", "yellow")
    return found


def _size(release: Release) -> str:
    return "not published" if release.size is None else f"{release.size / 2**20:.0f} MB"


def _published(release: Release) -> str:
    from ..releases import HUB

    return release.sha256[:8] or ("told by the hub" if release.source.startswith(HUB) else "not published")


@app.command(epilog="Example: unimim teachers fetch dino-b16 --to weights")
def fetch(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="See unimim teachers list.")],
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Required: the folder for the files.", show_default=False)
    ] = None,
) -> None:
    """Fetch released teachers into a folder, check them, and say what a recipe needs to use them offline."""
    problems = Problems()
    releases: dict[str, Release] = {}
    for name in names:
        with problems.of():
            releases[name] = plugins()["releases"][name]
    if to is None:
        problems.add("--to is missing: the folder for the files")
    problems.refuse()
    assert to is not None
    failed = [problem for release in releases.values() if (problem := _fetch(release, to))]
    if failed:
        raise Failed("\n".join(failed))


@app.command(epilog="Example: unimim teachers verify weights")
def verify(paths: Annotated[list[Path], typer.Argument(metavar="FILE|DIR...", help="What to look at.")]) -> None:
    """Compare files with the size and sha256 that were published, or recorded by fetch. Exit code 1 if one is damaged."""
    from ..fetching import check

    problems = Problems()
    files: list[Path] = []
    for path in paths:
        found = sorted(path.iterdir()) if path.is_dir() else [path]
        files += [each for each in found if each.is_file() and each.suffix != ".sha256" and each.name[0] != "."]
        if not path.exists():
            problems.add(f"no file {path}")
    problems.refuse()
    releases = {release.file: release for release in _releases().values()}
    checked = [check(file, releases.get(file.name)) for file in files]
    for each in checked:
        say(f"{each.path}: {each.verdict}", "red" if each.problem else "")
    if not files:
        say("no files")
    damaged = [f"{each.path} is damaged: {each.problem}" for each in checked if each.problem]
    if damaged:
        raise Failed("\n".join(damaged))


def _fetch(release: Release, folder: Path) -> str:
    """Fetch one, and say how to use it; the problem if it cannot be had."""
    from rich.progress import Progress

    from ..fetching import UNCHECKED, Damaged, Unreachable, fetch, url_of
    from .console import console

    path = folder / release.file
    there = path.exists()
    try:
        with Progress(
            console=console(stderr=True), transient=True, disable=not console(stderr=True).is_terminal
        ) as bar:
            task = bar.add_task(release.file, total=release.size)
            checked = fetch(release, folder, lambda done, whole: bar.update(task, completed=done, total=whole))
    except Damaged as error:
        return str(error)
    except Unreachable as error:
        return (
            f"{error}; nothing was kept. On a machine that can, fetch\n  {url_of(release)}\n"
            f"then put it at {path} and check it:\n  unimim teachers verify {shlex.quote(str(path))}"
        )
    verdict = checked.verdict
    if verdict == UNCHECKED and not there:
        verdict = f"recorded in {path.name}.sha256 and not checked, for its authors publish no sha256: {checked.sha256}"
    say(f"{path}: {'already there, ' * there}{verdict}", "green")
    say(f"use it: {shlex.join(release.words(path))}")
    return ""


@app.command("train-clip", epilog="Example: unimim teachers train-clip --data shapes --out runs/clip-teacher")
def train_clip(
    data: Data = "",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Required: the folder to write.", show_default=False)
    ] = None,
    image_size: Annotated[int, typer.Option(help="Side of the images.", min=1)] = 64,
    patch_size: Annotated[int, typer.Option(help="Side of the patches.", min=1)] = 8,
    width: Annotated[int, typer.Option(help="Width of the image tower, a multiple of 32.", min=32)] = 128,
    layers: Annotated[int, typer.Option(help="Blocks of the image tower.", min=1)] = 4,
    epochs: Annotated[int, typer.Option(help="Passes over the images.", min=1)] = 4,
    batch: Annotated[int, typer.Option(help="Images a step.", min=2)] = 256,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of weights, order and crops.")] = 0,
    device: Device = None,
    dry_run: DryRun = False,
) -> None:
    """Train a small CLIP, the teacher of maskdistill-micro.

    It reads captions where the data have them (shapes), and otherwise makes them of the class names.
    """
    problems = Problems()
    source = open_data(problems, data, "train", labelled=True)
    check_out(problems, out)
    run = run_options(problems, out, 1, device=device)
    sizes: dict[str, Any] = {"image_size": image_size, "patch_size": patch_size, "width": width, "layers": layers}
    settings = sizes | {"epochs": epochs, "batch": batch, "lr": lr, "seed": seed}
    if image_size % patch_size:
        problems.add(f"--patch-size: {image_size} pixels are not whole patches of {patch_size}")
    problems.refuse()
    assert source
    assert run
    if dry_run:
        _show_plan(source, data, run.out, settings)
        return
    from ..teachers.clip_training import Captioned, train_clip

    with run_errors("nothing was written"):
        folder = train_clip(Captioned(source), run.out, device=run.device, log=remark, **settings)
    say(f"CLIP teacher: {folder}", "green")
    say(f"next: unimim train maskdistill-micro teacher.model=local-dir:{folder} --data {data} --out DIR")


def _show_plan(source: ImageSource, data: str, out: Path, settings: dict[str, Any]) -> None:
    from ..teachers.clip_training import Captioned

    steps = len(source) // min(settings["batch"], len(source))
    rows = [("data", f"{data}: {len(source)} images, e.g. {Captioned(source).caption(0)!r}")]
    rows += [(name.replace("_", " "), str(value)) for name, value in settings.items()]
    rows += [("steps", f"{settings['epochs']} epochs x {steps} = {settings['epochs'] * steps}"), ("out", str(out))]
    show_card(rows)
    say("dry run: nothing was started", "green")
