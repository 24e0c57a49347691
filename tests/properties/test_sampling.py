"""A sample is a function of its image and address alone."""

from __future__ import annotations

import pickle
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unimim import Batch, Mask, Recipe, Rendition, Sampling
from unimim.masks import Random

RENDITION = Rendition((8, 12), "lanczos")
IMAGES = [
    torch.randint(0, 256, (3, 20 + 7 * i, 60 - 5 * i), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
    for i in range(6)
]


BASE: dict[str, Any] = {
    "name": "toy",
    "student": {"name": "vit", "image_size": (16, 24), "patch_size": 4, "dim": 8, "depth": 1, "num_heads": 2},
    "views": {"name": "crop", "jitter": 0.4},
    "mask": {"name": "block", "ratio": 0.4, "min_block": 4},
    "teacher": "pixel",
    "head": "fc",
    "loss": "l2",
    "optimization": {"lr": 1e-3},
    "batch": 4,
    "epochs": 1,
}


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate(BASE | changes)


def sampling(**changes: Any) -> Sampling:
    value = recipe(**changes)
    return Sampling(value, value.student.geometry, (RENDITION,))


def batch(made: Sampling, indices: list[int], epoch: int = 0) -> Batch:
    return made.collate([made(IMAGES[i], epoch, i) for i in indices])


def row(of: Batch, place: int) -> list[torch.Tensor]:
    view = of.views["main"]
    assert view.box is not None
    assert view.flip is not None
    parts = [view.image, view.renditions[RENDITION], view.box, view.flip, of.masks["main"][0].hidden, of.index]
    return [part[place] for part in parts]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@given(st.permutations(range(6)), st.integers(1, 6), st.integers(0, 50), st.integers(0, 2**40))
def test_image_i_is_the_same_in_every_batch_order_and_process(
    order: list[int], size: int, epoch: int, seed: int
) -> None:
    made = sampling(seed=seed)
    again = pickle.loads(pickle.dumps(made))
    whole, part = batch(made, [*range(6)], epoch), batch(again, order[:size], epoch)
    for place, image in enumerate(order[:size]):
        assert same(row(part, place), row(whole, image))


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20), st.integers(0, 20))
def test_another_seed_or_epoch_is_another_draw(seed: int, epoch: int, more: int, later: int) -> None:
    mask = {"name": "random", "ratio": 0.5}
    one = batch(sampling(seed=seed, mask=mask), [0, 1], epoch)
    other = batch(sampling(seed=seed + more, mask=mask), [0, 1], epoch + later)
    same_address = more == later == 0
    assert torch.equal(one.views["main"].image, other.views["main"].image) == same_address
    assert torch.equal(one.masks["main"][0].hidden, other.masks["main"][0].hidden) == same_address
    assert not torch.equal(one.masks["main"][0].hidden[0], one.masks["main"][0].hidden[1])


def test_masks_do_not_depend_on_the_crops() -> None:
    one, other = sampling(), sampling(views={"name": "center"})
    assert torch.equal(batch(one, [0, 1]).masks["main"][0].hidden, batch(other, [0, 1]).masks["main"][0].hidden)


def test_a_batch_has_what_the_recipe_and_the_teachers_ask_for() -> None:
    made = sampling()
    drawn = batch(made, [3, 1, 5])
    view, (mask,) = drawn.views["main"], drawn.masks["main"]
    assert view.image.shape == (3, 3, 16, 24)
    assert view.renditions[RENDITION].shape == (3, 3, 8, 12)
    assert mask.hidden.shape == (3, 24)
    assert drawn.index.tolist() == [3, 1, 5]


@pytest.mark.parametrize(
    ("mask", "static"),
    [({"name": "random", "ratio": 0.5}, True), ({"name": "block", "count": 12, "min_block": 15}, False)],
)
def test_an_exact_count_gives_static_shapes(mask: dict[str, Any], static: bool) -> None:
    (mask_drawn,) = batch(sampling(mask=mask), [*range(6)]).masks["main"]
    assert (mask_drawn.hidden_valid is None) == static


class Dealt(Random):
    """Random masks whose hidden patches are dealt to three groups, and count by their group."""

    class Config(Random.Config):
        name: Literal["dealt"] = "dealt"  # type: ignore[assignment]

        @property
        def num_groups(self) -> int:
            return 3

        @property
        def weighs(self) -> bool:
            return True

    def group(self, hidden: Any, rng: Any) -> Any:
        group = np.zeros(hidden.shape, dtype=np.int64)
        for row, own in zip(group, hidden, strict=True):
            row[rng.permutation(np.flatnonzero(own))] = np.arange(own.sum()) % 3
        return group

    def weight(self, hidden: Any, grid: Any) -> Any:
        return np.where(hidden, 1.5, 0.5).astype(np.float32)


def test_groups_order_the_hidden_index_and_weights_come_along(register: Any) -> None:
    register(masks={"dealt": Dealt})
    made = sampling(mask={"name": "dealt", "ratio": 0.75})
    whole = batch(made, [*range(6)])
    (mask,) = whole.masks["main"]
    plain = Mask.from_hidden(mask.hidden, 18)
    assert mask.groups == 3
    runs = mask.hidden_index.view(6, 3, 6)
    assert (runs.diff(dim=-1) > 0).all(), "each run ascends"
    assert mask.hidden_index.sort(1).values.equal(plain.hidden_index)
    assert not mask.hidden_index.equal(plain.hidden_index)
    assert mask.visible_index.equal(plain.visible_index)
    assert mask.weight is not None
    assert mask.weight.equal(torch.where(mask.hidden, 1.5, 0.5))
    alone = batch(pickle.loads(pickle.dumps(made)), [4]).masks["main"][0]
    assert alone.hidden_index.equal(mask.hidden_index[4:5])


def test_each_view_is_masked_on_its_own_grid() -> None:
    views = {"name": "multi_crop", "num_focal": 2, "focal_size": 8}
    masks = {"main": {"name": "random", "ratio": 0.5}, "focal0": "none", "focal1": "none"}
    student = {"name": "vit", "image_size": 16, "patch_size": 4, "dim": 8, "depth": 1, "num_heads": 2}
    changes = {"views": views, "masks": masks, "student": student, "where": "image", "mask": None, "view": "target"}
    data = {key: value for key, value in (BASE | changes).items() if value is not None}
    value = Recipe.model_validate(data)
    made = Sampling(value, value.student.geometry).collate(
        [Sampling(value, value.student.geometry)(IMAGES[0], 0, index) for index in range(2)]
    )
    assert {view: folds[0].hidden.shape for view, folds in made.masks.items()} == {
        "main": (2, 16),
        "focal0": (2, 4),
        "focal1": (2, 4),
    }
    assert value.hides("main")
    assert not value.hides("focal0")
    for change, problem in (
        ({"where": "all"}, "answers for the image only"),
        ({"view": "focal0"}, "teachers see whole views"),
        ({"views": views | {"focal_size": 10}}, "not whole patches"),
        ({"student": student | {"positions": "none", "relative_positions": "shared"}}, "takes .* only"),
    ):
        with pytest.raises(ValueError, match=problem):
            Recipe.model_validate(data | change)


FROZEN = {"name": "dvae", "weights": None, "num_hidden": 4, "vocab_size": 32, "blocks_per_group": 1}
REPLAYING = {"teacher": FROZEN, "loss": "cross_entropy", "replay": {"crops": 3}}


@given(st.integers(0, 20))
def test_crops_are_replayed_and_masks_are_not(epoch: int) -> None:
    made, plain = sampling(**REPLAYING), sampling()
    early, late = batch(made, [0, 1, 2], epoch % 3), batch(made, [0, 1, 2], epoch)
    assert late.crop == epoch % 3
    assert all(same(row(early, place)[:4], row(late, place)[:4]) for place in range(3))
    assert same([late.masks["main"][0].hidden], [batch(plain, [0, 1, 2], epoch).masks["main"][0].hidden])
    other = batch(made, [0, 1, 2], epoch + 1)
    assert not any(torch.equal(row(other, place)[2], row(late, place)[2]) for place in range(3))


def test_a_recipe_with_nothing_to_replay_is_refused() -> None:
    assert "replay" not in recipe().data()
    assert recipe(**REPLAYING).data()["replay"] == {"crops": 3, "precision": "bfloat16"}
    moving = {"name": "kmeans", "teacher": {"name": "self", "weights": "live"}, "num_codes": 4}
    for change in ({}, {"teacher": "self"}, {"teacher": moving, "loss": "cross_entropy"}):
        with pytest.raises(ValueError, match=r"replay: nothing to replay: (pixel|self|kmeans) says something else"):
            recipe(**change, replay={"crops": 1})
