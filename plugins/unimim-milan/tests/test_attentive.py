"""The law of the draw, its count, and that nothing waits for the device."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from unimim_milan.attentive import Attentive

from unimim import load, testing
from unimim.testing import Golden

DRAWS = 20_000


def sampler(ratio: float) -> Any:
    return Attentive.Config(ratio=ratio).build()


def visible(saliency: Tensor, ratio: float, draws: int = DRAWS, seed: int = 0) -> Tensor:
    """(draws, N) bool of independent draws for one saliency (N,)."""
    noise = torch.rand(draws, len(saliency), generator=torch.Generator().manual_seed(seed))
    (mask,) = sampler(ratio).from_saliency(saliency.expand(draws, -1), noise)
    return ~mask.hidden


def standard_errors(ours: Tensor, share: Tensor, draws: int) -> float:
    """Largest difference of `ours`, from DRAWS draws, to a share observed in `draws` draws, in standard errors."""
    error = (share * (1 - share) * (1 / DRAWS + 1 / draws)).sqrt()
    return float(((ours - share).abs() / error).max())


def test_keeps_the_contract_of_a_mask_sampler() -> None:
    for ratio in (0.75, 0.5, 0.9):
        testing.check_mask({"name": "attentive", "ratio": ratio})


def test_hides_as_often_as_the_official_draws(piece: Callable[[str], Golden]) -> None:
    stored = piece("milan_masking")
    importance, ratio, draws = stored["in/importance"][0], float(stored["in/mask_ratio"]), int(stored["in/draws"])
    seen = visible(importance, ratio)
    assert (~seen).sum(1).unique().tolist() == stored["mask_count"].unique().tolist()
    assert standard_errors((~seen).float().mean(0), stored["mask_freq"], draws) < 5
    alone = visible(importance, 1 - 1.5 / len(importance))
    assert (alone.sum(1) == 1).all()
    assert standard_errors(alone.float().mean(0), stored["first_pick_freq"], draws) < 5
    assert standard_errors(alone.float().mean(0), importance / importance.sum(), 2**40) < 5


def test_a_uniform_draw_would_not_pass(piece: Callable[[str], Golden]) -> None:
    stored = piece("milan_masking")
    seen = visible(torch.ones(stored["mask_freq"].shape), float(stored["in/mask_ratio"]))
    assert standard_errors((~seen).float().mean(0), stored["mask_freq"], int(stored["in/draws"])) > 5


def test_pairs_follow_the_law_without_replacement() -> None:
    """P({i, j}) = p_i p_j / (1 - p_i) + p_j p_i / (1 - p_j)."""
    p = torch.tensor([0.5, 0.25, 0.15, 0.1])
    seen = visible(p, 0.5)
    for i, j in itertools.combinations(range(4), 2):
        expected = p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j])
        assert standard_errors((seen[:, i] & seen[:, j]).float().mean(), expected, 2**40) < 5


def test_the_scale_of_the_saliency_does_not_matter() -> None:
    saliency = torch.rand(16, generator=torch.Generator().manual_seed(1))
    assert visible(saliency, 0.75, 500).equal(visible(saliency / 1024, 0.75, 500))


def test_patches_without_saliency_are_seen_only_when_no_other_is_left() -> None:
    saliency = torch.tensor([0.0, 1.0, 0.0, 1e-30, 1.0, 0.0, 1.0, 0.0])
    seen = visible(saliency, 0.5)
    assert (seen[:, [1, 3, 4, 6]]).all()
    noise = torch.zeros(2, 8)  # the least a uniform draw can be
    (mask,) = sampler(0.75).from_saliency(torch.stack([saliency, torch.zeros(8)]), noise)
    assert mask.hidden.sum(1).tolist() == [6, 6]


def test_nothing_is_read_back_from_the_device() -> None:
    """Tensors without data: a value that is read, or a shape that depends on one, raises."""
    saliency = torch.rand(3, 16, device="meta")
    (mask,) = sampler(0.75).from_saliency(saliency, saliency)
    assert (mask.hidden_index.shape, mask.visible_index.shape) == ((3, 12), (3, 4))
    assert mask.hidden_valid is None


def test_indices_are_ascending_and_those_of_hidden() -> None:
    (mask,) = sampler(0.75).from_saliency(torch.rand(5, 16), torch.rand(5, 16))
    assert_close(mask.hidden_index, mask.hidden.nonzero()[:, 1].view(5, 12))
    assert_close(mask.visible_index, (~mask.hidden).nonzero()[:, 1].view(5, 4))


def test_a_ratio_that_leaves_nothing_to_see_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ratio 0.99 of 64 patches leaves 0 visible; choose another ratio"):
        load("milan-micro", ["mask.ratio=0.99"])
