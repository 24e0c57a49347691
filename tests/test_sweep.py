"""Sweeps: what a file says, what is done once, what the table shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine import toys
from unimim.sweep import Cell, Sweep, Sweeping, agreement, ordering, prepare, read, table, work

FILE = """
question: Which loss?
data: shapes:train=40,val=20,size=16
recipe: mae-micro
changes: [%s]
seeds: 2
grid:
  - {L2: loss=l2, L1: loss=l1}
runs:
  L2: {paper: {top-1: 3}}
  L1: {paper: {top-1: 2}}
  start values: {untrained: true, measure: [linear]}
measure: [linear, "fewshot fewshot.k=[2] fewshot.steps=2 fewshot.seeds=[0,1]"]
primary: linear/top-1
against: top-1
"""


def sweeping(folder: Path, text: str = "") -> Sweeping:
    folder.mkdir(exist_ok=True)
    file = folder / "sweep.yaml"
    file.write_text(text or FILE % ", ".join(f'"{change}"' for change in (*toys.SMALL, *toys.DECODER, "epochs=1")))
    found = read(file)
    return Sweeping(file, found, folder / "runs", toys.run(folder), found.data, "images", False)


def test_a_sweep_is_done_once_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    one = sweeping(tmp_path)
    assert [(task.name, task.recipe.seed) for task in one.tasks()] == [
        (name, seed) for seed in (0, 1) for name in ("L2", "L1", "start values")
    ]
    said: list[str] = []
    assert work(one, said.append) == []
    lines = one.results.read_text().splitlines()
    assert sum("seed" in line for line in said if " of 6: " in line) == 6
    assert len(lines) == 4 * 2 + 2
    assert len(one.rows()) == 4 * 3 + 2, "few-shot tells two scores"
    one.results.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])  # the last line cut short
    said.clear()
    assert work(one, said.append) == []
    assert [line for line in said if " of 6: " in line] == ["6 of 6: start values, seed 1"]
    assert len(one.rows()) == 4 * 3 + 2
    assert all((folder / "eval.jsonl").is_file() for folder in (tmp_path / "runs").iterdir())
    shown = table(one.sweep, one.rows())
    assert [row[0] for row in shown] == ["run", "L2", "L1", "start values"]
    assert shown[0][1] == "linear/top-1 %"
    narrow = one.sweep.model_copy(update={"show": ("fewshot/*standardized",)})
    assert table(narrow, one.rows())[0] == ["run", "fewshot/top-1, k = 2, standardized %", "paper: top-1"]
    assert shown[0][-1] == "paper: top-1"
    assert " to " in shown[1][1], "an interval over the seeds"
    assert ordering(one.sweep, one.rows()).endswith("pairs stand in the paper's order (linear/top-1 here, top-1 there)")


def test_a_run_that_cannot_be_is_named_before_anything_starts(tmp_path: Path) -> None:
    text = FILE.replace("L1: loss=l1", "L1: loss=nonsense").replace("[linear, ", "[lineer, ") % ""
    with pytest.raises(ValueError, match=r"L2: measure: unknown task 'lineer'.*\n(.*\n)*.*nonsense"):
        sweeping(tmp_path, text).tasks()
    with pytest.raises(ValueError, match="seeds: input should be greater than or equal to 1, got 0"):
        sweeping(tmp_path, (FILE % "").replace("seeds: 2", "seeds: 0"))
    with pytest.raises(ValueError, match="quesiton: no such setting, did you mean 'question'"):
        sweeping(tmp_path, (FILE % "").replace("question", "quesiton"))


def test_preparation_is_done_once_and_its_failure_is_told(tmp_path: Path) -> None:
    made = {"out": "{out}/made", "program": "python"}
    made["arguments"] = "-c 'import pathlib, sys; pathlib.Path(sys.argv[2]).mkdir(parents=True)'"
    one = sweeping(tmp_path, FILE % "" + f"prepare: [{json.dumps(made)}]")
    said: list[str] = []
    prepare(one, said.append)
    prepare(one, said.append)  # would fail, the folder being there
    assert len(said) == 1
    assert (tmp_path / "runs" / "made").is_dir()
    bad = one.sweep.prepare[0].model_copy(update={"arguments": "-c 'import sys; sys.exit(3)'", "out": "{out}/other"})
    broken = Sweeping(one.file, one.sweep.model_copy(update={"prepare": (bad,)}), one.out, one.run, one.data, "", False)
    with pytest.raises(ValueError, match="ended with exit code 3"):
        prepare(broken, said.append)


@given(st.dictionaries(st.sampled_from("abcdefg"), st.floats(0, 100), min_size=2))
def test_agreement_with_itself_is_whole_and_with_its_opposite_none(values: dict[str, float]) -> None:
    alike, pairs = agreement(values, values)
    assert alike == pairs
    opposite = {name: -value for name, value in values.items()}
    assert agreement(values, opposite) == (0, pairs)


def test_every_shipped_sweep_is_whole() -> None:
    files = sorted((Path(__file__).parents[1] / "experiments").glob("*/sweep.yaml"))
    assert len(files) >= 8
    for file in files:
        found = read(file)
        assert Sweeping(file, found, Path("runs/sweeps"), toys.run(file.parent), found.data, "", False).tasks(), file


def test_grid_names_come_from_labels_and_published_numbers_join_them() -> None:
    sweep = Sweep(
        question="",
        data="",
        grid=({"a": "x=1", "b": "x=2"}, {"c": "y=1"}),
        runs={"b, c": Cell(paper={"top-1": 5}), "alone": Cell(recipe="mae")},
    )
    cells = sweep.cells()
    assert {name: cell.changes for name, cell in cells.items()} == {
        "a, c": ("x=1", "y=1"),
        "b, c": ("x=2", "y=1"),
        "alone": (),
    }
    assert cells["b, c"].paper == {"top-1": 5}
