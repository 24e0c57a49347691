"""The command that repeats a run: replay."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import emit, say
from .errors import FAILED, Problems, run_errors
from .inputs import DryRun, check_out
from .listing import Json
from .running import launch_processes

if TYPE_CHECKING:
    from ..replay import Recorded, Replay


def replay(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, or its run.json.")],
    steps: Annotated[int | None, typer.Option(metavar="N", min=1, help="At most.", show_default="50")] = None,
    data: Annotated[
        str | None, typer.Option(metavar="D", help="Where the images are now.", show_default="as recorded")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="A new folder to keep.", show_default="a temporary one")
    ] = None,
    procs: Annotated[int, typer.Option(metavar="N", min=1, help="Processes on this machine.")] = 1,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Repeat a recorded run and find the first logged step that differs.

    Exit code 0: identical; 1: not. On the machine of the record, with as many processes, it is bitwise.
    """
    from ..engine.data.sources import open_source
    from ..replay import Recorded

    problems = Problems()
    recorded = None
    with problems.of():
        recorded = Recorded.read(path)
    if recorded:
        with problems.of("--data"):
            open_source(data or recorded.record["data"]["spec"], "train")
        with problems.of():
            recorded.run(path, 1)
    if out is not None:
        check_out(problems, out)
        if out.is_dir() and any(out.iterdir()) and "WORLD_SIZE" not in os.environ:
            problems.add(f"--out: {out} is not empty; a replay needs a folder of its own")
    elif "WORLD_SIZE" in os.environ:
        problems.add("--out is missing: processes that torchrun started must share a folder")
    problems.refuse()
    assert recorded
    if dry_run:
        say(f"{recorded.recipe.name} would be repeated up to step {recorded.last(steps)}; nothing was started", "green")
        return
    with _folder(out) as folder:
        if procs > 1:
            launch_processes(procs, [*sys.argv[1:], *([] if out else ["--out", str(folder)])])
        else:
            _replay(recorded, folder, steps, data, as_json)


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out is not None:
        yield out
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def _replay(recorded: Recorded, folder: Path, steps: int | None, data: str | None, as_json: bool) -> None:
    from ..replay import replay

    with run_errors("the record stays as it is"):
        found = replay(recorded, folder, steps, data)
    if os.environ.get("RANK", "0") != "0":
        return
    if as_json:
        emit(found.data())
    else:
        _show(found)
    if found.difference:
        raise typer.Exit(FAILED)


def _show(found: Replay) -> None:
    for line in found.environment:
        say(f"not as recorded: {line}", "yellow")
    if found.difference is None:
        say(f"identical for {found.steps} steps", "green")
        return
    first = found.difference
    numbers = f"{first.column} was {first.recorded!r}, is {first.repeated!r} (relative difference {first.relative:.1e})"
    say(f"differs at step {first.step}: {numbers}", "red")
