"""key=value on the command line: every mistake becomes a sentence, and nothing else happens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimim.recipe import Recipe, RecipeError, load

KEYS = st.lists(
    st.sampled_from(
        [
            *("student", "teacher", "norm", "head", "loss", "mask", "masks", "main", "terms", "mim", "views", "weight"),
            *(
                "optimization",
                "lr",
                "batch",
                "provenance",
                "name",
                "depth",
                "layers",
                "decay",
                "start",
                "ratio",
                "0",
                "",
            ),
        ]
    ),
    min_size=1,
    max_size=4,
).map(".".join)
VALUES = st.sampled_from(
    [
        *(
            "1",
            "-1",
            "1e-3",
            "nan",
            "null",
            "true",
            "mae",
            "pixel",
            "self",
            "block",
            "l1",
            "[layer, l2]",
            "[1, [2]]",
            "{}",
        ),
        *(
            "{name: block}",
            "{name: [1]}",
            "{1: 2}",
            "2022-01-01",
            "!!python/name:os.system",
            "{",
            "",
            "[pixel]",
            "=",
            "1:2",
        ),
    ]
)
BASES = st.sampled_from(["mae-micro", "beit-micro", "data2vec-micro"])


def answer(source: str, assignments: list[str]) -> Recipe | list[str]:
    """The recipe, or what is wrong with it."""
    try:
        return load(source, assignments)
    except RecipeError as error:
        return error.problems


@given(BASES, st.lists(st.tuples(KEYS, VALUES).map("=".join), max_size=4))
def test_any_assignments_give_a_recipe_or_a_list_of_problems(base: str, assignments: list[str]) -> None:
    found = answer(base, assignments)
    if isinstance(found, Recipe):
        assert load(found.data()).hash == found.hash
    else:
        assert found
        assert all(isinstance(problem, str) and problem for problem in found)


@given(st.dictionaries(KEYS, VALUES, max_size=3), st.lists(st.tuples(KEYS, VALUES).map("=".join), max_size=2))
def test_any_data_gives_a_recipe_or_a_list_of_problems(data: dict[str, str], assignments: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:  # too little for a recipe
        load(data, assignments)
    assert caught.value.problems


def test_naming_another_component_drops_the_fields_and_sources_of_the_old_one() -> None:
    recipe = load("maskdistill-micro", ["loss=l1", "mask=random"])
    assert recipe.data()["terms"]["mim"]["loss"] == {"name": "l1"}
    assert recipe.data()["masks"]["main"]["name"] == "random"
    assert [path for path in recipe.provenance if path.startswith("terms.mim.loss")] == ["terms.mim.loss"]
    assert recipe.provenance["masks.main"] == "command line"


def test_a_variant_can_be_named() -> None:
    before, after = load("mae-micro"), load("mae-micro", ["name=mine"])
    assert (after.name, after.hash) == ("mine", before.hash)


@pytest.mark.parametrize(
    ("assignment", "problem"),
    [
        ("lr=1", "lr: unknown field, did you mean 'optimization.lr'?"),
        ("depth=1", "depth: unknown field, did you mean 'student.depth'?"),
        ("optimization.warmup_epoch=1", "optimization.warmup_epoch: unknown field, did you mean 'warmup_epochs'?"),
        ("mask.ration=1", "masks.main.ration: unknown field, did you mean 'ratio'?"),
        ("head.name=nothing", "terms.mim.head: unknown head 'nothing'; registered: decoder, fc"),
        ("teacher.wide=1", "terms.mim.teacher.wide: unknown field; known: mean, name, std"),
        ("weight={start: 1, end: 0, unitl: 1}", "terms.mim.weight.unitl: unknown field, did you mean 'until'?"),
        ("batch=many", "batch: input should be a valid integer, unable to parse string as an integer, got 'many'"),
        ("student={name: vit, size: tiny, hue: 2}", "student.hue: unknown field; known: "),
        ("epochs={", "epochs: '{' is not a YAML value (line 1, column 2: while parsing a flow node;"),
        ("batch.size=2", "batch.size: 'batch' is a value and has no fields"),
        ("=2", "'=2' is not key=value, e.g. student.depth=6"),
    ],
)
def test_what_a_mistake_is_told(assignment: str, problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load("mae-micro", [assignment])
    assert caught.value.where == "mae-micro"
    assert any(found.startswith(problem) for found in caught.value.problems), caught.value.problems


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        load("mae-micro", ["a", "b", "loss=l9", "epochs=0", "=1"])
    assert len(caught.value.problems) == 5


def test_a_recipe_is_data_that_loads_again() -> None:
    recipe = load("mae-micro", ["loss=l1"])
    assert isinstance(recipe, Recipe)
    assert load(recipe.data()) == recipe
