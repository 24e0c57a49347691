"""Targets from files are those of the teacher, bit for bit, whatever happens to the files."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Register
from unimim import Objective, Recipe, Sampling
from unimim.engine.targets import TargetCache, open_cache
from unimim.training import build, plan_of

from . import toys
from .replaying import Mixing, ids, recipe
from .test_loop import losses, state, trained

IMAGES = toys.Noise(24)


@pytest.fixture(autouse=True)
def mixing(register: Register) -> None:
    register(teachers={"mixing": Mixing})


def train(value: Recipe, out: Path, **run: Any) -> tuple[list[float], dict[str, torch.Tensor], int]:
    """Losses, weights, and how often the teacher was asked."""
    before = Mixing.asked
    objective, _ = trained(value, out, IMAGES, **run)
    return losses(out), state(objective), Mixing.asked - before


def assert_same(one: Any, two: Any) -> None:
    assert one[0] == two[0]
    assert [name for name, value in one[1].items() if not torch.equal(value, two[1][name])] == []


@contextmanager
def opened(value: Recipe, folder: Path, said: list[str] | None = None, **run: Any) -> Iterator[TargetCache]:
    objective, options = build(value), toys.run(folder, target_cache=folder, **run)
    sampling = Sampling(value, objective.student.geometry, objective.renditions)
    cpu, say = torch.device("cpu"), [].append if said is None else said.append
    plan = plan_of(value, IMAGES)
    with open_cache(objective, IMAGES.fingerprint, sampling, plan, options, cpu, say) as cache:
        yield cache


def key(value: Recipe, folder: Path) -> str:
    with opened(value, folder) as cache:
        (rows,) = cache.rows.values()
        return rows.folder.name


@pytest.mark.parametrize(
    "more",
    [
        ("replay.precision=float32",),
        ("replay.precision=bfloat16", "precision=bfloat16"),
        ("replay.precision=int8", "where=all+class", "head=fc", "student.masking=replace"),
    ],
)
def test_filling_and_reading_equal_asking_bitwise(tmp_path: Path, more: tuple[str, ...]) -> None:
    value, cache = recipe(*more), {"target_cache": tmp_path / "cache"}
    online = train(value, tmp_path / "online")
    filling = train(value, tmp_path / "filling", **cache)
    reading = train(value, tmp_path / "reading", workers=2, **cache)
    assert_same(online, filling)
    assert_same(online, reading)
    assert (online[2], filling[2], reading[2]) == (12, 6 + 1, 0)  # once more to see how long a row is


def test_ids_of_a_fitted_codebook_are_kept_once_it_is_fitted(tmp_path: Path) -> None:
    online, filling = train(ids(), tmp_path / "0"), train(ids(), tmp_path / "1", target_cache=tmp_path / "cache")
    assert_same(online, filling)
    (folder,) = (path.parent for path in (tmp_path / "cache").glob("*/cache.json"))
    assert (folder / "targets").stat().st_size == 24 * 16  # 16 patches of one byte
    assert_same(online, train(ids(), tmp_path / "2", target_cache=tmp_path / "cache"))
    assert len([*(tmp_path / "cache").iterdir()]) == 2  # it, and the lock


def test_a_run_goes_on_with_what_is_there(tmp_path: Path) -> None:
    value, cache = recipe(), {"target_cache": tmp_path / "cache"}
    online = train(value, tmp_path / "online")
    begun = train(value, tmp_path / "parts", stop_after=4, **cache)
    going_on = train(value, tmp_path / "parts", **cache)
    assert_same(online, going_on)
    assert (begun[2], going_on[2]) == (4 + 1, 2)


def test_another_student_head_loss_and_mask_find_the_same_targets(tmp_path: Path) -> None:
    cache = {"target_cache": tmp_path / "cache"}
    train(recipe(), tmp_path / "one", **cache)
    for number, change in enumerate(("loss=l1 mask.ratio=0.5", "head=fc student.masking=replace student.depth=3")):
        assert train(recipe(*change.split()), tmp_path / str(number), **cache)[2] == 0


def test_of_two_teachers_only_the_one_that_is_lacking_is_asked(tmp_path: Path) -> None:
    cache = {"target_cache": tmp_path / "cache"}
    train(recipe(), tmp_path / "one", **cache)
    data = recipe().data()
    term = data["terms"]["mim"]
    data["terms"] = {"new": term | {"teacher": term["teacher"] | {"weights": 1}}, "old": term}
    both = Recipe.model_validate(data)
    online, filling = train(both, tmp_path / "online"), train(both, tmp_path / "filling", **cache)
    assert_same(online, filling)
    assert (online[2], filling[2]) == (24, 6 + 2)


def flip(folder: Path) -> None:
    data = bytearray((folder / "targets").read_bytes())
    data[len(data) // 2 + 3] ^= 4
    (folder / "targets").write_bytes(data)


HARM: dict[str, Callable[[Path], Any]] = {
    "a bit": flip,
    "a cut file": lambda folder: os.truncate(folder / "targets", 1000),
    "cut sums": lambda folder: os.truncate(folder / "sums", 30),
    "targets gone": lambda folder: (folder / "targets").unlink(),
    "no json": lambda folder: (folder / "cache.json").write_text("{"),
    "other json": lambda folder: (folder / "cache.json").write_text('{"targets": [], "layout": {"tokens": 3}}'),
}


def test_harmed_files_never_change_the_losses(tmp_path: Path) -> None:
    value, cache = recipe("epochs=1", "replay.crops=1"), tmp_path / "cache"
    online = train(value, tmp_path / "online")
    train(value, tmp_path / "first", target_cache=cache)
    (folder,) = (path.parent for path in cache.glob("*/lock"))
    for number, (what, harm) in enumerate(HARM.items()):
        harm(folder)
        harmed = train(value, tmp_path / f"{number}", target_cache=cache)
        assert_same(online, harmed)
        assert harmed[2] > 0, what
    healed = train(value, tmp_path / "healed", target_cache=cache)
    assert_same(online, healed)
    assert healed[2] == 0


def test_a_full_disk_and_a_folder_that_cannot_be_are_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = recipe("epochs=2")
    online = train(value, tmp_path / "online")
    (tmp_path / "file").touch()
    assert_same(online, train(value, tmp_path / "0", target_cache=tmp_path / "file" / "cache"))
    said: list[str] = []
    with opened(value, tmp_path / "file" / "cache", said) as cache:
        assert not cache.rows
    assert len(said) == 1
    assert said[0].startswith("target cache not opened: ")

    def full(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    assert_same(online, train(value, tmp_path / "1", target_cache=tmp_path / "cache"))
    said.clear()
    objective = build(value)
    sampling = Sampling(value, objective.student.geometry, objective.renditions)
    with opened(value, tmp_path / "cache", said) as cache:
        for index in range(2):
            batch = cache.complete(sampling.collate([sampling(IMAGES.read(index), 0, index)]))
            assert (len(batch.targets), len(said)) == (1 - index, 2)  # then the objective asks
    assert "not written: [Errno 28] No space left on device; training goes on without" in said[1]


def test_what_a_key_stands_for(tmp_path: Path) -> None:
    same = ("loss=l1", "mask.ratio=0.5", "student.drop_path=0.1", "epochs=9", "optimization.lr=1e-5", "batch=4")
    assert len({key(recipe(change), tmp_path) for change in (*same, "name=other")}) == 1
    changes = ("seed=1", "views.scale=[0.5,1.0]", "replay.crops=3", "replay.precision=int8", "precision=bfloat16")
    changes += ("student.patch_size=8", "teacher.weights=1", "teacher.dim=5", "name=the first")
    keys = {key(recipe(change), tmp_path) for change in changes}
    assert len(keys) == len(changes)
    assert len([*tmp_path.glob("*/cache.json")]) == len(changes)


def test_other_weights_of_one_config_are_another_key(tmp_path: Path) -> None:
    with opened(recipe(), tmp_path / "cache") as cache:
        (before,) = cache.rows.values()
    draw, Mixing.__init__ = Mixing.__init__, lambda self, *more: (draw(self, *more), self.weight.add_(1))[0]  # type: ignore[method-assign]
    try:
        assert key(recipe(), tmp_path / "cache") != before.folder.name
    finally:
        Mixing.__init__ = draw  # type: ignore[method-assign]


def test_the_size_is_told_and_those_opened_longest_ago_make_room(tmp_path: Path) -> None:
    said: list[str] = []
    with opened(recipe(), tmp_path, said) as cache:
        (rows,) = cache.rows.values()
    row = 2 * (16 * 6 + 6) + 4 * 16  # bfloat16 vectors of patches and image; float32 saliency
    size = 48 * (row + 4) + (rows.folder / "cache.json").stat().st_size
    assert said[0].startswith(f"target cache {rows.folder}: 48 targets of {row} bytes = 1.31e-05 GB; 0 present, ")
    keys = [rows.folder.name, *(key(recipe(f"seed={seed}"), tmp_path) for seed in (1, 2))]
    for age, name in enumerate(keys):
        os.utime(tmp_path / name / "cache.json", (age, age))
    assert key(recipe(), tmp_path) == keys[0]  # the oldest, and now the newest
    limit = {"target_cache_gb": 3.2 * size / 1e9}
    with ExitStack() as held:
        held.enter_context(opened(recipe("seed=1"), tmp_path))
        os.utime(tmp_path / keys[1] / "cache.json", (0, 0))
        with opened(recipe("seed=3"), tmp_path, said, **limit) as cache:
            assert f"target cache {tmp_path / keys[2]} makes room" in said[1]
            assert {path.parent.name for path in tmp_path.glob("*/lock")} == {*keys[:2], cache_name(cache)}
            with (
                pytest.raises(
                    ValueError, match=r"48 targets of 268 bytes = 1\.31e-05 GB does not fit: run\.target_cache_gb"
                ),
                opened(recipe("seed=4"), tmp_path, target_cache_gb=1.5 * size / 1e9),
            ):
                pass
            assert (tmp_path / keys[0]).exists()  # nothing is removed for what will not fit
    with pytest.raises(ValueError, match="does not fit"), opened(recipe("replay.crops=9"), tmp_path, **limit):
        pass


def cache_name(cache: TargetCache) -> str:
    (rows,) = cache.rows.values()
    return rows.folder.name


def test_a_disk_too_small_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"GB does not fit: the disk has .* left; raise the limit, lower replay\.crops"),
        opened(
            recipe("replay.crops=1000000", "student.image_size=64", "teacher.dim=8192"), tmp_path, target_cache_gb=1e9
        ),
    ):
        pass
    assert not [*tmp_path.glob("*/targets")]


def test_a_cache_in_use_is_locked_until_its_run_is_over(tmp_path: Path) -> None:
    with opened(recipe(), tmp_path) as cache:
        path = tmp_path / cache_name(cache) / "lock"
        with path.open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    told = json.loads((path.parent / "cache.json").read_text())
    assert told["targets"]["teacher"]["name"] == "mixing"
    assert (told["rows"], told["targets"]["images"]) == (48, "noise-24")


def test_a_recipe_that_replays_nothing_has_no_cache(tmp_path: Path) -> None:
    with opened(toys.recipe(), tmp_path / "cache") as cache:
        assert not cache.rows
    assert not (tmp_path / "cache").exists()


def test_an_objective_takes_what_a_batch_brings_and_asks_for_the_rest() -> None:
    value = recipe("replay.precision=int8")
    objective = Objective(value)
    sampling = Sampling(value, objective.student.geometry, objective.renditions)
    batch = sampling.collate([sampling(IMAGES.read(index), 3, index) for index in range(4)])
    assert batch.crop == 1
    (name,) = objective.replayed()
    assert name == "mim/main"
    raw = objective.teachers["mim"](batch.views["main"])
    asked = objective.ask(batch)[name]
    assert not torch.equal(raw.tokens, asked.tokens)
    assert torch.equal(objective.predictions(batch)["mim"][0].dense, asked.tokens)
