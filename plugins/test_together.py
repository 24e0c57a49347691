"""All plugins of this repository at once: what each must have, and Table 1 as the paper prints it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unimim import Recipe, load, plugins
from unimim.engine.run import Run
from unimim.provenance import source_of
from unimim.recipe import leaves
from unimim.recipes.micro import TEACHER
from unimim.recipes.paper import TABLE1, Row, place
from unimim.training import train_recipe

FOLDERS = sorted(path.parent for path in Path(__file__).parent.glob("*/pyproject.toml"))
BROUGHT = [name for name, entry in plugins()["recipes"].entries.items() if entry.plugin.startswith("unimim-")]
ROWS = [recipe for recipe in map(load, plugins()["recipes"]) if recipe.row]

ALIGNMENT = "the paper leaves out CAE's second term, which aligns the predicted latents with the encoder's own"
MATCH = "the paper leaves out what SplitMask's InfoNCE compares with: what the student says of the image's other half"
DIFFERENCES = {
    ("vit-mpp", "loss"): ("CrossEntropy", "the paper writes N/A; a class of colour is predicted"),
    ("ge2ae", "head"): ("Decoder", "two decoders, one a term; equal labels are written once"),
    ("cae", "teacher"): ("dVAE & Self", ALIGNMENT),
    ("cae", "head"): ("Decoder & /", f"{ALIGNMENT}; its head hands on the student's tokens"),
    ("cae", "loss"): ("CrossEntropy & l2", ALIGNMENT),
    ("splitmask", "teacher"): ("Self & dVAE", MATCH),
    ("splitmask", "head"): ("/ & FC", "the decoder is in the student, since both terms read it"),
    ("maskfeat-dino", "norm"): ("l2-Norm", "the paper's parentheses: the cosine does it; written out, it is a norm"),
    ("extrema", "head"): (
        "Predictor",
        "the class attention is the encoder's, officially too; the head is an MLP on its token",
    ),
    ("extrema", "norm"): (
        "/",
        "the LayerNorms are inside projector and predictor; the target itself is not normalized",
    ),
    ("conmim", "norm"): (
        "/",
        "the BatchNorm is the last layer of the projector, on both sides; nothing comes after it",
    ),
    ("mvp", "norm"): ("l2-Norm", "the paper's parentheses: the cosine does it; written out, it is a norm"),
    ("sim", "norm"): (
        "LayerNorm",
        "the paper names the BatchNorms inside the head's blocks; the target's norm is LayerNorm",
    ),
}
"""(recipe, cell): what our table prints instead of the paper's, and why."""


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_plugin_has_a_readme_tests_and_is_installed_without_problems(folder: Path) -> None:
    assert (folder / "README.md").read_text().startswith(f"# {folder.name}\n")
    assert list((folder / "tests").glob("test_*.py"))
    (row,) = [plugin for plugin in plugins().loaded if plugin.name == folder.name]
    assert row.problem == ""
    assert folder.name in (folder.parent / "README.md").read_text(), "name it in the table of plugins/README.md"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_plugin_imports_the_public_parts_of_the_core_alone(folder: Path) -> None:
    public = ("unimim", "unimim.layers", "unimim.importers", "unimim.recipes", "unimim.recipes.micro", "unimim.testing")
    own = folder.name.replace("-", "_")
    for path in folder.rglob("*.py"):
        for module in re.findall(r"^\s*(?:from|import) (unimim[\w.]*)", path.read_text(), re.MULTILINE):
            assert module in public or module.split(".")[0] == own, f"{path} imports {module}"


@pytest.mark.parametrize("name", BROUGHT)
def test_every_number_of_a_plugins_recipe_has_a_source(name: str) -> None:
    recipe = load(name)
    for path, _ in leaves(recipe):
        assert source_of(path, recipe.provenance).startswith(("paper: ", "official code: ", "ours: ")), path


@pytest.mark.parametrize("recipe", ROWS, ids=lambda recipe: recipe.name)
def test_a_row_has_a_micro_size(recipe: Recipe) -> None:
    assert f"{recipe.name}-micro" in plugins()["recipes"]
    micro = load(f"{recipe.name}-micro").axes()
    assert {axis for axis, label in recipe.axes().items() if micro[axis] != label} <= {"teacher"}, (
        "a made teacher may differ"
    )


@pytest.mark.parametrize("recipe", ROWS, ids=lambda recipe: recipe.name)
def test_a_row_is_that_of_the_paper(recipe: Recipe) -> None:
    axes = recipe.axes()
    number = place(recipe.row, axes["teacher"])
    assert number < len(TABLE1), f"{recipe.row!r} is no method of the paper's table"
    for cell in Row._fields[1:]:
        expected = getattr(TABLE1[number], cell)
        ours, reason = DIFFERENCES.get((recipe.name, cell), (expected, ""))
        assert axes[cell] == ours, reason
        assert (ours == expected) == (not reason), f"{recipe.name}, {cell}: this difference is gone"


def test_no_row_stands_twice() -> None:
    places = [place(recipe.row, recipe.axes()["teacher"]) for recipe in ROWS]
    assert len(places) == len({*places})


ALONE = [
    name
    for name in BROUGHT
    if name.endswith("-micro") and all(TEACHER not in str(value) for _, value in leaves(load(name)))
]
"""Micro recipes that need no CLIP."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ALONE)
def test_a_run_that_was_stopped_and_continued_is_the_run_that_was_not(name: str, tmp_path: Path) -> None:
    """Momentum copies, codebooks, prototypes and running statistics included, bit by bit."""
    recipe = load(name, ["batch=4", "epochs=1", "optimization.warmup_epochs=0"])
    ends = {}
    for way, stops in (("whole", [None]), ("parts", [1, 3, None])):
        for stop in stops:
            run = Run(out=tmp_path / way, device="cpu", workers=0, stop_after=stop)
            train_recipe(recipe, "shapes:train=16,val=4", run, cached=True, quiet=True)
        ends[way] = load_file(tmp_path / way / "weights" / "objective.safetensors")
    assert ends["whole"].keys() == ends["parts"].keys()
    assert [key for key, tensor in ends["whole"].items() if not torch.equal(tensor, ends["parts"][key])] == []
