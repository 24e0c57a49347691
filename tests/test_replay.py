"""A recorded run done again: identical here, and the first difference where there is one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from unimim import load
from unimim.engine.run import Run
from unimim.replay import Recorded, Replay, first_difference, replay
from unimim.training import train_recipe

from .engine import toys

DATA = "shapes:size=16,train=16,val=10"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps, logged at every second."""
    out = tmp_path_factory.mktemp("runs") / "recorded"
    train_recipe(toys.recipe(), DATA, Run(out=out, device="cpu", workers=0, log_every=2), quiet=True)
    return out


def changed(recorded: Path, out: Path, step: int, column: str, value: float) -> Path:
    """The record with another value in one place."""
    shutil.copytree(recorded, out)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rows = [{**row, column: value} if row["step"] == step else row for row in rows]
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


def test_a_replay_is_bitwise(recorded: Path, tmp_path: Path) -> None:
    assert replay(Recorded.read(recorded), tmp_path / "all") == Replay(6, (), None)
    assert replay(Recorded.read(recorded / "run.json"), tmp_path / "some", steps=5) == Replay(4, (), None)
    steps = [json.loads(line)["step"] for line in (tmp_path / "some" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4]


def test_the_first_difference_is_told(recorded: Path, tmp_path: Path) -> None:
    other = changed(recorded, tmp_path / "other", 4, "grad_norm", 2.0)
    other = changed(other, tmp_path / "both", 6, "loss", 1.0)
    record = json.loads((other / "run.json").read_text())
    record["versions"]["torch"], record["threads"] = "1.0", 1
    (other / "run.json").write_text(json.dumps(record))
    found = replay(Recorded.read(other), tmp_path / "again")
    assert found.difference is not None
    assert (found.difference.step, found.difference.column, found.difference.recorded) == (4, "grad_norm", 2.0)
    assert found.difference.relative == pytest.approx(abs(2 - found.difference.repeated) / 2)
    assert len(found.environment) == 1
    assert found.environment[0].startswith("versions torch: 1.0 -> ")


def test_pace_does_not_count_and_nan_equals_nan() -> None:
    row = {"step": 2, "loss": float("nan"), "seconds": 1.0, "images_per_s": 5.0, "old": 1.0}
    assert (
        first_difference([row], [{"step": 2, "loss": float("nan"), "seconds": 2.0, "images_per_s": 9.0, "new": 0.0}])
        is None
    )
    found = first_difference([row], [{**row, "loss": 1.0}])
    assert found is not None
    assert (found.column, found.relative) == ("loss", float("inf"))


def test_a_run_whose_recipe_was_changed_is_repeated_up_to_there(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = Run(out=out, device="cpu", workers=0, log_every=1)
    train_recipe(toys.recipe(), DATA, run.model_copy(update={"stop_after": 3}), quiet=True)
    train_recipe(load(toys.recipe().data(), ["loss=l1"]), DATA, run, quiet=True, allowed=["loss"])
    assert replay(Recorded.read(out), tmp_path / "again") == Replay(3, (), None)


def test_what_is_no_record_is_refused(recorded: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run\.json is not the record of a run \(FileNotFoundError"):
        Recorded.read(tmp_path)
    shutil.copytree(recorded, tmp_path / "empty")
    (tmp_path / "empty" / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="has logged no step"):
        Recorded.read(tmp_path / "empty")
    with pytest.raises(ValueError, match="is not empty"):
        replay(Recorded.read(recorded), recorded)
