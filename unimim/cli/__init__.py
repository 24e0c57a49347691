"""The command line. Modules that import torch are imported inside the commands, so that help and lists come at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Annotated, Any

import typer

from . import (
    benching,
    data,
    doctor,
    errors,
    evaluating,
    files,
    launching,
    listing,
    replaying,
    reporting,
    running,
    sweeping,
    teachers,
)

app = typer.Typer(
    help="Masked image modeling as one equation: loss = L(N(T(image)), H(S(masked image))).",
    epilog=(
        "Start here: unimim list · unimim show mae · unimim train mae-micro --data shapes --out runs/mae\n\n"
        "UNIMIM_TRACEBACK=1 shows where an error came from."
    ),
    rich_markup_mode="rich",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
COMMANDS: dict[str, dict[str, tuple[Callable[..., None], str]]] = {
    "Look": {
        "list": (listing.list_names, "unimim list losses"),
        "show": (listing.show, "unimim show mae loss=l1 > mine.yaml"),
        "table1": (listing.table1, "unimim table1 --md"),
    },
    "Run": {
        "train": (running.train, "unimim train mae-micro epochs=5 --data shapes --out runs/mae"),
        "compare": (running.compare, "unimim compare mae-micro data2vec-micro epochs=5 --data shapes --out runs/first"),
        "replay": (replaying.replay, "unimim replay runs/mae --steps 20"),
        "bench": (benching.bench, "unimim bench mae-micro data2vec-micro --batch 16 --dtype bf16"),
        "eval": (evaluating.evaluate, "unimim eval runs/mae --data shapes"),
        "report": (reporting.report, "unimim report runs/mae runs/beit --out report.html"),
        "viz": (reporting.viz, "unimim viz runs/mae --data shapes --what masks,attention --out pictures"),
        "sweep": (sweeping.sweep, "unimim sweep experiments/table9-loss-norm/sweep.yaml"),
    },
    "Files": {
        "convert": (files.convert, "unimim convert mae_pretrain_vit_base.pth --as mae --out weights/mae"),
        "export": (files.export, "unimim export runs/mae --to hf --out exported/mae"),
    },
    "Extend and check": {
        "schema": (listing.schema, "unimim schema --out recipe.schema.json"),
        "doctor": (doctor.doctor, "unimim doctor"),
    },
}
"""{panel: {command: (function, example)}}."""

for panel, commands in COMMANDS.items():
    for name, (function, example) in commands.items():
        app.command(name, rich_help_panel=panel, epilog=f"Example: {example}")(function)
app.add_typer(teachers.app, name="teachers", rich_help_panel="Run")
app.add_typer(launching.app, name="launch", rich_help_panel="Run")
app.add_typer(data.app, name="data", rich_help_panel="Files")
app.add_typer(listing.plugins_app, name="plugins", rich_help_panel="Extend and check")


@app.callback()
def unimim(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        from .. import __version__

        typer.echo(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@cache
def command() -> Callable[..., Any]:
    """What typer makes of `app`, once in a process: making it takes longer than many a command."""
    return typer.main.get_command(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `unimim ARGUMENTS` (None: those of the process) and return its exit code."""
    return errors.run(command(), arguments)
