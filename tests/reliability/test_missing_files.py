"""Images that vanish while a run reads them: few are replaced, by a rule; many stop the run with a list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unimim.engine.data import ImageSource, TooManyBadImages, open_source
from unimim.engine.data.quarantine import MAX_BAD

from ..engine import toys
from ..engine.test_loop import losses, state, trained

NUM_IMAGES = 200
STEPS = 2 * NUM_IMAGES // 8


def images(folder: Path) -> ImageSource:
    """NUM_IMAGES files of noise for training, and one for validation."""
    rng = np.random.default_rng(0)
    for split, count in (("train", NUM_IMAGES), ("val", 1)):
        (folder / split).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / f"{number:03d}.png")
    return open_source(str(folder))


class Vanishing:
    """A source whose images `lost` are deleted when its image number `reads` is read."""

    def __init__(self, source: ImageSource, lost: list[int], reads: int) -> None:
        self.source, self.lost, self.reads = source, lost, reads

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> torch.Tensor:
        self.reads -= 1
        if self.reads == 0:
            for number in self.lost:
                Path(self.source.name(number)).unlink()
        return self.source.read(index)


def listed(out: Path) -> list[str]:
    return [line.split("\t")[0] for line in (out / "skipped_images.txt").read_text().splitlines()]


def drawn(share: float) -> list[int]:
    return sorted(np.random.default_rng(1).permutation(NUM_IMAGES)[: round(share * NUM_IMAGES)].tolist())


def test_deleted_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = toys.recipe("mae-micro", "epochs=2")

    # Three of a hundred vanish in the first epoch: the run ends, and lists them.
    source, lost = images(tmp_path / "few"), drawn(0.03)
    _, outcome = trained(recipe, tmp_path / "during", Vanishing(source, lost, 90), skip_bad_images=True)
    finished = outcome.status == "done"
    names = {source.name(index) for index in lost}
    assert sorted(listed(tmp_path / "during")) == sorted(names), "each once"

    # They are replaced by the same images in a whole run, in one with workers, and in an interrupted one.
    whole, _ = trained(recipe, tmp_path / "whole", source, skip_bad_images=True)
    _, first = trained(recipe, tmp_path / "parts", source, skip_bad_images=True, stop_after=STEPS // 3, workers=2)
    parts, second = trained(recipe, tmp_path / "parts", source, skip_bad_images=True)
    assert (first.status, second.status) == ("preempted", "done")
    equal = losses(tmp_path / "whole") == losses(tmp_path / "parts") and all(
        torch.equal(value, state(parts)[key]) for key, value in state(whole).items()
    )
    assert (tmp_path / "whole" / "skipped_images.txt").read_text() == (
        tmp_path / "parts" / "skipped_images.txt"
    ).read_text()

    # One of ten vanishes: the run stops and says which.
    source, many = images(tmp_path / "many"), drawn(0.1)
    with pytest.raises(TooManyBadImages, match=r"11 of 200 images cannot be read \(5\.5%\).*\n  .*png: ") as caught:
        trained(recipe, tmp_path / "stopped", Vanishing(source, many, 40), skip_bad_images=True)
    stopped = listed(tmp_path / "stopped")
    assert {*stopped} <= {source.name(index) for index in many}
    assert len(stopped) == len({*stopped})
    assert str(tmp_path / "stopped" / "skipped_images.txt") in str(caught.value)

    line = (
        f"deleted {len(lost) / NUM_IMAGES:.0%}, epoch finished {finished}, replaced by a deterministic rule, "
        f"resume bitwise equal {equal}; deleted {len(many) / NUM_IMAGES:.0%} -> stopped with a list of {len(stopped)}"
    )
    with capsys.disabled():
        print(f"\n{line}")
    assert line == (
        "deleted 3%, epoch finished True, replaced by a deterministic rule, resume bitwise equal True; "
        "deleted 10% -> stopped with a list of 11"
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_where_nothing_can_be_read_a_run_stops_at_once(tmp_path: Path, workers: int) -> None:
    source = toys.Noise(200, bad=tuple(range(200)))
    with pytest.raises(TooManyBadImages, match=r"of 200 images cannot be read"):
        trained(toys.recipe(), tmp_path / "run", source, skip_bad_images=True, workers=workers)
    # each of the first batch's eight images looked no further than the limit
    assert len(listed(tmp_path / "run")) <= 8 * (MAX_BAD * 200 + 1)


def test_a_continued_run_stops_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    source = toys.Noise(200, bad=tuple(range(0, 200, 10)))
    recipe = toys.recipe("mae-micro", "epochs=2")
    with pytest.raises(TooManyBadImages):
        trained(recipe, tmp_path / "whole", source, skip_bad_images=True)
    trained(recipe, tmp_path / "parts", source, skip_bad_images=True, stop_after=8)
    with pytest.raises(TooManyBadImages):
        trained(recipe, tmp_path / "parts", source, skip_bad_images=True)
    assert listed(tmp_path / "parts") == listed(tmp_path / "whole")


def test_a_teacher_is_fitted_to_replaced_images(tmp_path: Path) -> None:
    """Learning a codebook reads images before the first step: bad ones must not stop it."""
    _, outcome = trained(toys.recipe("beit-micro"), tmp_path, toys.Noise(60, bad=(3, 40)), skip_bad_images=True)
    assert outcome.status == "done"
    assert sorted(listed(tmp_path)) == ["noise/3.png", "noise/40.png"]
