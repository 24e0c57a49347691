"""What holds for every task: settings that are whole for every recipe, that round-trip, and whose changes change the place."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from tests.evaluation.test_heads import setting, subject
from unimim import load, plugins
from unimim.evaluation import PROTOCOLS, protocol_of

CHANGES = {
    "knn": "k=[5]",
    "linear": "seed=3",
    "linear-mae": "epochs=3",
    "linear-beit": "epochs=3",
    "fewshot": "steps=7",
    "finetune": "smoothing=0.2",
    "segmentation": "steps=7",
    "robustness": "batch=7",
    "shape-bias": "batch=7",
    "cost": "batch=7",
}


@pytest.mark.parametrize("task", PROTOCOLS)
def test_settings_are_whole_for_every_recipe_and_round_trip(task: str) -> None:
    kind = protocol_of(task)
    assert kind.task == task
    assert inspect.getdoc(kind)
    for name in plugins()["recipes"]:
        settings = kind.of(load(name))
        assert kind.model_validate_json(settings.model_dump_json()) == settings
        changed = kind.of(load(name), (CHANGES[task],))
        assert changed != settings
    with pytest.raises(ValueError, match=f"{task}.nonsense: no such setting"):
        kind.of(load("mae"), ("nonsense=1",))


def test_what_changes_a_result_changes_where_it_is_kept(tmp_path: Path) -> None:
    measured = subject(tmp_path)
    for task, change in CHANGES.items():
        kind = protocol_of(task)
        places = {
            measured.place(kind.of(measured.recipe), "images"),
            measured.place(kind.of(measured.recipe), "other images"),
            measured.place(kind.of(measured.recipe, (change,)), "images"),
        }
        assert len(places) == 3, task


def test_features_are_read_once_for_all_tasks_that_read_alike(tmp_path: Path) -> None:
    said: list[str] = []
    measured, how = subject(tmp_path), setting(tmp_path, said)
    for task in ("knn", "linear"):
        protocol_of(task).of(measured.recipe).measure(measured, how)
    assert said == ["reading features of 40 images by the student", "reading features of 20 images by the student"]
    protocol_of("linear").of(measured.recipe, ("features.block=0",)).measure(measured, how)
    assert len(said) == 4
