"""Laws of the ids and of the corruption, and what the student may know of a patch it is asked about."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unimim import Batch, Geometry, Objective, Sampling, View, load, plugins, testing
from unimim.layers import patchify, unpatchify

SMALL = ["student.dim=16", "student.depth=2", "student.num_heads=2"]
DRAWS = 2000
seeds = st.integers(0, 2**31)


def ids(image: Tensor, patch: int = 8, **fields: Any) -> Tensor:
    """(B, h, w)."""
    channels, *size = image.shape[1:]
    grid = size[0] // patch, size[1] // patch
    teacher = (
        plugins()["teachers"]["mean_color"].Config(**fields).build(Geometry((size[0], size[1]), grid, 8, channels))
    )
    tokens: Tensor = teacher(View(image)).tokens
    return tokens.view(len(image), *grid)


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


# Ids


@pytest.mark.parametrize("fields", [{}, {"bits": 1}, {"bits": 5}])
def test_keeps_the_contract_of_a_teacher(fields: dict[str, Any]) -> None:
    testing.check_teacher({"name": "mean_color", **fields})


@pytest.mark.parametrize("bits", [1, 3, 4])
def test_every_gray_of_an_8_bit_image_falls_in_its_bin(bits: int) -> None:
    """floor(2^b v / 255), but white, which alone reaches the upper end, in the last; all three channels alike."""
    levels = 2**bits
    shades = torch.arange(256, dtype=torch.uint8).repeat_interleave(4)
    found = ids(shades.expand(1, 3, 4, -1), patch=4, bits=bits).flatten()
    expected = [min(levels * value // 255, levels - 1) * (levels**2 + levels + 1) for value in range(256)]
    assert found.tolist() == expected


def test_red_counts_64_green_8_and_blue_1() -> None:
    colours = torch.eye(3).view(3, 3, 1, 1).expand(-1, -1, 8, 8)
    assert ids(colours).flatten().tolist() == [448, 56, 7]


def test_pixels_beyond_0_and_1_stay_in_the_outer_bins() -> None:
    pixels = torch.tensor([-3.0, -1e-6, 1.0, 1.7]).view(4, 1, 1, 1).expand(-1, 3, 8, 8)
    assert ids(pixels).flatten().tolist() == [0, 0, 511, 511]


@given(seeds, st.sampled_from([2, 4, 8]))
def test_the_order_of_pixels_inside_a_patch_does_not_matter(seed: int, patch: int) -> None:
    """Not even where a mean lies on the edge of a bin, as of the four values drawn here it often does."""
    source, size = generator(seed), (2 * patch, 3 * patch)
    levels = torch.tensor([0, 51, 204, 255], dtype=torch.uint8)
    given_image = levels[torch.from_numpy(source.integers(4, size=(2, 3, *size)))]
    patches = patchify(given_image, (patch, patch)).view(2, 6, patch * patch, 3)
    order = torch.from_numpy(source.permuted(np.tile(np.arange(patch * patch), (2, 6, 1)), axis=2))
    moved = patches.gather(2, order.unsqueeze(-1).expand_as(patches)).flatten(2)
    assert ids(unpatchify(moved, (2, 3), (patch, patch)), patch).equal(ids(given_image, patch))


def test_means_are_exact_where_they_lie_on_the_edge_of_a_bin() -> None:
    """17 of 34 pixels white and 17 black have the mean 1/2, which opens bin 4; a level less in one pixel is bin 3."""
    pixels = torch.zeros(1, 1, 2, 34, dtype=torch.uint8)
    pixels.view(-1)[::2] = 255
    teacher = plugins()["teachers"]["mean_color"].Config().build(Geometry((2, 34), (1, 1), 8, 1))
    assert teacher(View(pixels)).tokens.item() == 4
    pixels[0, 0, 0, 0] = 254
    assert teacher(View(pixels)).tokens.item() == 3


def test_uniform_noise_falls_in_the_two_middle_bins_of_each_channel() -> None:
    """The mean of 256 pixels lies within 1/8 of 1/2, 6.9 deviations; all eight combinations of bins occur."""
    found = ids(image(16, 3, 128, 128), patch=16).flatten()
    assert {*found.tolist()} == {64 * r + 8 * g + b for r in (3, 4) for g in (3, 4) for b in (3, 4)}


def test_the_target_does_not_collapse_whatever_statistics_the_student_has() -> None:
    """Ids of gray images of every brightness: their perplexity, as the training log shows it, is that of eight bins or more."""
    objective = Objective(
        load("vit-mpp-micro", [*SMALL, "student.mean=[0.5, 0.5, 0.5]", "student.std=[0.01, 0.01, 0.01]"])
    )
    objective(batch(objective))
    assert objective.health["target/mim/perplexity"] > 8


@pytest.mark.parametrize(("bits", "channels"), [(6, 3), (1, 16)])
def test_more_classes_than_predictions_can_have_are_refused(bits: int, channels: int) -> None:
    with pytest.raises(ValueError, match=rf"{bits} bits of {channels} channels .* lower teacher.bits"):
        ids(torch.zeros(1, channels, 8, 8), bits=bits)


# Corruption


@pytest.mark.parametrize("fields", [{}, {"ratio": 0.15}, {"ratio": 0.99}])
def test_keeps_the_contract_of_a_mask(fields: dict[str, Any]) -> None:
    testing.check_mask({"name": "bert", **fields})


def kinds(side: int, ratio: float = 0.5) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """hidden and source, (draws, N)."""
    sampler = plugins()["masks"]["bert"].Config(ratio=ratio).build()
    hidden, source = [], []
    for seed in range(DRAWS):
        draw = generator(seed)
        hidden.append(sampler.sample((side, side), draw))
        source.append(sampler.source(hidden[-1], draw))
    return np.concatenate(hidden), np.concatenate(source)


@pytest.mark.parametrize("side", [3, 14])
def test_eight_of_ten_show_the_mask_token_one_another_patch_one_itself(side: int) -> None:
    """Shares within five standard errors of a binomial, on grids where 80 % is no whole number; an exact split has no spread."""
    hidden, source = kinds(side)
    own, count = np.arange(side * side), hidden.sum()
    assert (hidden.sum(1) == side * side // 2).all()
    shares = {-1: source == -1, 0: hidden & (source == own), 1: hidden & (source >= 0) & (source != own)}
    for kind, share in [(-1, 0.8), (0, 0.1), (1, 0.1)]:
        assert abs(shares[kind].sum() / count - share) < 5 * math.sqrt(share * (1 - share) / count)
        per_image = shares[kind].sum(1)
        expected = share * (1 - share) * (side * side // 2)
        assert per_image.var() == pytest.approx(expected, rel=0.25)
    assert (source == own)[~hidden].all()


def test_another_patch_is_any_other_patch_alike() -> None:
    """Asked about all of 3 x 3 patches 20000 times: each of the 72 pairs equally often, and a patch shows itself only where it
    is kept, within five standard errors."""
    draws = 20000
    source = plugins()["masks"]["bert"].Config().build().source(np.ones((draws, 9), dtype=bool), generator(0))
    pairs = np.stack([np.bincount(column[column >= 0], minlength=9) for column in source.T])
    kept, swapped = np.diag(pairs) / draws, pairs[~np.eye(9, dtype=bool)] / draws
    assert abs(kept.mean() - 0.1) < 5 * math.sqrt(0.1 * 0.9 / (9 * draws))
    assert np.abs(swapped - 0.1 / 8).max() < 5 * math.sqrt(0.1 / 8 / draws)


def test_a_grid_with_nothing_to_ask_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ratio 0\.1 of 9 patches asks about none; choose a greater ratio"):
        plugins()["masks"]["bert"].Config(ratio=0.1).num_hidden((3, 3))


def test_a_student_that_drops_patches_is_refused() -> None:
    with pytest.raises(ValueError, match="shows other patches in place of hidden ones"):
        load("vit-mpp-micro", ["student.masking=drop", "head=decoder"])


# Both


def batch(objective: Objective) -> Batch:
    """Four images whose brightness runs from dark to light."""
    sampling = Sampling(objective.recipe, objective.student.geometry)
    levels = (image(4, 3, 80, 96) * 0.3 + torch.linspace(0, 178, 96)).to(torch.uint8)
    return sampling.collate([sampling(each, 0, number) for number, each in enumerate(levels)])


@pytest.mark.parametrize("overrides", [[], ["student.image_size=32", "student.patch_size=4"]])
def test_trains(overrides: list[str]) -> None:
    testing.check_recipe("vit-mpp-micro", [*SMALL, *overrides])


def test_the_student_sees_nothing_of_masked_patches_and_something_of_all_others() -> None:
    """Patch by patch: an unseen one changes nothing at all; a kept one, and one that stands in for another, do."""
    objective = Objective(load("vit-mpp-micro", SMALL)).eval()
    given_batch = batch(objective)
    view, (mask,) = given_batch.views["main"], given_batch.masks["main"]
    assert mask.source is not None
    source, hidden, own = mask.source, mask.hidden, torch.arange(64)
    elsewhere = torch.zeros(4, 65, dtype=torch.bool)
    elsewhere.scatter_(1, torch.where(source == own, -1, source) % 65, True)
    cases = {
        "unseen": hidden & (source != own) & ~elsewhere[:, :64],
        "kept": hidden & (source == own),
        "standing in": hidden & (source != own) & elsewhere[:, :64],
        "visible": ~hidden,
    }
    assert torch.equal(cases["unseen"], mask.unseen)
    for case, patches in cases.items():
        assert patches.any(), case
        row, place = patches.nonzero()[0].tolist()
        image = view.pixels().clone()
        top, left = 8 * (place // 8), 8 * (place % 8)
        image[row, :, top : top + 8, left : left + 8] = 1 - image[row, :, top : top + 8, left : left + 8]
        before, after = (objective.student(v, mask).tokens for v in (view, View(image)))
        assert bool((before != after).any()) == (case != "unseen"), case


def test_a_guess_costs_the_logarithm_of_512() -> None:
    objective = Objective(load("vit-mpp-micro", SMALL))
    for parameter in objective.terms["mim"].head.parameters():
        torch.nn.init.zeros_(parameter)
    assert objective(batch(objective))["loss"].item() == pytest.approx(math.log(512), rel=1e-6)


def test_the_loss_is_asked_of_all_three_kinds() -> None:
    """98 of the 196 patches of every image, the unchanged ones among them."""
    recipe = load("vit-mpp")
    assert recipe.axes() == {"teacher": "Pixel", "student": "ViT", "head": "FC", "norm": "/", "loss": "CrossEntropy"}
    assert recipe.masks["main"].num_hidden((14, 14)) == 98
    objective = Objective(load("vit-mpp-micro", SMALL))
    given_batch = batch(objective)
    assert objective.count(given_batch).tolist() == [4 * 32]
    mask = given_batch.masks["main"][0]
    (step,) = objective.predictions(given_batch)["mim"]
    assert torch.equal(step.query.index, mask.hidden_index)
