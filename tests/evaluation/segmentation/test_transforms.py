"""Crops: pixels and classes move together, draws are by address, and nothing beyond the edge counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.engine.toys import Noise
from unimim.address import rng
from unimim.engine.data import BadImage
from unimim.evaluation.segmentation import transforms
from unimim.evaluation.segmentation.labels import IGNORED, Relabelled
from unimim.evaluation.segmentation.transforms import Crops, distorted, fitted, padded


class Marked(Noise):
    """Images whose class is their red value over 20."""

    def read(self, index: int) -> Tensor:
        image = super().read(index)
        return torch.cat([image, image[:1] // 20])


sides = st.integers(8, 60)


@given(sides, sides, st.integers(8, 40), st.integers(0, 50))
def test_a_crop_is_of_its_size_and_a_function_of_its_address(height: int, width: int, size: int, index: int) -> None:
    image = torch.from_numpy(rng(index).integers(0, 256, (4, height, width), dtype=np.uint8))
    crops = Crops(3, size, (60, 30))
    torch.manual_seed(0)
    first = crops(image, 1, index)
    torch.manual_seed(1)
    again = Crops(3, size, (60, 30))(image, 1, index)
    assert first["image"].shape == (3, size, size)
    assert first["labels"].shape == (1, size, size)
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["labels"], again["labels"])
    assert {*first["labels"].unique().tolist()} <= {*image[3].unique().tolist(), IGNORED}


def test_pixels_and_classes_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "distorted", lambda image, draws: image)
    plane = torch.zeros(24, 36, dtype=torch.uint8)
    plane[4:17, 9:28] = 200
    image = torch.stack([plane, plane, plane, (plane > 0).byte()])
    for index in range(20):
        sample = Crops(0, 16, (36, 24), max_share=1.0)(image, 0, index)
        shown, labels = sample["image"][0].int(), sample["labels"][0]
        assert (shown[labels == 1] >= 50).all()
        assert (shown[labels == 0] <= 150).all()
        assert (sample["image"][:, labels == IGNORED] == torch.tensor(transforms.GREY).view(3, 1)).all()


def test_the_image_is_mirrored_half_of_the_time_and_scales_follow_the_range() -> None:
    image = torch.zeros(4, 16, 16, dtype=torch.uint8)
    image[3, :, 8:] = 1
    crops = Crops(0, 16, (16, 16), (1.0, 1.0))
    left = sum(int(crops(image, 0, index)["labels"][0, 0, 0]) for index in range(200))
    assert 70 < left < 130
    halves = [Crops(0, 16, (16, 16), (0.5, 0.5))(image, 0, index)["labels"] for index in range(5)]
    assert all((labels == IGNORED).sum() == 16 * 16 - 8 * 8 for labels in halves)


def test_crops_of_one_class_are_drawn_again() -> None:
    image = torch.zeros(4, 64, 64, dtype=torch.uint8)
    image[3, :16, :16] = 1

    def shares(max_share: float) -> list[float]:
        crops = Crops(0, 16, (64, 64), (1.0, 1.0), max_share)
        labels = [crops(image, 0, index)["labels"] for index in range(60)]
        return [float((part == 0).float().mean()) for part in labels]

    assert np.mean(np.array(shares(0.75)) < 0.75) > 2 * np.mean(np.array(shares(1.0)) < 0.75)


@given(st.integers(0, 2**20))
def test_colours_change_and_places_do_not(seed: int) -> None:
    image = torch.from_numpy(rng(seed).integers(0, 256, (3, 5, 7), dtype=np.uint8))
    found = distorted(image, rng(seed, 1))
    assert found.dtype == torch.uint8
    assert found.shape == image.shape
    grey = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    made = distorted(grey, rng(seed, 1)).int()
    assert (made == made[0, 0, 0]).all(), "grey has neither hue nor saturation"
    assert 0 <= int(made[0, 0, 0]) <= 198


def test_saturation_and_hue_keep_the_largest_value() -> None:
    kept = 0
    for seed in range(64):
        add, contrast, _, _, _ = rng(seed).random(5) < 0.5
        image = torch.from_numpy(rng(seed, 5).integers(0, 256, (3, 6, 6), dtype=np.uint8))
        if not (add or contrast):
            kept += 1
            assert (distorted(image, rng(seed)).amax(0).int() - image.amax(0).int()).abs().max() <= 1
    assert kept > 5


@given(sides, sides)
def test_the_fit_keeps_the_aspect_within_both_limits(height: int, width: int) -> None:
    h, w = fitted((height, width), 100, 40)
    assert max(h, w) <= 100
    assert min(h, w) <= 40
    assert max(h, w) == 100 or min(h, w) == 40
    assert abs(h - w * height / width) <= max(1, height / width)


def test_padding_is_grey_and_ignored() -> None:
    image = padded(torch.ones(4, 3, 5, dtype=torch.uint8), (4, 6))
    assert image[:, :3, :5].eq(1).all()
    assert image[:, 3, 5].tolist() == [*transforms.GREY, IGNORED]
    assert padded(image, (2, 2)) is image


def test_ids_become_classes() -> None:
    known = Relabelled(Marked(), 13)
    reduced = Relabelled(Marked(), 12, zero_is_ignored=True)
    camvid = Relabelled(Marked(), 12, ignored=12)
    ids = Marked().read(0)[3].int()
    assert torch.equal(known.read(0)[3].int(), ids)
    assert torch.equal(reduced.read(0)[3].int(), torch.where(ids == 0, IGNORED, ids - 1))
    assert torch.equal(camvid.read(0)[3].int(), torch.where(ids == 12, IGNORED, ids))
    with pytest.raises(BadImage, match=r"noise/3.*id 12.*none of 12 classes"):
        Relabelled(Marked(), 12).read(3)


def test_a_batch_carries_the_classes_as_a_view() -> None:
    crops = Crops(0, 16, (40, 20))
    batch = crops.collate([crops(Marked().read(index), 0, index) for index in range(3)])
    assert batch.views["labels"].image.shape == (3, 1, 16, 16)
    assert batch.views["main"].image.dtype == batch.views["labels"].image.dtype == torch.uint8
    assert batch.masks == {}
    assert batch.index.tolist() == [0, 1, 2]
