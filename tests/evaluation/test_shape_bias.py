"""Decisions equal model-vs-human's; the bias is a ratio of counts; cues are read from names, CSVs and `shapes`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from unimim.engine.data import ImageSource, open_source
from unimim.engine.data.shapes import TEXTURE_OF_CLASS, Shapes
from unimim.evaluation.shape_bias import (
    Answer,
    Count,
    category_probabilities,
    cues,
    cues_of,
    decide,
    figure3,
    groups_of,
    ranking,
    read_answers,
    scores,
    shape_bias,
    write_answers,
)
from unimim.evaluation.sixteen import SIXTEEN, is_imagenet_1k
from unimim.testing import Golden

GOLDENS = Path(os.environ.get("UNIMIM_GOLDENS", Path(__file__).parents[1] / "parity" / "data"))
NAMES = ("airplane", "bear", "cat", "dog")


def test_decisions_rankings_and_probabilities_equal_the_official_ones() -> None:
    golden = Golden(GOLDENS / "piece_shape_bias.npz")
    categories = golden.arrays["categories"].tolist()
    assert {name: list(indices) for name, indices in SIXTEEN.items()} == golden.json("category_indices")
    groups = [SIXTEEN[name] for name in categories]
    probabilities = category_probabilities(golden["in/logits"], groups)
    torch.testing.assert_close(probabilities, golden["mean_probability"], rtol=2e-6, atol=1e-9)
    found = ranking(probabilities)
    assert torch.equal(found, golden["ranking"].long())
    assert [categories[place] for place in found[:, 0].tolist()] == golden.arrays["decision"].tolist()


def test_the_categories_have_207_classes() -> None:
    assert sum(map(len, SIXTEEN.values())) == len({index for group in SIXTEEN.values() for index in group}) == 207
    assert (len(SIXTEEN["dog"]), len(SIXTEEN["bird"]), SIXTEEN["knife"]) == (109, 49, (499,))


def test_the_mean_decides_and_not_the_sum() -> None:
    logits = torch.zeros(1, 1000)
    logits[0, 499] = 1.0
    assert list(SIXTEEN)[int(ranking(category_probabilities(logits, SIXTEEN.values()))[0, 0])] == "knife"


def eighths(rows: int, columns: int) -> st.SearchStrategy[Tensor]:
    """Logits that float32 holds exactly, also after an integer is added."""
    row = st.lists(st.integers(-80, 80), min_size=columns, max_size=columns)
    return st.lists(row, min_size=rows, max_size=rows).map(lambda values: torch.tensor(values) / 8)


GROUPS = ((0, 1, 2), (3,), (4, 5))


@given(eighths(5, 7), st.integers(-50, 50), st.permutations(range(5)))
def test_decisions_know_no_constant_no_order_of_images_and_no_repeated_list(
    logits: Tensor, constant: int, order: list[int]
) -> None:
    probabilities = category_probabilities(logits, GROUPS)
    decided = ranking(probabilities)
    assert torch.equal(ranking(category_probabilities(logits + constant, GROUPS)), decided)
    assert torch.equal(ranking(category_probabilities(logits[order], GROUPS)), decided[order])
    repeated = category_probabilities(logits, [group * 2 for group in GROUPS])
    torch.testing.assert_close(repeated, probabilities)
    assert torch.equal(decided.sort(-1).values, torch.arange(3).expand(5, 3))


def test_of_equal_categories_the_last_is_answered() -> None:
    assert ranking(torch.full((1, 3), 0.25)).tolist() == [[2, 1, 0]]


made = st.builds(Answer, st.just("x"), *[st.sampled_from(NAMES)] * 3)


@given(st.lists(made, max_size=30), st.randoms())
def test_the_bias_is_blind_to_order_and_mirrored_by_exchanging_the_cues(answers: list[Answer], random: object) -> None:
    counted = shape_bias(answers)
    mixed = [*answers]
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert shape_bias(mixed) == counted
    pooled = counted.pooled
    exchanged = shape_bias(Answer(a.image, a.texture, a.shape, a.said) for a in answers).pooled
    assert (exchanged.shape, exchanged.texture, exchanged.shown) == (pooled.texture, pooled.shape, pooled.shown)
    if pooled.bias is None:
        assert exchanged.bias is None
    else:
        assert exchanged.bias == pytest.approx(1 - pooled.bias)
    parts = counted.categories.values()
    assert pooled == Count(*(sum(getattr(part, name) for part in parts) for name in ("shape", "texture", "shown")))


def test_pooled_is_not_the_mean_of_categories_and_what_has_no_answer_is_undefined() -> None:
    given = [
        *[Answer("", "cat", "dog", "cat")] * 3,
        Answer("", "cat", "dog", "dog"),
        Answer("", "bear", "dog", "dog"),
        Answer("", "dog", "cat", "bear"),
        Answer("", "airplane", "airplane", "airplane"),
    ]
    counted = shape_bias(given)
    assert counted.pooled == Count(3, 2, 6)
    assert counted.pooled.bias == 0.6
    assert {name: count.bias for name, count in counted.categories.items()} == {"bear": 0, "cat": 0.75, "dog": None}
    assert counted.box() == (0, 0.75)
    series = figure3({"mine": counted})[0]
    assert series.points == (("bear", 1), ("cat", 0.25), ("dog", None))
    assert series.line == pytest.approx(0.4)
    assert shape_bias([]).pooled.bias is None


@pytest.mark.parametrize(
    "name", ["airplane1-bear2.png", "0001_s5n_dnn_0_airplane_00_airplane1-bear2.png", "a_b/c-1/airplane10-bear12.JPEG"]
)
def test_names_tell_the_cues(name: str) -> None:
    assert cues(name) == ("airplane", "bear")


@pytest.mark.parametrize("name", ["airplane1.png", "airplane-bear2.png", "a1-b2-c3.png", "n0123_45.JPEG", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="shapeN-textureM"):
        cues(name)


HEAD = "subj,session,trial,rt,object_response,category,condition,imagename\n"


def test_published_decisions_are_read(tmp_path: Path) -> None:
    (tmp_path / "a_session-1.csv").write_text(
        HEAD
        + "resnet,1,1,NaN,bear,airplane,NaN,airplane1-bear2.png\n"
        + "resnet,1,2,NaN,airplane,airplane,NaN,airplane10-airplane1.png\n"
    )
    (tmp_path / "b_session-1.csv").write_text(HEAD + "human,1,1,0.9,na,dog,0,0001_x_airplane_00_dog3-cat1.png\n")
    assert shape_bias(read_answers(tmp_path / "a_session-1.csv")).pooled == Count(0, 1, 1)
    assert shape_bias(read_answers(tmp_path)).pooled == Count(0, 1, 2), "a folder is one who answered"
    write_answers(tmp_path / "c.csv", read_answers(tmp_path), "both")
    assert read_answers(tmp_path / "c.csv")[0] == read_answers(tmp_path / "a_session-1.csv")[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("category,imagename\ncat,cat1-dog1.png\n", "no column object_response; it needs"),
        (HEAD, "no decisions in it"),
        (HEAD + "x,1,1,0,cat,cat,0,cat.png\n", r"line 2: cat\.png: not named by its cues"),
        (HEAD + "x,1,1,0,cat,dog,0,cat1-dog1.png\n", "line 2: category 'dog', but cat1-dog1.png shows 'cat'"),
        (HEAD + "x,1,1,0,cat\n", "line 2: : not named"),
    ],
)
def test_what_is_wrong_with_a_csv_is_said(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_answers(tmp_path / "x.csv")


def test_a_missing_csv_is_said(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "x.csv"):
        with pytest.raises(ValueError, match="no CSV of decisions there"):
            read_answers(path)


def stimuli(root: Path) -> str:
    """Four images, one of them without a conflict; the brightness is the place among NAMES of what is to be answered."""
    for name, said in (("airplane1-bear2", 0), ("bear2-dog1", 3), ("cat1-dog3", 1), ("dog1-dog2", 3)):
        folder = root / "cue-conflict" / name.partition("-")[0].rstrip("0123456789")
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8), (said * 50,) * 3).save(folder / f"{name}.png")
    return str(root / "cue-conflict")


def by_brightness(source: ImageSource, count: int, places: list[int]) -> list[tuple[list[int], Tensor]]:
    """Logits (1, count) of each image, highest at places[k] where its brightness is 50 k."""
    shown = [int(source.read(index).float().mean()) // 50 for index in range(len(source))]
    return [([index], torch.eye(count)[[places[k]]] * 9) for index, k in enumerate(shown)]


def test_a_folder_is_answered_by_1000_classes_and_by_its_own(tmp_path: Path) -> None:
    where = stimuli(tmp_path)
    source = open_source(where, "val", hold_out=False)
    wnids = [f"n{number:08d}" for number in range(2_000_000, 2_000_998)]
    wnids = ["n01440764", *wnids, "n15075141"]
    wnids[404] = "n02690373"
    wnids[405:999] = [f"n{number:08d}" for number in range(3_000_000, 3_000_594)]
    assert is_imagenet_1k(wnids)
    assert not is_imagenet_1k(wnids[:999])
    assert not is_imagenet_1k(wnids[::-1])
    thousand = by_brightness(source, 1000, [404, 294, 285, 268])
    four = by_brightness(source, 4, [0, 1, 2, 3])
    answers = [decide(thousand, wnids, source, where), decide(four, NAMES, source, where)]
    assert answers[0] == answers[1]
    assert [answer.said for answer in answers[0]] == ["airplane", "dog", "bear", "dog"]
    assert answers[0][0].image == "airplane1-bear2.png"
    counted = shape_bias(answers[0])
    assert (counted.pooled, list(counted.categories)) == (Count(1, 1, 3), ["airplane", "bear", "cat"])
    with pytest.raises(ValueError, match="shows cat, dog, of which the classifier of 2 classes knows nothing"):
        groups_of(NAMES[:2], NAMES, where)
    with pytest.raises(ValueError, match="shows fish, of which the classifier of 1000 classes"):
        groups_of(wnids, ["fish", "dog"], where)


def test_the_cues_of_shapes_are_a_class_each_and_differ() -> None:
    source = open_source("shapes:split=cue-conflict,val=40,size=16", "val")
    assert isinstance(source, Shapes)
    shown = cues_of(source, "shapes")
    assert all(shape != texture for shape, texture in shown)
    for index, (shape, texture) in enumerate(shown):
        assert source.classes[source.label(index)] == shape
        assert TEXTURE_OF_CLASS[source.classes.index(texture)] == source.texture(index)
    given = decide([(range(40), torch.eye(10).repeat(4, 1))], source.classes, source, "shapes")
    assert shape_bias(given).pooled == Count(40, 0, 40)
    assert [cues(answer.image) for answer in given] == shown
    with pytest.raises(ValueError, match="use shapes:split=cue-conflict"):
        cues_of(Shapes("val", 4), "shapes")


def test_scores_tell_the_counts_and_leave_out_what_is_undefined() -> None:
    given = [Answer("", "cat", "dog", said) for said in ("cat", "cat", "cat", "dog", "bear")]
    found = scores(shape_bias([*given, Answer("", "bear", "dog", "cat")]), "them", "how")
    assert [(score.metric, score.value) for score in found] == [
        ("shape bias of them", 75),
        ("shape bias of them, cat", 75),
    ]
    assert found[0].protocol == (
        "3 answers named the shape, 1 the texture, of 6 images where they differ; undefined for bear; how"
    )
    assert found[1].protocol == "3 shape, 1 texture of 5 images; else as the pooled value"
    with pytest.raises(ValueError, match="shape bias: no answer to 1 images names their shape or texture"):
        scores(shape_bias([Answer("", "bear", "dog", "cat")]), "", "how")
