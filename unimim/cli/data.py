"""Commands about data sets: check and shard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .console import emit, remark, say, show_card, show_table, table
from .errors import Failed, Problems
from .inputs import check_out, open_data

if TYPE_CHECKING:
    from ..engine.data.check import Findings

app = typer.Typer(help="Look at a data set before a run, and pack it.")
SPLITS: tuple[Literal["train", "val"], ...] = ("train", "val")
Where = Annotated[str, typer.Argument(metavar="D", help="As for --data: a folder, a .zip, shards:DIR, ...")]


@app.callback(invoke_without_command=True)
def data(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(epilog="Example: unimim data check photographs --workers 8")
def check(
    where: Where,
    workers: Annotated[int, typer.Option(help="Processes that read besides this one.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Read every image once: what cannot be read, images a class, sizes, speed. Exit code 1 if any is unreadable."""
    problems = Problems()
    sources = {split: open_data(problems, where, split) for split in SPLITS}
    problems.refuse()
    from ..engine.data.check import check

    found = {split: check(source, workers) for split, source in sources.items() if source}
    if as_json:
        emit({split: findings.data() for split, findings in found.items()})
    else:
        for split, findings in found.items():
            _show(split, findings)
    bad = [error for findings in found.values() for error in findings.unreadable]
    if bad:
        listed = "\n  ".join(map(str, bad))
        raise Failed(f"{len(bad)} of {sum(f.images for f in found.values())} images cannot be read:\n  {listed}")


@app.command(epilog="Example: unimim data shard photographs --out photographs-shards")
def shard(
    where: Where,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Required: the folder to write.", show_default=False)
    ] = None,
    per_shard: Annotated[int, typer.Option(metavar="N", help="Images a shard.", min=1)] = 1000,
) -> None:
    """Copy the image files into tar shards with an index: the same images, splits, classes and fingerprint."""
    problems = Problems()
    check_out(problems, out)
    from ..engine.data.shards import write_shards
    from ..engine.data.sources import open_store

    store = None
    with problems.of("D"):
        store = open_store(where)
    problems.refuse()
    assert store
    assert out
    written = write_shards(store, out, per_shard)
    for bad in written.left_out:
        remark(f"left out: {bad}", "yellow")
    say(f"{written.num_images} images in {written.num_shards} shards: {out}", "green")
    if written.left_out:
        say(f"left out: {len(written.left_out)} unreadable images, listed in {out / 'left_out.txt'}", "yellow")
    say(f"next: unimim train mae --data {out} --out DIR")


def _show(split: str, found: Findings) -> None:
    from ..engine.data.check import QUANTILES

    say(split, "bold")
    rows: list[tuple[str, object]] = [("images", found.images), ("unreadable", len(found.unreadable))]
    if found.classes:
        counts = found.classes.values()
        rows.append(("classes", f"{len(counts)}, of {min(counts)} to {max(counts)} images"))
    rows.append(("speed", f"{found.images_per_s:g} images/s a worker"))
    show_card(rows)
    if found.widths:
        columns = ["pixels", *(f"{quantile} %" for quantile in QUANTILES)]
        show_table(table(columns, [("width", *found.widths), ("height", *found.heights)]))
    if found.classes:
        show_table(table(["class", "images"], found.classes.items()))
