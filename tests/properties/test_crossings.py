"""Any crossing of the axes either trains or is refused before it is built, with the reason."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimim import RecipeError, load
from unimim.testing import check_recipe

SELF = {"name": "self", "decay": 0.5}
TEACHERS: list[dict[str, Any]] = [
    {"name": "pixel"},
    SELF,
    SELF | {"layers": [0, 1], "layer_norm": "layer"},
    SELF | {"layers": [1], "point": "mlp", "layer_norm": "instance"},
    SELF | {"head": "patches"},
    SELF | {"region": "hidden"},
    {"name": "self", "weights": "live"},
    {"name": "self", "weights": "live", "region": "hidden", "differentiable_target": True},
    {"name": "kmeans", "teacher": "pixel", "num_codes": 16, "iterations": 2},
]
NORMS: list[Any] = [
    "identity",
    "layer",
    {"name": "layer", "unbiased": True, "eps_place": "outside"},
    "instance",
    "batch",
]
NORMS += ["l2", ["layer", "l2"]]
LOSSES: list[Any] = ["l1", "l2", "smooth_l1", "cosine", "cross_entropy"]
LOSSES += [{"name": "sum", "losses": [{"loss": "l2"}, {"loss": "variance", "weight": 0.1}]}]
HEADS: list[Any] = ["fc", {"name": "decoder", "dim": 8, "depth": 1, "num_heads": 2}]
MASKS: list[dict[str, Any]] = [
    {"name": "none"},
    {"name": "random", "ratio": 0.5},
    {"name": "block", "ratio": 0.75, "min_block": 9},
    {"name": "block", "ratio": 0.6, "min_block": 2, "exact": True},
]
WHERES = ["hidden", "visible", "all", "all+class", "image"]

students = st.fixed_dictionaries(
    {
        "masking": st.sampled_from(["replace", "drop", "none"]),
        "positions": st.sampled_from(["learned", "sincos", "none"]),
        "relative_positions": st.sampled_from(["none", "shared", "per_block"]),
        "layer_scale": st.sampled_from([None, 0.1]),
        "qkv_bias": st.sampled_from(["qkv", "qv", "none"]),
        "class_token": st.booleans(),
        "num_registers": st.sampled_from([0, 2]),
        "final_norm": st.booleans(),
        "init": st.sampled_from(["xavier", "truncated"]),
    }
).map(lambda fields: {"name": "vit", "image_size": 16, "patch_size": 4, "dim": 8, "depth": 2, "num_heads": 2} | fields)
terms = st.fixed_dictionaries(
    {
        "teacher": st.sampled_from(TEACHERS),
        "norm": st.sampled_from(NORMS),
        "head": st.sampled_from(HEADS),
        "loss": st.sampled_from(LOSSES),
        "where": st.sampled_from(WHERES),
        "weight": st.sampled_from([1.0, {"start": 0.5, "end": 1.0}]),
    }
)
recipes = st.fixed_dictionaries(
    {
        "name": st.just("crossing"),
        "student": students,
        "mask": st.sampled_from(MASKS),
        "terms": st.dictionaries(st.sampled_from(["a", "b"]), terms, min_size=1),
        "views": st.sampled_from(["crop", "center"]),
        "reduction": st.sampled_from(["tokens", "images"]),
        "optimization": st.just({"lr": 1e-3}),
        "batch": st.just(4),
        "epochs": st.just(1),
    }
)


def faults(data: dict[str, Any]) -> set[str]:
    """What is wrong with a crossing, said independently of the validation; a word of each message that must come."""
    student, mask, found = data["student"], data["mask"], set()
    hides, exact = mask["name"] != "none", mask["name"] == "random" or mask.get("exact", False)
    if hides and student["masking"] == "none":
        found.add("cannot")
    if not hides and student["masking"] != "none":
        found.add("never trains")
    if hides and not exact and student["masking"] == "drop":
        found.add("same count")
    for term in data["terms"].values():
        discrete, loss_discrete = term["teacher"]["name"] == "kmeans", term["loss"] == "cross_entropy"
        if discrete != loss_discrete:
            found.add("compares")
        if discrete and term["norm"] != "identity":
            found.add("cannot normalize")
        if not hides and term["where"] == "hidden":
            found.add("empty")
        if not hides and term["teacher"].get("region") == "hidden":
            found.add("reads the mask")
        if term["head"] == "fc" and student["masking"] == "drop" and term["where"] not in ("visible", "image"):
            found.add("at hidden positions")
        if term["where"] in ("image", "all+class"):
            if discrete:
                found.add("ids of patches")
            if not student["class_token"] and not student["num_registers"]:
                found.add("has none")
    return found


def lacks_class_target(data: dict[str, Any]) -> bool:
    """A teacher without a class token is asked for it: only known when it answers."""
    return any(term["where"] == "all+class" and term["teacher"]["name"] == "pixel" for term in data["terms"].values())


def judge(data: dict[str, Any]) -> bool:
    """Check one crossing; True if it trained."""
    expected = faults(data)
    if expected:
        with pytest.raises(RecipeError) as refused:
            load(data)
        assert all(word in str(refused.value) for word in expected), expected
        return False
    recipe = load(data)
    if lacks_class_target(data):
        with pytest.raises(ValueError, match="class token"):
            check_recipe(recipe)
        return False
    check_recipe(recipe)
    return True


def mended(data: dict[str, Any]) -> dict[str, Any]:
    """The nearest crossing without faults."""
    student, hides = {**data["student"]}, data["mask"]["name"] != "none"
    if not hides:
        student["masking"] = "none"
    elif student["masking"] == "none" or (student["masking"] == "drop" and data["mask"] == MASKS[2]):
        student["masking"] = "replace"
    fixed = {}
    for name, term in data["terms"].items():
        term = {**term}
        if term["teacher"]["name"] == "kmeans":
            term |= {"loss": "cross_entropy", "norm": "identity"}
        elif term["loss"] == "cross_entropy":
            term["loss"] = "l2"
        if not hides and term["teacher"].get("region") == "hidden":
            term["teacher"] = SELF
        if term["head"] == "fc" and student["masking"] == "drop":
            term["head"] = HEADS[1]
        if not hides and term["where"] == "hidden":
            term["where"] = "all"
        prefix, vectors = student["class_token"] or student["num_registers"], term["teacher"]["name"] != "kmeans"
        if term["where"] in ("image", "all+class") and not (prefix and vectors):
            term["where"] = "all"
        if term["where"] == "all+class" and term["teacher"]["name"] == "pixel":
            term["where"] = "all"
        fixed[name] = term
    return data | {"student": student, "terms": fixed}


@settings(max_examples=80)
@given(recipes)
def test_a_crossing_that_does_not_fit_is_refused_with_every_reason(data: dict[str, Any]) -> None:
    judge(data)


@settings(max_examples=60)
@given(recipes.map(mended))
def test_a_crossing_that_fits_trains(data: dict[str, Any]) -> None:
    assert judge(data)
