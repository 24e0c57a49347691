"""A teacher is measured by the mean of its target tokens, told apart from its student, and refused where that is nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.engine import toys
from unimim import Recipe, load, weights
from unimim.evaluation.features import Reading, pixel_features, teacher_features
from unimim.evaluation.fewshot import FewShot
from unimim.evaluation.gallery import example
from unimim.evaluation.heads import LinearMAE
from unimim.evaluation.knn import KNN
from unimim.evaluation.linear import Linear
from unimim.evaluation.protocol import Setting, Subject
from unimim.training import build


def distilled(clip: Path) -> Recipe:
    return load("maskdistill-micro", [*toys.SMALL, f"teacher.model={clip}"])


def subject(recipe: Recipe, folder: Path) -> Subject:
    objective = build(recipe)
    weights.save(objective, folder)
    return Subject(folder, folder, recipe, objective.student.eval())


def setting(folder: Path) -> Setting:
    return Setting("shapes:size=16,train=60,val=20", toys.run(folder), True, None, lambda text: None)


def test_the_mean_of_pixel_targets_is_the_mean_patch() -> None:
    """The pixel teacher's tokens are patches (4 x 4 x 3), normalized by channel."""
    teacher = build(toys.recipe("mae-micro")).terms["mim"].teacher[0]
    found = teacher_features(teacher, (16, 16), toys.Noise(5, bad=(1,)), batch=3)
    pixels = pixel_features(toys.Noise(5, bad=(1,)), (16, 16)).values.view(4, 3, 4, 4, 4, 4)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    patch = (pixels.mean((2, 4)) - mean) / std
    torch.testing.assert_close(found.values.sort(1).values, patch.flatten(1).sort(1).values, atol=1e-5, rtol=1e-5)
    assert found.labels.tolist() == [0, 0, 1, 0]


def test_a_teacher_reads_the_cut_it_asks_for(tiny_clip: Path) -> None:
    objective = build(distilled(tiny_clip))
    teacher, source = objective.terms["mim"].teacher[0], toys.Noise(3)
    assert teacher.rendition.size == (32, 32)
    tokens = teacher(example(objective, source, [0, 1, 2]).views["main"]).tokens
    found = teacher_features(teacher, (16, 16), source, batch=2)
    torch.testing.assert_close(found.values, tokens.mean(1), atol=1e-5, rtol=1e-5)
    assert found.described == "teacher CLIP, mean of tokens"


def test_its_scores_are_told_from_the_students(tmp_path: Path, tiny_clip: Path) -> None:
    measured, on = subject(distilled(tiny_clip), tmp_path), setting(tmp_path)
    few = ("k=[2]", "seeds=[0,1]", "steps=2", "rates=[1]")
    for kind, changes in ((KNN, ("k=[3]",)), (Linear, ()), (FewShot, few)):
        own, teacher = (
            kind.of(measured.recipe, (*changes, *more)).measure(measured, on) for more in ((), ("features.of=teacher",))
        )
        assert [score.metric for score in teacher] == [f"{score.metric}, teacher" for score in own]
        assert all(score.protocol.startswith("teacher CLIP, mean of tokens") for score in teacher)
        assert all(score.protocol.startswith("final norm") for score in own)


def test_a_momentum_teacher_is_read_from_the_weights(tmp_path: Path) -> None:
    measured = subject(toys.recipe("data2vec-micro"), tmp_path)
    (score,) = Linear.of(measured.recipe, ("features.of=teacher",)).measure(measured, setting(tmp_path))
    assert score.metric == "top-1, teacher"


@pytest.mark.parametrize(
    ("name", "reading", "problem"),
    [
        ("beit-micro", {}, "answers with ids"),
        ("mae-micro", {"block": 1}, "leave out pool and block"),
        ("mae-micro", {"pool": "class"}, "leave out pool and block"),
    ],
)
def test_what_has_no_mean_is_refused(name: str, reading: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Reading.model_validate({**reading, "of": "teacher"}).check(toys.recipe(name))


def test_a_teacher_that_needs_the_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="under a mask only"):
        Reading(of="teacher").check(toys.recipe("mae-micro", "teacher={name: self, region: hidden}"))


def test_a_probe_that_trains_on_the_student_refuses_the_teacher(tmp_path: Path) -> None:
    measured = subject(toys.recipe("mae-micro"), tmp_path)
    with pytest.raises(ValueError, match="use linear for the teacher"):
        LinearMAE.of(measured.recipe, ("features.pool=mean", "features.of=teacher")).check(measured, setting(tmp_path))
