"""The answer is one of the data set's own classes, which the names of its folders tell."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from unimim.engine.data import open_source
from unimim.evaluation.robustness import choose, robustness, subset

CLASSES = tuple(f"n{number:08d}" for number in range(10))


@given(
    st.lists(st.lists(st.floats(-9, 9, width=32), min_size=10, max_size=10), min_size=1, max_size=5),
    st.permutations(range(10)),
    st.integers(1, 10),
)
def test_the_answer_is_the_best_of_the_subset(values: list[list[float]], order: list[int], count: int) -> None:
    logits, among = torch.tensor(values), order[:count]
    chosen = [among[place] for place in choose(logits, among).tolist()]
    assert logits[range(len(values)), chosen].tolist() == logits[:, among].amax(1).tolist()
    if count == 10:
        assert torch.equal(logits.amax(1), logits[range(len(values)), chosen])


def test_classes_are_found_by_name_and_not_by_place() -> None:
    assert subset(CLASSES[::-1], ("n00000001", "n00000007"), "x") == [8, 2]


def test_strange_folders_are_listed_with_the_nearest_class() -> None:
    with pytest.raises(ValueError, match="imagenet-a: 7 of its 8 class folders") as caught:
        subset(CLASSES, ("n00000001", "n0000001", *(f"dog{n}" for n in range(6))), "imagenet-a")
    message = str(caught.value)
    assert "are no class of the classifier, which knows 10: 'n0000001', did you mean 'n0000000" in message
    assert "'dog3'; and 2 more" in message
    with pytest.raises(ValueError, match="imagenet-a has no labels"):
        subset(CLASSES, (), "imagenet-a")


def test_a_folder_is_scored_whole_and_among_its_own_classes(tmp_path: Path) -> None:
    """The brightness of an image is its class times 20; the classifier always prefers a class that the folder lacks."""
    for number in (2, 7):
        folder = tmp_path / "imagenet-a" / CLASSES[number]
        folder.mkdir(parents=True)
        for image in range(6):
            Image.new("RGB", (9, 8), (number * 20,) * 3).save(folder / f"{image}.png")
    (folder / "damaged.png").write_bytes(b"no image")
    wrong = tmp_path / "imagenet-a" / CLASSES[2] / "wrong.png"
    Image.new("RGB", (8, 8), (140,) * 3).save(wrong)

    def logits(image: Tensor) -> Tensor:
        found = torch.eye(10)[[round(float(image.float().mean()) / 20)]]
        found[:, 5] = 9.0
        return found

    source = open_source(str(tmp_path / "imagenet-a"), "val", hold_out=False)
    assert len(source) == 14
    given = [([index], logits(source.read(index))) for index in range(14) if "damaged" not in source.name(index)]
    score = robustness(given, CLASSES, source, str(tmp_path / "imagenet-a"), "how")
    assert (score.metric, score.value) == ("top-1, imagenet-a", round(100 * 12 / 13, 2))
    assert score.protocol == "argmax over the 2 classes of the set, of 10; how"
    with pytest.raises(ValueError, match="imagenet-a: none of its 14 images can be read"):
        robustness([], CLASSES, source, "imagenet-a", "how")


@pytest.mark.parametrize("split", ["sketch", "rendition"])
def test_the_shifted_splits_of_shapes_have_all_classes(split: str) -> None:
    source = open_source(f"shapes:split={split},val=20,size=16", "val")
    score = robustness([(range(20), torch.eye(10).repeat(2, 1))], source.classes, source, split, "how")
    assert (score.value, score.protocol) == (100, "argmax over all 10; how")
