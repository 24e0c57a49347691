"""Commands that show what is there already: report and viz."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..registry import did_you_mean
from .console import remark, say, show_table
from .errors import Problems, run_errors
from .evaluating import weights_folder
from .inputs import check_out, open_data, refuse_torchrun

if TYPE_CHECKING:
    from ..engine.data.sources import ImageSource
    from ..objective import Objective

KINDS = ("masks", "targets", "recon", "pca", "attention")
"""What viz can show: the keys of evaluation.gallery.ROWS, known without importing torch."""


def report(
    paths: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Folders of runs or of comparisons, or weights folders.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The page to write.", show_default=False)
    ] = None,
    markdown: Annotated[bool, typer.Option("--md", help="Print the leaderboard as Markdown.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the leaderboard as CSV.")] = False,
) -> None:
    """Make a report of what was trained and scored before.

    Nothing is trained and nothing is scored: see unimim eval for that.
    Runs that differ in their seed alone become one entry.
    """
    from .. import runs
    from ..report import html, tables

    problems = Problems()
    refuse_torchrun(problems, "report")
    if markdown and as_csv:
        problems.add("--md, --csv: both print to the same place; give one")
    if out is None and not markdown and not as_csv:
        problems.add("--out is missing: the page to write; or give --md or --csv to print the table alone")
    if out is not None and out.is_dir():
        problems.add(f"--out: {out} is a folder; name a file in it, e.g. {out / 'report.html'}")
    problems.refuse()
    page = runs.rebuilt(paths, shlex.join(["unimim", *sys.argv[1:]]), remark, pictures=out is not None)
    if out is not None:
        html.write(page, out)
    if markdown or as_csv:
        print(tables.markdown(page) if markdown else tables.csv(page), end="", flush=True)
    else:
        show_table(tables.leaderboard(page))
    if out is not None:
        remark(f"report: {out}", "green")


def viz(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A weights folder, or the folder of a run that is done.")
    ],
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="IMAGE", help="Image files; or give --data.", show_default=False)
    ] = None,
    data: Annotated[
        str,
        typer.Option("--data", metavar="D", help="Show test images of it: see unimim eval.", show_default=False),
    ] = "",
    what: Annotated[str, typer.Option(metavar="W", help="Of these, separated by commas.")] = ",".join(KINDS),
    count: Annotated[int, typer.Option(metavar="N", min=1, max=64, help="Images of --data.")] = 8,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Required: the folder to write.", show_default=False)
    ] = None,
) -> None:
    """Draw what a recipe hides, is asked for, answers and looks at.

    Writes one PNG for each of --what and prints its path.
    """
    from ..evaluation.sources import spread

    problems = Problems()
    refuse_torchrun(problems, "viz")
    names = [name.strip() for name in what.split(",") if name.strip()]
    for name in (name for name in names if name not in KINDS):
        problems.add(f"--what: unknown {name!r}{did_you_mean(name, KINDS)}; known: {', '.join(KINDS)}")
    if not names:
        problems.add(f"--what: nothing to show; known: {', '.join(KINDS)}")
    if bool(images) == bool(data):
        problems.add("what to show: give image files, or --data" if data else "give image files, or --data")
    source = _files(problems, images) if images else open_data(problems, data, "val") if data else None
    check_out(problems, out)
    objective = None if problems.found else _objective(problems, path)
    problems.refuse()
    assert source
    assert objective
    assert out
    indices = list(range(len(source))) if images else spread(source, count).places
    with run_errors("nothing was written"):
        _draw(objective, source, indices, names, out)


def _draw(objective: Objective, source: ImageSource, indices: list[int], names: list[str], out: Path) -> None:
    from ..evaluation.gallery import gallery
    from ..evaluation.sheet import sheet

    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        rows = gallery(objective, source, indices, [name], every_mask=True)
        if len(rows) == 1:
            remark(f"{name}: {objective.recipe.name} has nothing to show", "yellow")
            continue
        called = [source.classes[source.label(i)] if source.classes else Path(source.name(i)).name for i in indices]
        picture = out / f"{name}.png"
        sheet(rows, called).save(picture)
        say(picture)


def _files(problems: Problems, images: list[Path]) -> ImageSource | None:
    from ..evaluation.sheet import Loose

    missing = [str(path) for path in images if not path.is_file()]
    if missing:
        problems.add(f"no such file: {', '.join(missing)}")
        return None
    return Loose(images)


def _objective(problems: Problems, path: Path) -> Objective | None:
    from .. import weights

    with problems.of():
        return weights.load(weights_folder(path))
    return None
