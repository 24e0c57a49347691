"""What the command line prints: text that others wrote made harmless, tables, and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..terminal import clean

WIDE = 10_000
"""Columns of output that is not a terminal: what is piped into a file or grep is never wrapped or cut."""


def plain(text: object, style: str = "") -> Text:
    """`text` as it stands: markup in it is not read."""
    return Text(clean(text), style)


def console(stderr: bool = False) -> Console:
    made = Console(stderr=stderr, highlight=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=WIDE)


def say(text: object = "", style: str = "") -> None:
    """Lines to stdout, as long as they are."""
    console().print(plain(text, style), soft_wrap=True)


def remark(text: object, style: str = "") -> None:
    """Lines to stderr: what is not the answer."""
    console(stderr=True).print(plain(text, style), soft_wrap=True)


def show_table(renderable: Table) -> None:
    """A table; without the spaces at the ends of its lines where no terminal needs them."""
    where = console()
    if where.is_terminal:
        where.print(renderable)
        return
    with where.capture() as captured:
        where.print(renderable)
    say("\n".join(line.rstrip() for line in captured.get().splitlines()))


def show_card(rows: Iterable[tuple[str, object]]) -> None:
    """Lines of a dim name and what it is."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        line = Text.assemble(plain(f"{name:<{width}}  ", "dim"), plain(value))
        console().print(line, soft_wrap=True)


def emit(value: Any) -> None:
    """One JSON document to stdout, in printable ASCII."""
    print(json.dumps(value, indent=2).replace("\x7f", "\\u007f"), flush=True)  # a closed pipe shows here, not at exit


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "", fold: str = "") -> Table:
    """Rows as a table. The column `fold` gives way when the terminal is narrow, the others do not."""
    made = Table(box=box.SIMPLE_HEAD, title=plain(title) if title else None, title_justify="left", title_style="bold")
    made.show_edge, made.pad_edge = False, False
    for number, column in enumerate(columns):
        made.add_column(
            plain(column), style="" if number else "cyan", no_wrap=bool(fold) and column != fold, overflow="fold"
        )
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else plain(cell) for cell in row))
    return made
