"""mIoU is torchmetrics', absent classes included; windows cover an image and agree with the whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.functional.classification import multiclass_jaccard_index

from unimim.evaluation.segmentation.labels import IGNORED
from unimim.evaluation.segmentation.metrics import agreement, areas, confusion, intervals
from unimim.evaluation.segmentation.sliding import slide, starts


def maps(seed: int, classes: int, labelled: set[int], predicted: set[int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    own, guess = (
        torch.tensor(sorted(part))[torch.randint(len(part), (2, 9, 7), generator=generator)]
        for part in (labelled, predicted)
    )
    return guess, torch.where(torch.rand(own.shape, generator=generator) < 0.2, IGNORED, own)


subsets = st.sets(st.integers(0, 5), min_size=1)


@given(st.integers(0, 1000), subsets, subsets)
def test_miou_is_torchmetrics_whatever_is_absent(seed: int, labelled: set[int], predicted: set[int]) -> None:
    guess, labels = maps(seed, 6, labelled, predicted)
    matrix = sum(confusion(*pair, 6) for pair in zip(guess, labels, strict=True))
    assert isinstance(matrix, Tensor)
    theirs = 100 * multiclass_jaccard_index(guess, labels, 6, ignore_index=IGNORED, validate_args=False)
    assert float(agreement(areas(matrix)).miou) == pytest.approx(float(theirs), abs=1e-4)


def test_images_add_up_to_torchmetrics_over_a_set() -> None:
    metric, total = MulticlassJaccardIndex(6, ignore_index=IGNORED), torch.zeros(3, 6)
    for seed in range(5):
        guess, labels = maps(seed, 6, {0, 1, 2, 4}, {0, 2, 3, 4})
        metric.update(guess, labels)
        total = total + areas(confusion(guess, labels, 6))
    assert float(agreement(total).miou) == pytest.approx(100 * float(metric.compute()), abs=1e-4)


def test_the_three_absences() -> None:
    labels, guess = torch.tensor([0, 0, 1, 1, IGNORED]), torch.tensor([0, 0, 1, 2, 3])
    found = agreement(areas(confusion(guess, labels, 5)))
    # 0: 1, 1: 1/2, 2 (predicted, never labelled): 0, 3 (under ignored pixels only) and 4 (nowhere): left out
    assert float(found.miou) == pytest.approx(100 * (1 + 0.5 + 0) / 3)
    assert float(found.pixels) == pytest.approx(75)
    assert float(found.classes) == pytest.approx(75)
    never = agreement(areas(confusion(torch.tensor([0]), torch.tensor([1]), 3)))
    assert float(never.miou) == 0


def test_the_bootstrap_holds_the_value_is_seeded_and_narrows_with_images() -> None:
    tables = torch.stack(
        [
            areas(confusion(*(part[0] for part in maps(seed, 6, {0, 1, 2, 3, 4, 5}, {seed % 6, 1, 2})), 6))
            for seed in range(40)
        ]
    )
    value = agreement(tables.sum(0))
    for number, (low, high) in zip(value, intervals(tables, 0), strict=True):
        assert low <= float(number) <= high
        assert high - low < 20
    assert intervals(tables, 0) == intervals(tables, 0) != intervals(tables, 1)
    wide, narrow = (high - low for low, high in (intervals(tables[:10], 0)[1], intervals(tables, 0)[1]))
    assert narrow < wide


def test_a_class_of_a_single_image_does_not_move_the_interval_off_the_value() -> None:
    tables = torch.zeros(12, 3, 11, dtype=torch.int64)
    for number in range(12):
        tables[number, :, 0] = torch.tensor([80, 85, 100])
        tables[number, 1, 1 + number % 10] = 20
    value = float(agreement(tables.sum(0)).miou)
    low, high = intervals(tables, 0)[0]
    assert low <= value <= high


@given(st.integers(1, 200), st.integers(1, 64), st.data())
def test_windows_cover_every_pixel_and_end_with_the_image(length: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    found = starts(max(length, window), window, stride)
    covered = {pixel for start in found for pixel in range(start, start + window)}
    assert covered == {*range(max(length, window))}
    assert found == sorted({*found})


def test_windows_stand_where_mmseg_puts_them() -> None:
    assert starts(683, 512, 341) == [0, 171]
    assert starts(2048, 512, 341) == [0, 341, 682, 1023, 1364, 1536]
    assert starts(512, 512, 341) == [0]
    assert starts(853, 512, 341) == [0, 341]


def pointwise(windows: Tensor) -> Tensor:
    return torch.cat([windows.float(), windows.float().square()], 1)


def smooth(windows: Tensor) -> Tensor:
    """A network that sees the window's edge."""
    return F.avg_pool2d(windows.float(), 3, 1, 1)


def image(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("network", [pointwise, smooth])
def test_one_window_is_the_whole_image(network: Callable[[Tensor], Tensor]) -> None:
    whole = image(16, 16)
    assert torch.equal(slide(network, whole, 16, 10), network(whole[None])[0])


@given(st.integers(3, 50), st.integers(3, 50), st.integers(1, 5))
def test_where_windows_overlap_they_are_averaged(height: int, width: int, batch: int) -> None:
    whole = image(height, width)
    torch.testing.assert_close(slide(pointwise, whole, 16, 10, batch), pointwise(whole[None])[0])
    constant = slide(
        lambda windows: torch.ones(len(windows), 2, 16, 16) * torch.tensor([3.0, -1.0]).view(2, 1, 1), whole, 16, 10
    )
    assert torch.equal(constant, torch.tensor([3.0, -1.0]).view(2, 1, 1).expand(2, height, width))


def test_the_mean_over_windows_is_written_out() -> None:
    whole, found = image(16, 24), torch.zeros(3, 16, 24)
    found[:, :, :16] += smooth(whole[None, :, :, :16])[0]
    found[:, :, 8:] += smooth(whole[None, :, :, 8:])[0]
    found[:, :, 8:16] /= 2
    torch.testing.assert_close(slide(smooth, whole, 16, 10), found)
