"""The pictures show what they say: the mask that was drawn, the attention that was paid, the prediction that was made."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.engine import toys
from unimim.evaluation.attention import attention
from unimim.evaluation.gallery import Scene, gallery, predictions
from unimim.evaluation.sheet import sheet
from unimim.training import build
from unimim.types import View

VIEW = View(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", ["mae-micro", "beit-micro"])
def test_attention_is_what_the_last_block_mixes_with(name: str) -> None:
    """softmax written out from the block's own weights and its bias, if it has one."""
    student = build(toys.recipe(name)).student.eval()
    block, given = student.blocks[-1], []  # type: ignore[index, union-attr]
    hook = block.register_forward_pre_hook(lambda _, inputs: given.append(inputs))  # type: ignore[operator, union-attr]
    student(VIEW)
    hook.remove()
    x, bias = (*given[0], None)[:2]
    q, k, _ = block.attn.split(block.norm1(x))  # type: ignore[operator, union-attr]
    logits = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 + (0 if bias is None else bias)
    expected = logits.softmax(-1).mean(1)[:, 0, 1:]
    found = attention(student, VIEW)
    assert found is not None
    assert found.asked == "of the class token"
    torch.testing.assert_close(found.weights, expected)
    assert float(found.weights.sum(1).max()) < 1, "the class token keeps a share"


def test_without_a_class_token_the_patches_are_asked_and_their_shares_are_whole() -> None:
    student = build(toys.recipe("mae-micro", "student.class_token=false")).student.eval()
    found = attention(student, VIEW)
    assert found is not None
    assert found.asked == "mean of the patches' queries"
    torch.testing.assert_close(found.weights.sum(1), torch.ones(2))


def test_a_student_of_windows_has_no_row_of_attention() -> None:
    objective = build(toys.load("simmim-micro"))
    assert attention(objective.student.eval(), View(torch.rand(1, 3, *objective.student.geometry.image))) is None


def test_the_ratio_below_a_masked_input_is_counted_in_the_picture() -> None:
    (_, row) = gallery(build(toys.recipe("mae-micro", "mask.ratio=0.5")), toys.Noise(), [0, 1], ["masks"])
    assert row.captions == ("50.0 % hidden",) * 2
    for picture in row.images:
        assert np.isclose((picture == 128).all(-1).mean(), 0.5, atol=0.01)


def test_other_strategies_hide_the_same_share_in_another_way() -> None:
    _, own, *others = gallery(build(toys.recipe("mae-micro", "mask.ratio=0.5")), toys.Noise(), [0], ["masks"], True)
    assert "split mask" in [row.title for row in others]
    assert all(row.captions == own.captions for row in others)
    assert not any(np.array_equal(row.images[0], own.images[0]) for row in others)


def test_normalized_pixels_are_shown_raw_and_de_normalized_and_plain_ones_once() -> None:
    rows = {name: predictions(Scene(build(toys.recipe("mae-micro", *more)), toys.Noise(), [0])) for name, more in
            {"normalized": (), "plain": ("norm=identity",)}.items()}  # fmt: skip
    assert [row.title for row in rows["normalized"]] == ["prediction, raw", "prediction, de-normalized"]
    assert rows["normalized"][1].note == "uses the target's mean and variance"
    assert [row.title for row in rows["plain"]] == ["prediction"]


def test_pictures_leave_the_random_state_alone_and_are_the_same_again() -> None:
    objective = build(toys.recipe("data2vec-micro"))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again = (gallery(objective, toys.Noise(), [0, 4]) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(first, again, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a.images, b.images, strict=True))
    features = {row.title: row for row in first if "features" in row.title}
    assert {*features} == {"teacher's features", "student's features"}
    assert all("in a basis of its own" in row.note for row in features.values())


def test_a_sheet_holds_every_picture_whole() -> None:
    rows = gallery(build(toys.recipe("mae-micro")), toys.Noise(), [0, 1], ["masks"])
    page = np.asarray(sheet(rows, ["a", "an overlong name with words"]))
    assert page.shape[1] > 2 * 96 + 150
    for image in (image for row in rows for image in row.images):
        places = np.argwhere((page[:, :, 0] == image[0, 0, 0]) & (page[:, :, 1] == image[0, 0, 1]))
        assert any(np.array_equal(page[y : y + 96, x : x + 96], image) for y, x in places)
