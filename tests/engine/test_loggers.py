"""Loggers: what they are told, in which order, and that they cannot end a training."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from unimim import Logger, plugins
from unimim.engine.run import Run
from unimim.registry import Plugins
from unimim.training import train_recipe

from . import toys

DATA = "shapes:size=16,train=16,val=10"


class Diary(Logger):
    """Keeps every call."""

    calls: ClassVar[list[tuple[Any, ...]]] = []

    def open(self, folder: Path, record: Mapping[str, Any], step: int) -> None:
        self.calls.append(("open", folder, record["hash"], step))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.calls.append(("scalars", step, dict(values)))

    def close(self) -> None:
        self.calls.append(("close",))


class Failing(Diary):
    """Raises at the third line."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        super().scalars(step, values)
        if step == 3:
            raise ConnectionError("no [network]")


def run(out: Path, *loggers: str, **more: Any) -> Run:
    return Run(out=out, device="cpu", workers=0, log_every=1, loggers=loggers, **more)


@pytest.fixture(autouse=True)
def empty() -> None:
    Diary.calls.clear()


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_logger_gets_the_lines_of_the_log_and_the_step_it_goes_on_from(register: Any, tmp_path: Path) -> None:
    register(loggers={"diary": Diary})
    recipe = toys.recipe()
    train_recipe(recipe, DATA, run(tmp_path, "diary", stop_after=2), quiet=True)
    assert Diary.calls[0] == ("open", tmp_path, recipe.hash, 0)
    assert [(step, values) for _, step, values in Diary.calls[1:-1]] == [
        (row["step"], {name: value for name, value in row.items() if name != "step"}) for row in rows(tmp_path)
    ]
    assert Diary.calls[-1] == ("close",)
    Diary.calls.clear()
    train_recipe(recipe, DATA, run(tmp_path, "diary"), quiet=True)
    assert Diary.calls[0] == ("open", tmp_path, recipe.hash, 2)
    assert [call[1] for call in Diary.calls[1:-1]] == [3, 4, 5, 6]


def test_a_logger_that_fails_is_dropped_once_and_changes_nothing(
    register: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register(loggers={"failing": Failing, "diary": Diary})
    train_recipe(toys.recipe(), DATA, run(tmp_path / "with", "failing", "diary"))
    assert capsys.readouterr().err.count("logger Failing is dropped: ConnectionError: no [network]") == 1
    assert [call[1] for call in Diary.calls if call[0] == "scalars"] == [1, 1, 2, 2, 3, 3, 4, 5, 6]
    assert len([call for call in Diary.calls if call == ("close",)]) == 1
    train_recipe(toys.recipe(), DATA, run(tmp_path / "without"), quiet=True)
    with_it, without = ([row["loss"] for row in rows(tmp_path / name)] for name in ("with", "without"))
    assert with_it == without


def test_a_logger_is_told_when_the_training_fails(register: Any, tmp_path: Path) -> None:
    register(loggers={"diary": Diary})
    hot = ["optimization.lr=1e30", "optimization.clip_norm=null", "optimization.warmup_epochs=0"]
    with pytest.raises(RuntimeError, match="not a number"):
        train_recipe(toys.recipe("mae-micro", *hot), DATA, run(tmp_path, "diary"), quiet=True)
    assert Diary.calls[-1] == ("close",)


def test_only_loggers_are_loggers() -> None:
    from types import SimpleNamespace

    from unimim import hookimpl

    row = Plugins().register(SimpleNamespace(unimim_loggers=hookimpl(lambda: {"path": Path})), "bad")
    assert "must be a subclass of unimim.Logger" in row.problem


def test_tensorboard_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"pip install 'unimim\[tensorboard\]'"):
        plugins()["loggers"]["tensorboard"]()


def test_tensorboard_holds_the_scalars(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_recipe(toys.recipe(), DATA, run(tmp_path, "tensorboard"), quiet=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    seen = {event.step: event.value for event in events.Scalars("loss")}
    assert seen == pytest.approx({row["step"]: row["loss"] for row in rows(tmp_path)})
