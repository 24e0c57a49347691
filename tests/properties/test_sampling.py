"""A sample is a function of its image and address alone."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unimim import Batch, Recipe, Rendition, Sampling

RENDITION = Rendition((8, 12), "lanczos")
IMAGES = [
    torch.randint(0, 256, (3, 20 + 7 * i, 60 - 5 * i), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
    for i in range(6)
]


def recipe(**changes: Any) -> Recipe:
    data = {
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
    return Recipe.model_validate(data | changes)


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
