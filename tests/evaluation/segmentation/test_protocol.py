"""The whole protocol: it learns what can be learned, goes on where it stopped, and refuses before it starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.distributed.worker import together
from tests.engine import toys
from unimim import weights
from unimim.evaluation.protocol import Setting, Subject
from unimim.evaluation.score import Score
from unimim.evaluation.segmentation.protocol import Segmentation
from unimim.evaluation.supervised import Preempted
from unimim.recipe import load
from unimim.training import build

SMALL = ("steps=8", "warmup_steps=2", "batch=4", "channels=8", "aux_channels=4", "size=32", "scale=[96,32]")
SHAPES = "shapes:size=24,train=12,val=5"


def subject(home: Path) -> Subject:
    recipe = toys.recipe()
    folder = home / "weights"
    if not folder.exists():
        weights.save(build(recipe), folder)
    return Subject(home, folder, recipe, weights.load_student(folder).eval())


def setting(data: str, **run: object) -> Setting:
    return Setting(data, toys.run(Path(), **run), False, None, lambda text: None)


def measure(home: Path, data: str, changes: Sequence[str] = (), **run: object) -> list[Score]:
    own = subject(home)
    protocol = Segmentation.of(own.recipe, (*SMALL, *changes))
    protocol.check(own, setting(data, **run))
    return protocol.measure(own, setting(data, **run))


def colours(root: Path) -> str:
    """Images of which the class of a pixel is its colour: id 1 is red, 2 is green, 3 is blue; 0 is black, and noise."""
    for split, count in (("training", 12), ("validation", 4)):
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        for number in range(count):
            draws = np.random.default_rng(number)
            ids = np.kron(draws.integers(0, 4, (3, 4)), np.ones((8, 8), int))
            pixels = np.array([[0, 0, 0], [220, 20, 20], [20, 220, 20], [20, 20, 220]])[ids]
            pixels = np.where((ids == 0)[..., None], draws.integers(0, 256, pixels.shape), pixels)
            Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / split / f"{number}.png")
            Image.fromarray(ids.astype(np.uint8)).save(root / "annotations" / split / f"{number}.png")
    return str(root)


ADE = ("num_classes=3", "zero_is_ignored=true")


def test_it_learns_what_colours_mean_from_a_tree_with_ignored_pixels(tmp_path: Path) -> None:
    more = (
        "steps=60",
        "optimization.lr=0.01",
        "optimization.layer_decay=1",
        "ratio=[1,1]",
        "scale=[32,24]",
        "channels=16",
    )
    data = colours(tmp_path / "data")
    (tmp_path / "data" / "annotations" / "validation" / "3.png").write_bytes(b"damaged")
    found = measure(tmp_path / "run", data, (*ADE, *more), log_every=60)
    scores = {score.metric: score for score in found}
    assert [*scores] == ["mIoU", "pixel accuracy", "mean accuracy"]
    assert scores["mIoU"].protocol.endswith("; 3 test images"), "those that could be read"
    assert scores["mIoU"].value > 65, "a third of the pixels are of each class"
    assert all(score.interval and score.interval[0] <= score.value <= score.interval[1] for score in found)
    (folder,) = (tmp_path / "run" / "eval").iterdir()
    rows = json.loads((folder / "classes.json").read_text())
    assert [row["class"] for row in rows] == [0, 1, 2]
    assert np.mean([row["iou"] for row in rows]) == pytest.approx(scores["mIoU"].value, abs=0.02)
    assert (folder / "segmenter.safetensors").is_file()


def test_a_stopped_run_goes_on_to_the_same_scores_and_a_finished_one_is_read(tmp_path: Path) -> None:
    whole = measure(tmp_path / "a", SHAPES)
    with pytest.raises(Preempted):
        measure(tmp_path / "b", SHAPES, stop_after=5)
    assert measure(tmp_path / "b", SHAPES) == whole
    (folder,) = (tmp_path / "a" / "eval").iterdir()
    (folder / "segmenter.safetensors").unlink()
    assert measure(tmp_path / "a", SHAPES) == whole
    assert not (folder / "segmenter.safetensors").exists(), "nothing was trained again"


def test_another_setting_is_another_folder(tmp_path: Path) -> None:
    words = [measure(tmp_path, SHAPES, more)[0].protocol for more in ((), ("from_scratch=true",))]
    assert words[0].startswith("mae-micro's weights; UperNet, 8 steps of 4 crops of 32 pixels from 12 images")
    assert words[1].startswith("start values;")
    assert len([*(tmp_path / "eval").iterdir()]) == 2


@pytest.mark.parametrize(
    ("changes", "run", "problem"),
    [
        (("size=34",), {}, "no multiple of the student's patch of 4"),
        (("size=16",), {}, "without a pixel"),
        ((), {"micro_batch": 2}, "normalizes over the whole batch"),
        (("batch=64",), {}, "make no batch of 64"),
        (("student.dropout=1",), {}, "has no dropout"),
        (("optimization.warmup_epochs=1",), {}, "set warmup_steps"),
        (("ratio=[0,2]",), {}, "two numbers above 0"),
    ],
)
def test_what_cannot_be_is_refused_before_it_starts(
    changes: Sequence[str], run: dict[str, object], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=problem):
        measure(tmp_path, SHAPES, changes, **run)
    assert not (tmp_path / "eval").exists()


def test_folders_must_be_told_how_many_classes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"segmentation\.num_classes.*ADE20K has 150"):
        measure(tmp_path / "run", colours(tmp_path / "data"))


def test_settings_are_beits_by_size_and_small_for_small_images() -> None:
    base = Segmentation.of(load("beit"))
    assert (base.size, base.scale, base.steps, base.warmup_steps, base.batch) == (512, (2048, 512), 160_000, 1500, 16)
    assert (base.optimization.lr, base.optimization.layer_decay, base.optimization.shape) == (5e-5, 0.75, "linear")
    assert base.student == {"drop_path": 0.15, "relative_positions": "per_block"}
    large = Segmentation.of(load("beit", ["student.size=large"]))
    assert (large.optimization.lr, large.optimization.layer_decay, large.student["drop_path"]) == (4e-5, 0.9, 0.2)
    micro = Segmentation.of(load("mae-micro"))
    assert (micro.size, micro.scale, micro.aux_channels) == (64, (256, 64), 64)


def test_the_rate_rises_over_its_steps_and_falls_to_nothing(tmp_path: Path) -> None:
    protocol = Segmentation.of(toys.recipe(), ("steps=40", "warmup_steps=10", "batch=4"))
    plan = protocol.plan(toys.Noise(26))
    peak = protocol.optimization.lr
    assert plan.total_steps == 40
    assert [plan.rate(step) / peak for step in (0, 5, 10, 25, 40)] == pytest.approx([0, 0.5, 1, 0.5, 0])


@pytest.mark.slow
def test_two_processes_share_the_test_images(tmp_path: Path) -> None:
    subject(tmp_path)
    together(measure, tmp_path, SHAPES)
    (folder,) = (tmp_path / "eval").iterdir()
    found = json.loads((folder / "classes.json").read_text())
    one = measure(tmp_path / "one", SHAPES)
    assert "5 test images" in one[0].protocol == json.loads((folder / "scores.json").read_text())[0]["protocol"]
    (folder,) = (tmp_path / "one" / "eval").iterdir()
    assert [row["pixels"] for row in found] == [
        row["pixels"] for row in json.loads((folder / "classes.json").read_text())
    ]
