"""The shipped recipes: what they resolve to, where each number comes from, that they train, and how large they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from unimim import Recipe, TargetSpec, load, plugins
from unimim.provenance import source_of
from unimim.recipe import leaves
from unimim.testing import check_recipe

GOLDEN = Path(__file__).parent / "golden"
NAMES = [*plugins()["recipes"]]
MICRO = [name for name in NAMES if name.endswith("-micro")]
SMALL = {
    "vit": ["student.dim=16", "student.depth=2", "student.num_heads=2", "student.image_size=32"],
    "swin": ["student.dim=8", "student.depths=[1,1,2]", "student.num_heads=[1,1,2]", "student.window=4"],
}
SMALLER: dict[str, list[str]] = {
    "mae-micro": ["head.dim=8", "head.depth=1", "head.num_heads=2"],
    "beit-micro": ["teacher.num_codes=16"],
    "data2vec-micro": ["teacher.layers=[0, 1]"],
}
"""Overrides that bring each micro recipe to the size of a test."""


def test_every_recipe_has_a_golden_file_and_no_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == {*NAMES}, "run tests/recipes/regenerate.py"


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_resolves_to_its_golden_file(name: str) -> None:
    golden = (GOLDEN / f"{name}.yaml").read_text(encoding="utf-8")
    assert load(name).yaml() == golden, "if this is meant, run tests/recipes/regenerate.py and commit the difference"
    assert load(GOLDEN / f"{name}.yaml") == load(name)


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_a_source(name: str) -> None:
    recipe = load(name)
    for path, _ in leaves(recipe):
        source = source_of(path, recipe.provenance)
        assert source.startswith(("paper: ", "official code: ", "ours: ")), f"{path}: {source}"
        assert source.partition(": ")[2], f"{path}: says no place"
    unused = [path for path in recipe.provenance if not covers(path, recipe)]
    assert not unused, f"sources of fields that do not exist: {unused}"


def covers(path: str, recipe: Recipe) -> bool:
    """`path` is a leaf of the recipe, a mapping around one, or a shorthand that its component expands."""
    shorthand = {"student.size"}
    return path in shorthand or any(leaf == path or leaf.startswith(f"{path}.") for leaf, _ in leaves(recipe))


@pytest.mark.parametrize("name", NAMES)
def test_what_changes_the_result_most_is_cited_not_defaulted(name: str) -> None:
    recipe = load(name)
    axes = ["student", "terms.mim.teacher", "terms.mim.head", "terms.mim.loss", "masks.main"]
    for path in axes if recipe.terms["mim"].teacher.discrete else [*axes, "terms.mim.norm"]:
        assert any(key == path or key.startswith(f"{path}.") for key in recipe.provenance), f"{path} has no citation"
    for path in ("optimization.lr", "batch", "epochs", "precision"):
        assert source_of(path, recipe.provenance) != "ours: default of the component", path


@pytest.mark.parametrize("name", MICRO)
def test_a_micro_recipe_keeps_every_contract(name: str, tiny_clip: Path) -> None:
    overrides = SMALL[load(name).student.name] + SMALLER.get(name, [])
    if load(name).data()["terms"]["mim"]["teacher"]["name"] == "open_clip":
        overrides.append(f"teacher.model={tiny_clip}")
    check_recipe(name, overrides)


def count(*modules: torch.nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def student_and_head(recipe: Recipe, spec: TargetSpec) -> Any:
    """Built without memory; nothing of the teacher is loaded."""
    (term,) = recipe.terms.values()
    with torch.device("meta"):
        student = recipe.student.build()
        return student, term.head.build(student, term.loss.build(spec).out_dim)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in MICRO and load(name).student.name == "vit"])
def test_a_full_size_student_has_the_sizes_of_table_11(name: str) -> None:
    student, _ = student_and_head(load(name), TargetSpec(8, load(name).terms["mim"].teacher.discrete))
    config = student.config
    sizes = {768: (12, 12), 1024: (24, 16), 1280: (32, 16)}
    assert (config.depth, config.num_heads) == sizes[config.dim]
    assert student.geometry.grid == ((16, 16) if config.dim == 1280 else (14, 14))
    block = 12 * config.dim**2 + 13 * config.dim  # weights and biases of attention, MLP and two norms
    block += 2 * config.dim * (config.layer_scale is not None) - config.dim * (config.qkv_bias == "qv")
    assert count(student.blocks) == config.depth * block


@pytest.mark.parametrize(("name", "expected"), [("simmim", 89_874), ("simmim-vit", 86_257)])
def test_simmim_has_the_official_number_of_parameters(name: str, expected: int) -> None:
    """microsoft/SimMIM @ d3e29bc: 89.874 and 86.257 million, as the official models have."""
    student, head = student_and_head(load(name), TargetSpec(3072 if name == "simmim" else 768))
    assert round(count(student, head) / 1000) == expected


def test_mae_base_has_the_official_number_of_parameters() -> None:
    """facebookresearch/mae @ efb2a80, mae_vit_base_patch16: 111,907,840 with its fixed position tables, which are buffers
    here (197 x 768 and 197 x 512)."""
    student, head = student_and_head(load("mae"), TargetSpec(768))
    assert count(student, head) == 111_907_840 - 197 * 768 - 197 * 512


@pytest.mark.parametrize(("name", "expected"), [("beit", 91_965_776), ("maskdistill", 86_256_720)])
def test_beit_style_students_have_the_official_number_of_parameters(name: str, expected: int) -> None:
    """microsoft/unilm @ 768a3c8, beit_base_patch16_224_8k_vocab: 91,965,776 with a head of 8192 classes; the same student
    with a head of 768 numbers has (8192 - 768) x 769 fewer."""
    student, head = student_and_head(load(name), TargetSpec(8192 if name == "beit" else 768, name == "beit"))
    assert count(student, head) == expected
