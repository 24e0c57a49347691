"""report and viz: what is in the files, on a page, in a table and in pictures; nothing is trained."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from tests.cli.conftest import Unimim


def scored(trained: Path, folder: Path, values: dict[str, float], seed: int = 0) -> Path:
    """A copy of a run with these scores, and another seed in its files."""
    shutil.copytree(trained, folder)
    record = json.loads((folder / "run.json").read_text())
    record["recipe"]["seed"] = record["seed"] = seed
    (folder / "run.json").write_text(json.dumps(record))
    from unimim import Recipe

    key = Recipe.model_validate(record["recipe"]).hash
    rows = [
        {"task": task, "metric": "top-1", "value": value, "unit": "%", "interval": None, "protocol": "p", "hash": key}
        for task, value in values.items()
    ]
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_runs_of_different_seeds_are_one_entry_and_the_latest_score_counts(
    unimim: Unimim, trained: Path, tmp_path: Path
) -> None:
    first = scored(trained, tmp_path / "a", {"linear": 40.0, "k-NN": 30.0})
    second = scored(trained, tmp_path / "b", {"linear": 44.0}, seed=1)
    with (first / "eval.jsonl").open("a") as file:
        row = json.loads((first / "eval.jsonl").read_text().splitlines()[0])
        file.write(json.dumps(row | {"value": 42.0, "protocol": "another"}) + "\n")
        file.write(json.dumps(row | {"value": 99.0, "hash": "another recipe"}) + "\n")
    (first / "warnings.txt").write_text("step 3: the target collapsed (variance 0)\n")
    ran = unimim("report", first, second, "--csv")
    assert ran.code == 0
    (line,) = csv.DictReader(io.StringIO(ran.out))
    assert float(line["linear top-1 [%]"]) == 43
    assert (line["linear top-1 [%] seeds"], line["k-NN top-1 [%] seeds"]) == ("2", "1")
    assert not list(tmp_path.glob("*.html"))
    ran = unimim("report", first, second, "--out", tmp_path / "page.html", "--md")
    assert ran.out.splitlines()[2].startswith("| recipe | teacher |")
    page = (tmp_path / "page.html").read_text()
    assert "step 3: the target collapsed" in page
    assert "several protocols or data at linear" in page
    assert "unimim report" in page
    assert page.count('class="strip"') == 7


def test_the_same_seed_twice_is_no_second_seed(unimim: Unimim, trained: Path, tmp_path: Path) -> None:
    first, again = (scored(trained, tmp_path / name, {"linear": 40.0}) for name in ("a", "b"))
    lines = [*csv.DictReader(io.StringIO(unimim("report", first, again, "--csv").out))]
    assert [(line["name"], line["linear top-1 [%] seeds"]) for line in lines] == [
        ("mae-micro (a)", "1"),
        ("mae-micro (b)", "1"),
    ]


def test_a_comparison_is_rebuilt_as_it_was(unimim: Unimim, images: Path, tmp_path: Path) -> None:
    from tests.cli.conftest import TINY

    out = tmp_path / "out"
    assert unimim("compare", "mae-micro", *TINY, "--data", images, "--device", "cpu", "--out", out).code == 0
    ran = unimim("report", out, "--out", tmp_path / "again.html", "--csv")
    assert [line["kind"] for line in csv.DictReader(io.StringIO(ran.out))] == ["recipe", "random", "pixels"]
    (out / "runs" / "mae-micro-seed0" / "run.json").write_text("{")
    assert "run.json is damaged" in unimim("report", out, "--csv").err


def test_pictures_need_the_data_and_a_report_does_not(unimim: Unimim, trained: Path, tmp_path: Path) -> None:
    run = scored(trained, tmp_path / "a", {"linear": 40.0})
    record = json.loads((run / "run.json").read_text())
    record["data"]["spec"] = str(tmp_path / "moved away")
    (run / "run.json").write_text(json.dumps(record))
    assert unimim("report", run, "--out", tmp_path / "page.html").code == 0
    assert "no pictures: " in (tmp_path / "page.html").read_text()


def test_report_reports_every_problem_at_once(unimim: Unimim, tmp_path: Path) -> None:
    ran = unimim("report", tmp_path, "--md", "--csv", "--out", tmp_path)
    assert ran.code == 2
    assert "give one" in ran.err
    assert "is a folder; name a file in it" in ran.err
    ran = unimim("report", tmp_path, tmp_path / "b", "--md")
    assert ran.code == 2
    assert ran.err.count("holds no run, no weights and no comparison") == 2


def test_viz_draws_each_kind_and_prints_its_path(unimim: Unimim, images: Path, trained: Path, tmp_path: Path) -> None:
    ran = unimim("viz", trained, "--data", images, "--count", "3", "--out", tmp_path)
    assert ran.code == 0, ran.err
    paths = [Path(line) for line in ran.out.splitlines()]
    assert [path.name for path in paths] == ["masks.png", "targets.png", "recon.png", "pca.png", "attention.png"]
    heights = {}
    for path in paths:
        with Image.open(path) as picture:
            pixels = np.asarray(picture)
        heights[path.stem] = len(pixels)
        assert len(np.unique(pixels.reshape(-1, 3).astype(int) @ (1, 256, 65536))) > 30
    assert heights["masks"] > heights["targets"], "other strategies stand below the recipe's own"
    assert heights["recon"] > heights["targets"], "raw and de-normalized"


def test_viz_takes_image_files_whatever_their_names(unimim: Unimim, trained: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ["<b>[red]x\x1b[31m.png", "a-name-that-is-much-too-long-for-its-column.png"]
    for name in names:
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(tmp_path / name)
    files = [tmp_path / name for name in names]
    ran = unimim("viz", trained, *files, "--what", "masks", "--out", tmp_path / "out")
    assert (ran.code, ran.out.strip()) == (0, str(tmp_path / "out" / "masks.png")), ran.err


def test_viz_reports_every_problem_at_once(unimim: Unimim, tmp_path: Path) -> None:
    ran = unimim("viz", tmp_path, tmp_path / "no.png", "--data", "shapes", "--what", "mask")
    assert ran.code == 2
    for problem in ("unknown 'mask', did you mean 'masks'?", "no such file", "--out is missing"):
        assert problem in ran.err


def test_what_viz_can_show_is_what_the_gallery_has() -> None:
    from unimim.cli.reporting import KINDS
    from unimim.evaluation.gallery import ROWS

    assert tuple(ROWS) == KINDS
