"""A recipe that changed since the checkpoint: every field is free, needs a word, or is refused, and none changes silently."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from unimim import Recipe, load
from unimim.drift import FATAL, Change, differences, refused, undone
from unimim.engine.data.sources import open_source
from unimim.engine.run import Run
from unimim.recipe import DESCRIPTION
from unimim.training import data_record, held, train_recipe
from unimim.weights import load as load_weights

from ..engine import toys

DATA = "shapes:size=16,train=16,val=10"
Class = Literal["free", "named", "fatal"]

NUMBERS = {"epochs": 4.0, "batch": 4}
"""Values that leave something to train."""
WORDS = (
    "l1", "layer", "instance", "center", "bilinear", "all", "images", "bfloat16", "kmeans", "none", "block", "replace",
    "learned", "per_block", "q", "truncated", "xavier", "fc", "self", "outside", "added", "unverified", "other",
)  # fmt: skip
ONE_VALUE = {"student.name", "student.channels", "masks.main.name", "terms.mim.head.name", "terms.mim.view"}
"""Nothing else fits the rest of this recipe."""
SAME_RESULT = {"reduction": "means over images and over tokens are one where every image hides the same count"}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value and path != "provenance":
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}".lstrip("."))
    else:
        yield path, value


def others(path: str, value: Any) -> list[Any]:
    """Values to try in place of `value`."""
    if path in NUMBERS:
        return [NUMBERS[path]]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value * 2, value + 2]
    if isinstance(value, float):
        return [value * 0.1, value * 1.5] if value else [0.25]
    if isinstance(value, str):
        return [word for word in WORDS if word != value]
    if value is None:
        return [0.5, 1, [0.5], "other"]
    if isinstance(value, dict):
        return [{"seed": "other"}]
    return [[item * 0.9 for item in value] if value else ["prefix"]]


def changed(recipe: Recipe, path: str, value: Any) -> Recipe | None:
    """`recipe` with another value at `path`, if there is a valid one."""
    for other in others(path, value):
        try:
            found = load(recipe.data(), [f"{path}={json.dumps(other)}"])
        except ValueError:
            continue
        if dict(leaves(found.data())).get(path) != value:
            return found
    return None


def class_of(path: str) -> Class:
    if path.split(".")[0] in DESCRIPTION:
        return "free"
    return "fatal" if Change(path, 0, 1).fatal else "named"


def run_of(out: Path, **more: Any) -> Run:
    return Run(out=out, device="cpu", workers=0, log_every=1, **more)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_weights(out / "weights").state_dict()


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return toys.recipe("mae-micro", "optimization.warmup_epochs=2")


@pytest.fixture(scope="module")
def begun(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps that stands at step 2."""
    out = tmp_path_factory.mktemp("drift") / "begun"
    assert train_recipe(recipe, DATA, run_of(out, stop_after=2), quiet=True).step == 2
    return out


@pytest.fixture(scope="module")
def unchanged(recipe: Recipe, begun: Path) -> dict[str, torch.Tensor]:
    """What it ends with when nothing is changed."""
    out = begun.with_name("unchanged")
    shutil.copytree(begun, out)
    assert train_recipe(recipe, DATA, run_of(out), quiet=True).status == "done"
    return weights(out)


def test_no_field_changes_silently(
    recipe: Recipe, begun: Path, unchanged: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    images = data_record(DATA, open_source(DATA, "train"))
    counts = dict.fromkeys(("free", "named", "fatal"), 0)
    fixed, silent = set(), []
    for path, value in leaves(recipe.data()):
        other, kind = changed(recipe, path, value), class_of(path)
        if other is None:
            fixed.add(path)
            continue
        counts[kind] += 1
        if kind == "free":
            assert held(begun, other.data(), images)["status"] == "preempted"
            assert other.hash == recipe.hash, path
            continue
        with pytest.raises(ValueError, match="holds another run") as caught:
            held(begun, other.data(), images)
        assert f"\n  {path}: {value} -> " in str(caught.value)
        if kind == "fatal":
            with pytest.raises(ValueError, match="cannot change: ") as caught:
                held(begun, other.data(), images, [path])
            assert f"\n  {path}: {value} -> " in str(caught.value)
            continue
        whole = path.removesuffix(".name")
        out = begun.with_name(path)
        shutil.copytree(begun, out)
        assert train_recipe(other, DATA, run_of(out), quiet=True, allowed=[whole]).status == "done"
        record = json.loads((out / "run.json").read_text())
        said = {change["path"]: change for change in record["changed"]}
        assert said[path]["before"] == value
        assert said[path]["at_step"] == 2
        assert record["hash"] == other.hash
        after = weights(out)
        if path not in SAME_RESULT and all(torch.equal(tensor, after[key]) for key, tensor in unchanged.items()):
            silent.append(path)
        shutil.rmtree(out)
    assert fixed == ONE_VALUE
    assert min(counts.values()) > 5
    line = (
        f"fields {sum(counts.values())} ({counts['free']} free, {counts['named']} if named, {counts['fatal']} never), "
        f"silent changes {len(silent)}"
    )
    with capsys.disabled():
        print(f"\n{line}")
    assert not silent, silent


def test_a_run_may_change_freely(recipe: Recipe, begun: Path, unchanged: dict[str, torch.Tensor]) -> None:
    out = begun.with_name("another run")
    shutil.copytree(begun, out)
    run = Run(out=out, device="cpu", workers=1, log_every=3, checkpoint_minutes=1.0, keep=1)
    train_recipe(recipe, DATA, run, quiet=True)
    assert all(torch.equal(tensor, unchanged[key]) for key, tensor in weights(out).items())


def test_other_components_of_plugins_need_a_word_too() -> None:
    assert class_of("terms.extra.loss.temperature") == "named"
    assert class_of("views.anything") == "named"
    assert class_of("terms.extra.teacher.name") == "fatal"
    assert class_of("student.anything.deep") == "fatal"
    assert class_of("students") == class_of("seeds") == "named"


def test_what_may_change_is_named_as_it_is_set(recipe: Recipe) -> None:
    before, after = recipe.data(), load(recipe.data(), ["loss=smooth_l1", "optimization.lr=1e-4"]).data()
    changes = differences(before, after)
    assert [str(change) for change in changes] == [
        "terms.mim.loss.name: l2 -> smooth_l1",
        "terms.mim.loss.beta: None -> 1.0",
        f"optimization.lr: {recipe.optimization.lr} -> 0.0001",
    ]
    assert refused(changes, ["loss", "optimization"], after) == []
    assert len(refused(changes, ["loss"], after)) == 1
    assert len(refused(changes, ["terms.mim.loss.name", "optimization.lr"], after)) == 1
    assert refused([], ["loss"], after) == []  # the same command goes on with what it changed before
    with pytest.raises(ValueError, match=r"--allow-changed: 'optimization\.rl' is no field"):
        refused(changes, ["optimization.rl"], after)


def test_changes_can_be_undone(recipe: Recipe) -> None:
    after = load(recipe.data(), ["loss=smooth_l1", "optimization.lr=1e-4", "optimization.clip_norm=null"])
    changes = [vars(change) for change in differences(recipe.data(), after.data())]
    assert load(undone(after.data(), changes)).hash == recipe.hash


def test_a_finished_run_cannot_change_in_retrospect(recipe: Recipe, begun: Path) -> None:
    out = begun.with_name("done")
    shutil.copytree(begun, out)
    train_recipe(recipe, DATA, run_of(out), quiet=True)
    other = load(recipe.data(), ["loss=l1"])
    with pytest.raises(ValueError, match="stands at step 6, and with these changes the run ends at step 6"):
        train_recipe(other, DATA, run_of(out), quiet=True, allowed=["loss"])
    longer = load(recipe.data(), ["loss=l1", "epochs=4"])
    assert train_recipe(longer, DATA, run_of(out), quiet=True, allowed=["loss", "epochs"]).step == 8
    record = json.loads((out / "run.json").read_text())
    assert {change["path"]: change["at_step"] for change in record["changed"]} == {
        "terms.mim.loss.name": 6,
        "epochs": 6,
    }
    assert train_recipe(longer, DATA, run_of(out), quiet=True).step == 8
    assert json.loads((out / "run.json").read_text())["changed"] == record["changed"]


def test_every_reason_names_a_field_of_a_recipe(recipe: Recipe) -> None:
    paths = [path for path, _ in leaves(recipe.data())]
    for pattern in FATAL:
        assert any(Change(path, 0, 1).fatal == FATAL[pattern] for path in paths), pattern
