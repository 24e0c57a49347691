"""plugins/unimim-example as its user meets it: built and installed by pip, found by its entry point, trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .installed import pip_install, run

SOURCE = Path(__file__).parents[2] / "plugins" / "unimim-example"
TUTORIAL = SOURCE.parents[1] / "docs" / "tutorial-teacher.md"
FOUND = """
import json, sys
from unimim import plugins
row = plugins().loaded[-1]
listed = [plugins()["teachers"].entries["edges"].summary, plugins()["recipes"].entries["edges-micro"].summary]
print(json.dumps([row.name, row.version, row.file, dict(row.provides), row.problem, listed, "torch" in sys.modules]))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("example") / "site"
    pip_install(site, SOURCE)
    return site


def test_it_is_found_and_listed_without_importing_torch(site: Path) -> None:
    name, version, file, provides, problem, listed, torch = json.loads(
        run("-c", FOUND, site=site, allowed="unimim-example")
    )
    assert (name, version, problem) == ("unimim-example", "0.1.0", "")
    assert file == str(site / "unimim_example" / "__init__.py")
    assert provides == {"teachers": ["edges"], "recipes": ["edges-micro"]}
    assert listed[0].startswith("T_k(I) = ")
    assert listed[1] == "MaskDistill at micro size, taught by edge strengths."
    assert not torch


def test_the_command_line_shows_it_as_the_tutorial_does(site: Path) -> None:
    said = [" ".join(line.split()) for line in run("-m", "unimim", "plugins", site=site).splitlines()]
    shown = TUTORIAL.read_text().partition("$ unimim plugins\n")[2].partition("$ ")[0].splitlines()
    assert len(shown) == 3
    assert {" ".join(line.split()) for line in shown} <= set(said)


def test_its_own_tests_pass(site: Path) -> None:
    """They hold the contract of a teacher, one training step of edges-micro, and numbers of the formula."""
    tests = str(SOURCE / "tests")
    said = run("-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", tests, site=site, cwd=site.parent)
    assert "4 passed" in said


def test_it_trains_from_the_command_line_as_the_tutorial_says(site: Path) -> None:
    small = ["student.depth=1", "batch=16", "epochs=1", "precision=float32"]
    run(
        *["-m", "unimim", "train", "maskdistill-micro", "teacher=edges", *small],
        *["--data", "shapes:train=32,val=8", "--out", "run"],
        site=site,
        cwd=site.parent,
    )
    record = json.loads((site.parent / "run" / "run.json").read_text())
    assert record["status"] == "done"
    assert record["recipe"]["terms"]["mim"]["teacher"] == {"name": "edges", "num_directions": 8}
    assert record["plugins"]["unimim-example"] == "0.1.0"
