"""A comparison goes on where it stopped, and says what it left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.engine import toys
from unimim.comparison import Comparison, compare
from unimim.engine.run import Run

DATA = "shapes:size=16,train=40,val=20"


def comparison(out: Path, *more: str, seeds: tuple[int, ...] = (0,), stop_after: int | None = None) -> Comparison:
    recipes = (toys.recipe("mae-micro", *more), toys.recipe("beit-micro", *more))
    run = Run(out=out, device="cpu", workers=0, stop_after=stop_after)
    return Comparison(recipes, DATA, out, run, seeds, cached=True, command="unimim compare ...")


def test_two_recipes_two_seeds_one_page(tmp_path: Path) -> None:
    page = compare(comparison(tmp_path, seeds=(0, 1)), lambda text: None)
    assert [entry.name for entry in page.recipes] == ["mae-micro", "beit-micro"]
    assert [entry.kind for entry in page.baselines] == ["random", "random", "pixels"]
    assert [(score.task, score.seed) for score in page.recipes[0].scores] == [
        ("k-NN", 0),
        ("linear", 0),
        ("k-NN", 1),
        ("linear", 1),
    ]
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "mae-micro" in html
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2 * (2 * 2 + 3)
    record = json.loads((tmp_path / "runs" / "beit-micro-seed1" / "run.json").read_text())
    assert record["status"] == "done"
    assert record["seed"] == 1


def test_it_goes_on_where_it_stopped_and_does_nothing_twice(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        compare(comparison(tmp_path, stop_after=4), said.append)
    assert said == ["training mae-micro, seed 0"]
    compare(comparison(tmp_path), said.append)
    rows = [json.loads(line) for line in (tmp_path / "runs/mae-micro-seed0/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 15
    said.clear()
    before = (tmp_path / "results.jsonl").read_text()
    compare(comparison(tmp_path), said.append)
    assert said == []
    assert (tmp_path / "results.jsonl").read_text() == before


def test_a_recipe_that_cannot_be_trained_is_left_out_with_its_reason(tmp_path: Path) -> None:
    mine = comparison(tmp_path)
    broken = toys.recipe("mae-micro", "teacher={name: open_clip, model: local-dir:nowhere}", "norm=layer")
    broken = broken.model_copy(update={"name": "broken"})
    page = compare(Comparison((broken, mine.recipes[1]), DATA, tmp_path, mine.run, cached=True), lambda text: None)
    assert [entry.name for entry in page.recipes] == ["beit-micro"]
    assert page.skipped[0].name == "broken"
    assert "nowhere" in page.skipped[0].reason


def test_a_folder_with_other_runs_is_refused(tmp_path: Path) -> None:
    compare(comparison(tmp_path), lambda text: None)
    with pytest.raises(ValueError, match=r"epochs: 3\.0 -> 4\.0"):
        compare(comparison(tmp_path, "epochs=4"), lambda text: None)


def test_a_reloaded_teacher_is_not_stored_and_the_student_needs_it_no_more(tmp_path: Path, tiny_clip: Path) -> None:
    from safetensors import safe_open

    from unimim import weights

    teacher = tmp_path / "clip"
    shutil.copytree(tiny_clip, teacher)
    recipe = toys.recipe("mae-micro", f"teacher={{name: open_clip, model: 'local-dir:{teacher}'}}", "norm=layer")
    mine = Comparison((recipe,), DATA, tmp_path / "out", Run(out=tmp_path, device="cpu", workers=0), cached=True)
    compare(mine, lambda text: None)
    folder = tmp_path / "out" / "runs" / "mae-micro-seed0" / "weights"
    with safe_open(folder / weights.TENSORS, "pt") as file:
        assert not [name for name in file.keys() if name.startswith("teachers")]  # noqa: SIM118
    assert weights.load(folder).terms["mim"].teacher[0].spec.dim > 0
    shutil.rmtree(teacher)
    weights.load_student(folder)
    with pytest.raises(ValueError, match="clip"):
        weights.load(folder)
