"""Laws of recipes as values: round trips, hashes, overrides."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from unimim import Recipe, RecipeError, load, official, ours, paper
from unimim.provenance import source_of, uncite
from unimim.recipe import DESCRIPTION, leaves, override

SMALL: dict[str, Any] = {
    "name": "small",
    "student": {"name": "vit", "image_size": 16, "patch_size": 4, "dim": 8, "depth": 2, "num_heads": 2},
    "mask": {"name": "random", "ratio": 0.5},
    "teacher": "pixel",
    "head": "fc",
    "loss": "l2",
    "optimization": {"lr": 1e-3},
    "batch": 4,
    "epochs": 1,
}
numbers = st.floats(0.1, 5)
changes = st.fixed_dictionaries(
    {},
    optional={
        "norm": st.sampled_from(["layer", {"name": "layer", "eps": 1e-3}, ["instance", "l2"], {"name": "l2"}]),
        "loss": st.sampled_from(["l1", {"name": "smooth_l1", "beta": 2}, {"name": "sum", "losses": [{"loss": "l2"}]}]),
        "where": st.sampled_from(["hidden", "visible", "all", "image"]),
        "weight": st.one_of(numbers, st.builds(dict, start=numbers, end=numbers, until=st.sampled_from([0.5, 1.0]))),
        "teacher": st.sampled_from(["pixel", {"name": "self", "layers": [0, 1], "layer_norm": "layer"}]),
        "views": st.sampled_from(["center", {"name": "crop", "scale": [0.1, 1], "jitter": 0.4}]),
        "seed": st.integers(0, 99),
        "batch": st.integers(1, 99),
        "title": st.text(max_size=8),
        "provenance": st.dictionaries(st.sampled_from(["batch", "terms.mim.norm"]), st.text(max_size=5)),
    },
)


@given(changes)
def test_a_recipe_survives_data_json_and_yaml(change: dict[str, Any]) -> None:
    recipe = load(SMALL | change)
    for copy in (
        Recipe.model_validate(recipe.data()),
        Recipe.model_validate_json(recipe.model_dump_json()),
        load(json.loads(json.dumps(recipe.data()))),
        load(yaml.safe_load(recipe.yaml())),
    ):
        assert copy == recipe
        assert copy.hash == recipe.hash
        assert copy.provenance == recipe.provenance


def test_a_yaml_file_is_the_recipe_it_was_written_from(tmp_path: Path) -> None:
    recipe = load("data2vec-micro")
    (tmp_path / "mine.yaml").write_text(recipe.yaml(), encoding="utf-8")
    assert load(tmp_path / "mine.yaml") == recipe


def shuffled(data: Any, reorder: Callable[[list[Any]], list[Any]]) -> Any:
    if isinstance(data, dict):
        return {key: shuffled(data[key], reorder) for key in reorder([*data])}
    return data


@given(changes, st.randoms(use_true_random=False))
def test_the_hash_does_not_see_the_order_of_keys(change: dict[str, Any], random: Any) -> None:
    recipe = load(SMALL | change)
    mixed = shuffled(recipe.data(), lambda keys: random.sample(keys, len(keys)))
    assert Recipe.model_validate(mixed).hash == recipe.hash


@given(st.text("aZ9é😀 -_", min_size=1, max_size=9), st.text(max_size=9), st.text(max_size=9))
def test_the_hash_does_not_see_descriptions(name: str, title: str, source: str) -> None:
    described = {"name": name, "title": title, "paper": title, "status": "verified", "row": title}
    assert {*described, "provenance"} == {*DESCRIPTION}
    assert load(SMALL | described | {"provenance": {"batch": source}}).hash == load(SMALL).hash


def test_ways_to_write_one_recipe_have_one_hash() -> None:
    named = {key: SMALL[key] for key in ("teacher", "head", "loss")}
    rest = {key: value for key, value in SMALL.items() if key not in (*named, "mask")}
    full = {key: {"name": value} for key, value in named.items()} | {"norm": {"name": "identity"}, "weight": 1}
    for written in (
        rest | {"masks": {"main": SMALL["mask"]}, "terms": {"mim": named}},
        rest | {"mask": SMALL["mask"], "views": "crop", "precision": "bfloat16"} | full,
        load(SMALL).data(),
    ):
        assert load(written).hash == load(SMALL).hash
        assert load(written) == load(SMALL)


def other(value: Any) -> list[Any]:
    """Values that may stand where `value` stands."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [new for new in (value * 2, value / 2, value + 1, value + 0.5) if new != value]
    if isinstance(value, list):
        scaled = [item * 0.9 for item in value if isinstance(item, float)]
        return [new for new in ([*reversed(value)], value[:-1], scaled, ["prefix"]) if new != value]
    words = [
        "replace",
        "drop",
        "learned",
        "sincos",
        "shared",
        "none",
        "qkv",
        "qv",
        "xavier",
        "truncated",
        "mlp",
        "block",
    ]
    words += [
        "live",
        "ema",
        "epoch_end",
        "epoch",
        "batch",
        "images",
        "tokens",
        "float32",
        "bfloat16",
        "bilinear",
        "visible",
        "l1",
        "layer",
    ]
    return [word for word in [*words, 0.5, "outside", "center", "cosine"] if word != value]


@pytest.mark.parametrize("name", ["mae-micro", "data2vec-micro", "beit-micro"])
def test_every_field_of_the_method_is_in_the_hash(name: str) -> None:
    recipe, tried, stuck = load(name), 0, []
    for path, value in leaves(recipe):
        for replacement in other(value):
            try:
                changed = load(recipe.data(), [f"{path}={json.dumps(replacement)}"])
            except RecipeError:
                continue
            tried += 1
            assert changed.hash != recipe.hash, f"{path}: {value} -> {replacement}"
            break
        else:
            stuck.append(path)
    assert tried > 40
    bound = ("name", "channels", "view", "masking", "count", "head", "head_dim", "region", "differentiable_target")
    assert all(path.endswith(bound) for path in stuck), "these cannot change alone, others can"


paths = st.sampled_from(
    ["student.depth", "batch", "optimization.lr", "mask.ratio", "loss.name", "student.drop_path", "seed"]
)
values = {"student.depth": 3, "batch": 9, "optimization.lr": 0.5, "mask.ratio": 0.25, "loss.name": "l1"}


@given(st.lists(st.tuples(paths, st.integers(1, 2)), max_size=5))
def test_assignments_are_made_in_order_and_the_input_is_left_alone(drawn: list[tuple[str, int]]) -> None:
    before = json.dumps(SMALL)
    wanted: dict[str, Any] = {}
    for path, half in drawn:
        value = values.get(path, 0)
        wanted[path] = value if isinstance(value, str) else value / half if isinstance(value, float) else value * half
    recipe = load(SMALL, [f"{path}={value}" for path, value in wanted.items()])
    assert json.dumps(SMALL) == before
    found = dict(leaves(recipe))
    for path, value in wanted.items():
        full = path.replace("mask.", "masks.main.").replace("loss.", "terms.mim.loss.")
        assert found[full] == value
        assert recipe.provenance[full] == "command line"
    again = load(recipe.data(), [f"{path}={value}" for path, value in wanted.items()])
    assert again == recipe


def test_naming_another_component_drops_the_fields_of_the_old_one() -> None:
    data = override(
        SMALL, ["mask.name=block", "mask.count=3", "mask.min_block=2", "loss.name=smooth_l1", "loss.beta=2"]
    )
    assert data["masks"] == {"main": {"name": "block", "count": 3, "min_block": 2}}
    assert data["terms"]["mim"]["loss"] == {"name": "smooth_l1", "beta": 2}
    assert override(data, ["loss.name=smooth_l1"])["terms"]["mim"]["loss"]["beta"] == 2, "the same name keeps them"
    assert override(data, ["loss=l1"])["terms"]["mim"]["loss"] == "l1"


def test_a_recipe_can_be_renamed() -> None:
    assert load("mae-micro", ["name=mine"]).hash == load("mae-micro").hash


def test_values_are_yaml() -> None:
    recipe = load(SMALL, ["norm=[instance, l2]", "student.layer_scale=null", "views={name: crop, scale: [0.3, 1]}"])
    assert recipe.axes()["norm"] == "InstanceNorm + l2-Norm"
    assert dict(leaves(recipe))["views.scale"] == [0.3, 1.0]


def test_with_several_terms_a_part_needs_its_term() -> None:
    two = {**SMALL, "terms": {name: {key: SMALL[key] for key in ("teacher", "head", "loss")} for name in ("a", "b")}}
    for key in ("teacher", "head", "loss"):
        del two[key]
    assert load(two, ["terms.b.loss=l1"]).axes()["loss"] == "l2 & l1"
    with pytest.raises(RecipeError, match=r"loss belong inside terms\.<name>"):
        load(two, ["loss=l1"])


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        (["student.depth"], r"'student.depth' is not key=value"),
        (["=3"], "is not key=value"),
        (["student=[1"], "student: .* is not a YAML value"),
        (["batch.size=3"], "'batch' is a value and has no fields"),
        (["student.deph=3"], r"student.deph: unknown field, did you mean 'depth'"),
        (["loss=l3"], r"unknown loss 'l3', did you mean 'l2'"),
        (["batch=0", "epochs=-1", "student.dim=7"], r"(?s)student: dim 7 .*batch: .*epochs: "),
        (["seed=-1"], "seed: "),
        (["student.patch_size=5"], "patch_size 5x5: the image is not whole patches"),
        (["norm.eps=.nan", "norm.name=layer", "norm.eps=.inf"], "finite number"),
    ],
)
def test_a_bad_assignment_is_named(assignments: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load(SMALL, assignments)


def test_citations_are_kept_beside_the_values() -> None:
    data, sources = uncite(
        {"lr": paper(1.5e-3, "Table 11"), "views": official({"scale": ours([0.2, 1.0], "small")}, "x.py")}
    )
    assert data == {"lr": 1.5e-3, "views": {"scale": [0.2, 1.0]}}
    assert sources == {"lr": "paper: Table 11", "views": "official code: x.py", "views.scale": "ours: small"}
    assert source_of("views.scale", sources) == "ours: small"
    assert source_of("views.ratio", sources) == "official code: x.py"
    assert source_of("lrs", sources) == "ours: default of the component"
