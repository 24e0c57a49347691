"""Names of images, classes, recipes, terms and plugins made to draw or act: they are shown as text, on the page and terminal."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.errors import MarkupError

from unimim.cli import main
from unimim.cli.console import emit, remark, say, show_card, show_table, table
from unimim.cli.errors import Failed, Problems, Refused, run
from unimim.engine.log import Log
from unimim.recipe import RecipeError, load
from unimim.registry import Entry, Plugin, plugins
from unimim.report import Axes, Cost, Curve, Panel, Picture, Provenance, Report, Score, Skipped, leaderboard, render
from unimim.report import Entry as Row

ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
PIECES = [
    *("<script>alert(1)</script>", "</style>", "</title><svg onload=x>", '" onmouseover="x', "'><img src=x onerror=y>"),
    *(
        "<!--",
        "]]>",
        "&lt;b&gt;",
        "javascript:x",
        "{{ 7 * 7 }}",
        "{% raw %}",
        "{0.__class__}",
        "%s%n",
        "${HOME}",
        "`id`",
    ),
    *("img[/b].png", "[red]", "[/]", "[link=file:///etc]x[/link]", "[", "\\[", ":smile:", "[bold", "[@click=x]y[/]"),
    *(
        "\x1b[2J",
        "\x1b]0;title\x07",
        "\x1b]8;;http://x\x1b\\",
        "\x9b31m",
        "\x90q",
        "\x00",
        "\x7f",
        "\x08\x08",
        "\r",
        "\x0c",
    ),
    *("\n", "\r\n", "\t", "\u2028", "\u202e", "\u2066", "\u200f", "\u061c", "\ud800", "\ufeff", "\U000e0041", "\uffff"),
    *(
        "😀",
        "👩‍👩‍👧",
        "ﷺ",
        "e" + "\u0301" * 50,
        "x" * 3000,
        "../../",
        "C:\\",
        "'",
        '"',
        "|",
        "=cmd()",
        "-rf",
        " ",
        "$(x)",
    ),
]


def names(count: int) -> list[str]:
    """Each piece alone, then joins of two to four; with a letter, because a name that shows nothing may be left out."""
    rng = random.Random(0)
    joined = ("".join(rng.sample(PIECES, rng.randint(2, 4))) for _ in iter(int, 1))
    made = dict.fromkeys(f"a{piece}" for piece in PIECES)
    while len(made) < count:
        made[f"a{next(joined)}"] = None
    return list(made)[:count]


class Tags(HTMLParser):
    """Every tag with the names of its attributes, and every comment and declaration, in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[Any] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, [name for name, _ in attrs]))

    def handle_endtag(self, tag: str) -> None:
        self.found.append(tag)

    def handle_comment(self, data: str) -> None:
        self.found.append("comment")


def report(name: str) -> Report:
    """A report that says `name` wherever it can."""
    axes = Axes(teacher=name, student=name, head=name, norm=name, loss=name)
    pixels = np.zeros((4, 4, 3), np.uint8)
    entries = tuple(
        Row(
            f"{name}{number}",
            name,
            axes,
            scores=(Score(name, name, 50.0 + number, "%", (49.0, 51.0), name, 0),),
            curves=(Curve(name, (1, 2), (1.0, 0.5)),),
            cost=Cost(1.0, 1.0, 1.0, 1, 1),
            panels=(Panel(name, (Picture(name, pixels),), name),),
            warnings=(name,),
            config_yaml=name,
            provenance=(Provenance(name, name, name),),
        )
        for number in range(2)
    )
    return Report(name, name, name, name, name, {name: name}, entries, (Skipped(name, name),))


def print_lists(name: str) -> None:
    show_table(table([name, "b"], [(name, name)], title=name, fold="b"))
    show_card([(name, name)])
    say(name)
    remark(name, "red")
    emit({name: name})


def print_leaderboard(name: str) -> None:
    show_table(leaderboard(report(name)))


def print_log(name: str, folder: Path) -> None:
    """The lines, and the panel that a terminal shows."""
    log = Log(folder, name, 2, 1)
    log.say(name)
    row = {"loss": 1.0, f"loss/{name}": 1.0, "grad_norm": 1.0, "lr": 1.0}
    log.scalars(1, row)
    panel = {"step": 1, "images_per_s": 1.0, "data_wait": 0.0, "memory_mb": 1.0, **row}
    drawn = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=200)
    drawn.print(log._render(panel))
    print(drawn.file.getvalue())  # type: ignore[attr-defined]


def print_errors(name: str, folder: Path) -> None:
    """Every way a command can end."""
    problems = Problems()
    with problems.of(name):
        raise ValueError(name)
    errors = [Refused([name]), Refused([name, *problems.found]), Failed(name), ValueError(name), OSError(2, name, name)]
    for error in [*errors, RecipeError(name, [name, name])]:

        def app(*arguments: object, error: Exception = error, **options: object) -> int:
            raise error

        assert run(app, []) in (1, 2)  # type: ignore[arg-type]
    for words in ([name], ["show", "mae-micro", f"{name}=1"]):
        assert main(words) in (0, 2)


def print_plugins(name: str) -> None:
    """A plugin whose every word is `name`, in the lists."""
    live = plugins()
    live.loaded.append(Plugin(name, name, name, {"norms": (name,)}, name, name))
    live["norms"].entries[name] = Entry("norms", name, f"{name}:x", name)
    live["recipes"].entries[name] = Entry("recipes", name, f"no_such_module:{name}", name)
    try:
        for words in (["plugins", "-v"], ["list", "norms"], ["show", name]):
            assert main(words) in (0, 2)
    finally:
        live.loaded.pop()
        del live["norms"].entries[name], live["recipes"].entries[name]


def print_recipe(name: str) -> None:
    """Words that a recipe may hold freely: its title, its paper, the name of a term, a source."""
    data = load("mae-micro").data()
    data |= {
        "title": name,
        "paper": name,
        "row": name,
        "terms": {name: data["terms"]["mim"]},
        "provenance": {name: name},
    }
    found = load(data)
    say(found.yaml())
    from unimim.cli import listing

    listing._show_card(found)
    listing._show_difference(load("mae-micro"), found, as_json=False)


@pytest.mark.slow
def test_hostile_names_are_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "dumb")  # so that no colour of ours is taken for a control byte of theirs
    outputs: list[Callable[[str], None]] = [
        print_lists,
        print_leaderboard,
        lambda name: print_log(name, tmp_path),
        lambda name: print_errors(name, tmp_path),
        print_plugins,
        print_recipe,
    ]
    harmless, deck = Tags(render(report("a"))).found, names(500)
    live, markup, control = [], [], []
    capsys.readouterr()
    for number, name in enumerate(deck):
        page = render(report(name))
        if Tags(page).found != harmless or ACTS.search(page):
            live.append(name)
        monkeypatch.setenv("FORCE_COLOR", "1" if number % 2 else "")
        for output in outputs:
            try:
                output(name)
            except MarkupError:
                markup.append(name)
        said = capsys.readouterr()
        assert "a" in said.out
        if ACTS.search(said.out + said.err):
            control.append(name)
    with capsys.disabled():
        print(
            f"\nnames {len(deck)}, live tags {len(live)}, MarkupErrors {len(markup)}, "
            f"control bytes on terminal {len(control)}"
        )
    assert len(set(deck)) == 500
    assert live == []
    assert markup == []
    assert control == []
