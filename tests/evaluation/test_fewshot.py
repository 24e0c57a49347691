"""Few-shot: fixed draws, smaller k inside larger, a rate that test images never choose."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.evaluation.test_heads import setting, subject
from unimim.evaluation.features import Features
from unimim.evaluation.fewshot import FewShot, draw
from unimim.evaluation.score import mean_over_seeds


def test_draws_are_fixed_by_seed_and_nested(tmp_path: Path) -> None:
    source = setting(tmp_path).open("train")
    drawn = draw(source, 4, seed=1)
    assert drawn == draw(source, 4, seed=1) != draw(source, 4, seed=2)
    assert [own[:2] for own in drawn] == draw(source, 2, seed=1)
    assert all({source.label(place) for place in own} == {label} for label, own in enumerate(drawn))


def test_separable_classes_are_learned_from_two_images_each() -> None:
    centres = torch.eye(3).repeat_interleave(2, 0)
    train = Features(centres + 0.01 * torch.randn(6, 3), torch.arange(3).repeat_interleave(2), "made")
    test = Features(torch.eye(3), torch.arange(3), "made")
    for standard in (False, True):
        assert FewShot(k=(2,)).accuracy(train, test, 2, standard, "cpu") == 1.0


def test_scores_and_index_files(tmp_path: Path) -> None:
    measured, how = subject(tmp_path), setting(tmp_path)
    protocol = FewShot.of(measured.recipe, ("k=[2,3]", "seeds=[0,1]", "steps=5"))
    protocol.check(measured, how)
    scores = protocol.measure(measured, how)
    assert [score.metric for score in scores] == [
        "top-1, k = 2",
        "top-1, k = 2, standardized",
        "top-1, k = 3",
        "top-1, k = 3, standardized",
    ]
    (folder,) = (tmp_path / "eval").glob("fewshot-*")
    listed = (folder / "k3-seed1.txt").read_text().splitlines()
    assert len(listed) == 30
    assert set((folder / "k2-seed1.txt").read_text().splitlines()) < set(listed)
    with pytest.raises(ValueError, match="class circle has 4 images, not 5"):
        FewShot.of(measured.recipe, ("k=[2,5]",)).check(measured, how)


def test_the_interval_is_students() -> None:
    score = mean_over_seeds("fewshot", [10.0, 12.0, 14.0], "", "")
    assert score.value == 12
    assert score.interval == pytest.approx((12 - 4.303 * 2 / 3**0.5, 12 + 4.303 * 2 / 3**0.5), abs=0.01)
