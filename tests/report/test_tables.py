import csv as csv_format
import io
import math
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from unimim.report import Cost, csv, leaderboard, markdown, text


def printed(table, width=400):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(table)
    return console.file.getvalue()


def test_leaderboard_has_recipes_by_rank_then_baselines(linear, recipe, comparison):
    floor = replace(recipe("r", linear(30)), kind="random", axes=None)
    report = comparison(floor, recipe("a", linear(50)), recipe("b", replace(linear(61.25), interval=(60.0, 62.5))))
    shown = printed(leaderboard(report))
    assert shown.index("B ") < shown.index("A ") < shown.index("R ")
    assert "61.2 (60.0 to 62.5)" in shown.replace("\u00a0", " ")


@pytest.mark.parametrize("name", ["[red]x[/red]", "[/]", "[link=file:///etc]x[/link]", ":smile:"])
def test_rich_markup_in_names_is_text(linear, recipe, comparison, name):
    assert name in printed(leaderboard(comparison(replace(recipe("a", linear(50)), title=name))))


hostile = st.text(min_size=1) | st.sampled_from(["\x1b[31mred", "\x07\x00", "a\nb", "x|y", "\ud800", "\u202etxt", "\r"])


@settings(max_examples=60)
@given(hostile)
def test_no_control_character_reaches_the_terminal(worded, name):
    shown = printed(leaderboard(worded(name)))
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]", shown)


@settings(max_examples=60)
@given(hostile)
def test_markdown_rows_have_equal_cells_and_no_markup(worded, name):
    rows = markdown(worded(name)).rstrip("\n").split("\n")[2:]
    assert len(rows) == 2 + 3
    assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows}) == 1
    assert not re.search(r"[<>]", "".join(rows))


@settings(max_examples=60)
@given(hostile | st.sampled_from(["=1+1", "+1", "-1", "@SUM(A1)", '"', "a,b"]))
def test_csv_reads_back_and_never_starts_a_formula(worded, name):
    rows = list(csv_format.reader(io.StringIO(csv(worded(name)))))
    assert len(rows) == 1 + 3
    assert len({len(row) for row in rows}) == 1
    words = [cell for row in rows for cell in row if not re.fullmatch(r"-?[\d.]+(e-?\d+)?", cell)]
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in words)


def test_csv_keeps_full_precision_and_leaves_gaps_empty(linear, recipe, comparison):
    third = 100 / 3
    entry = replace(recipe("a", linear(third, None)), cost=Cost(seconds=1.5, peak_memory_mb=math.nan))
    row = next(csv_format.DictReader(io.StringIO(csv(comparison(entry)))))
    assert float(row["linear probe top-1 [%]"]) == third
    assert row["linear probe top-1 [%] low"] == ""
    assert (row["seconds"], row["peak_memory_mb"], row["steps"]) == ("1.5", "", "")


@given(st.text())
def test_cleaning_is_idempotent_and_writable(value):
    once = text.clean(value)
    assert text.clean(once) == once
    assert once.encode("utf-8").decode("utf-8") == once
    assert "\n" not in text.clean_line(value)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3.21, "3.2 s"), (59.97, "1 min 00 s"), (3599.6, "1 h 00 min"), (3900, "1 h 05 min"), (None, "–")],
)
def test_duration(seconds, words):
    assert text.duration(seconds) == words


@pytest.mark.parametrize(
    ("megabytes", "words"), [(812.4, "812 MB"), (999.6, "1.0 GB"), (24_130, "24.1 GB"), (None, "–")]
)
def test_memory(megabytes, words):
    assert text.memory(megabytes) == words
