"""Laws of the mask samplers, on grids of any shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from unimim.address import rng
from unimim.masks import Block, NoMask, Random, Split

sides = st.integers(2, 16)
grids = st.tuples(sides, sides)
ratios = st.floats(0.05, 0.95)
seeds = st.integers(0, 2**31)
Grid = tuple[int, int]


def build(kind: type[Any], **fields: Any) -> Any:
    return kind.Config(**fields).build()


def coverage(sampler: Any, grid: Grid, draws: int) -> np.ndarray[Any, Any]:
    """How often each cell of the grid is hidden."""
    return np.mean([sampler.sample(grid, rng(seed))[0] for seed in range(draws)], axis=0).reshape(grid)


@given(grids, ratios, seeds)
def test_random_hides_what_the_official_floor_leaves(grid: Grid, ratio: float, seed: int) -> None:
    sampler, num_tokens = build(Random, ratio=ratio), grid[0] * grid[1]
    visible = int(num_tokens * (1 - ratio))
    if not 1 <= visible < num_tokens:
        with pytest.raises(ValueError, match=r"patches leaves .* visible; choose another ratio"):
            sampler.config.num_hidden(grid)
        return
    hidden = sampler.sample(grid, rng(seed))
    assert hidden.shape == (1, num_tokens)
    assert hidden.sum() == sampler.config.num_hidden(grid) == num_tokens - visible
    assert hidden.mean() >= ratio - 1e-9, "the floor of visible patches makes the ratio at least what was asked for"


@given(grids, st.integers(2, 6), ratios, seeds)
def test_folds_of_one_draw_see_no_patch_twice(grid: Grid, folds: int, ratio: float, seed: int) -> None:
    sampler, num_tokens = build(Split, folds=folds, ratio=ratio), grid[0] * grid[1]
    visible = int(num_tokens * (1 - ratio))
    if not 1 <= visible <= num_tokens // folds:
        with pytest.raises(ValueError, match=r"patches to each of . folds, which takes .*; change ratio or folds"):
            sampler.config.num_hidden(grid)
        return
    hidden = sampler.sample(grid, rng(seed))
    assert hidden.shape == (folds, num_tokens) == (sampler.config.num_folds, num_tokens)
    assert (~hidden).sum(1).tolist() == [visible] * folds
    assert sampler.config.num_hidden(grid) == num_tokens - visible
    assert (~hidden).sum(0).max() <= 1


def test_two_halves_are_each_others_complement_and_every_patch_is_as_likely_in_both() -> None:
    sampler = build(Split)
    first, second = sampler.sample((4, 6), rng(0))
    assert (first == ~second).all()
    assert np.abs(coverage(sampler, (4, 6), 2000) - 0.5).max() < 0.06
    assert build(Split, folds=5, ratio=0.8).config.num_visible((14, 14)) == 39  # ExtreMA's


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), ratios, seeds)
def test_random_units_are_hidden_whole(rows: int, columns: int, unit: int, ratio: float, seed: int) -> None:
    sampler, grid = build(Random, ratio=ratio, unit=unit), (rows * unit, columns * unit)
    visible = int(rows * columns * (1 - ratio))
    if not 1 <= visible < rows * columns:
        return
    hidden = sampler.sample(grid, rng(seed)).reshape(rows, unit, columns, unit)
    assert (hidden == hidden[:, :1, :, :1]).all()
    assert hidden[:, 0, :, 0].sum() == rows * columns - visible
    assert hidden.sum() == sampler.config.num_hidden(grid)


@pytest.mark.parametrize(("units", "hidden"), [(36, 22), (49, 30)])
def test_units_of_32_pixels_are_simmims(units: int, hidden: int) -> None:
    """microsoft/SimMIM @ d3e29bc: ceil(0.6 x 36) of a 192-pixel and ceil(0.6 x 49) of a 224-pixel image."""
    side = int(units**0.5)
    assert build(Random, ratio=0.6, unit=2).config.num_hidden((2 * side, 2 * side)) == 4 * hidden


def test_units_that_do_not_divide_the_grid_name_the_nearest_that_does() -> None:
    with pytest.raises(ValueError, match=r"14x14 patches are not whole units of 4x4; nearest [27]"):
        Random.Config(unit=4).num_hidden((14, 14))


@given(grids, st.data(), st.integers(1, 40), st.floats(0.1, 1), st.booleans(), seeds)
def test_block_hides_no_more_than_its_budget_and_exactly_it_if_exact(
    grid: Grid, data: st.DataObject, min_block: int, min_aspect: float, exact: bool, seed: int
) -> None:
    num_tokens, largest = grid[0] * grid[1], (grid[0] - 1) * (grid[1] - 1)
    count = data.draw(st.integers(1, num_tokens - 1))
    if min_block > largest:
        with pytest.raises(ValueError, match="do not fit inside"):
            Block.Config(count=count, min_block=min_block).num_hidden(grid)
        return
    sampler = build(Block, count=count, min_block=min_block, min_aspect=min_aspect, exact=exact)
    hidden = sampler.sample(grid, rng(seed))
    assert hidden.shape == (1, num_tokens)
    assert hidden.sum() == count if exact else hidden.sum() <= count
    assert sampler.config.num_hidden(grid) == (count if exact else None)
    assert np.array_equal(hidden, sampler.sample(grid, rng(seed)))


@given(grids, ratios)
def test_a_ratio_is_rounded_down_to_whole_patches(grid: Grid, ratio: float) -> None:
    config, count = Block.Config(ratio=ratio, min_block=1, exact=True), int(grid[0] * grid[1] * ratio)
    if count:
        assert config.num_hidden(grid) == count
    else:
        with pytest.raises(ValueError, match="nothing to hide or to see"):
            config.num_hidden(grid)


@given(grids, seeds)
def test_nothing_is_nothing(grid: Grid, seed: int) -> None:
    assert build(NoMask).config.num_hidden(grid) == 0
    assert not build(NoMask).sample(grid, rng(seed)).any()


def test_random_is_uniform_over_patches() -> None:
    """Each of 24 patches is hidden in 18 of 24 draws: a frequency within five standard errors of 3/4."""
    seen = coverage(build(Random, ratio=0.75), (4, 6), 2000)
    assert abs(seen - 0.75).max() < 5 * (0.75 * 0.25 / 2000) ** 0.5


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("grid", [(14, 14), (8, 8), (6, 14)])
def test_blocks_reach_every_row_and_column(grid: Grid, exact: bool) -> None:
    """A sampler that draws the corner from [0, H - h) never hides the last row and column."""
    seen = coverage(build(Block, ratio=0.38, min_block=min(16, grid[0]), exact=exact), grid, 400)
    assert seen.min() > 0
    assert seen[-1].mean() == pytest.approx(seen[0].mean(), abs=0.08)
    assert seen[:, -1].mean() == pytest.approx(seen[:, 0].mean(), abs=0.08)
    assert seen[0].mean() < seen[grid[0] // 2].mean(), "blocks hide the centre more often than the edge"


def test_block_statistics_are_those_measured_on_the_official_sampler() -> None:
    """microsoft/unilm @ 768a3c8 on 14x14 with 75 patches, 4000 draws: mean 74.49, 75 in 67.5%, centre 72%, corner 4%,
    last row 14%."""
    draws = [build(Block, count=75).sample((14, 14), rng(seed))[0] for seed in range(1000)]
    counts, seen = np.sum(draws, axis=1), np.mean(draws, axis=0).reshape(14, 14)
    assert counts.max() == 75
    assert counts.mean() == pytest.approx(74.49, abs=0.15)
    assert (counts == 75).mean() == pytest.approx(0.675, abs=0.08)
    assert seen[6:8, 6:8].mean() == pytest.approx(0.72, abs=0.05)
    assert seen[[0, 0, -1, -1], [0, -1, 0, -1]].mean() == pytest.approx(0.04, abs=0.02)
    assert seen[-1].mean() == pytest.approx(0.14, abs=0.03)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Random, {"ratio": 0}),
        (Random, {"ratio": 1}),
        (Block, {}),
        (Block, {"ratio": 0.4, "count": 7}),
        (Block, {"count": 0}),
    ],
)
def test_impossible_settings_are_refused(kind: type[Any], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind.Config(**fields)


@pytest.mark.parametrize(
    ("grid", "count", "said"),
    [
        ((2, 2), 4, "leaves nothing to hide or to see"),
        ((2, 2), 9, "leaves nothing to hide or to see"),
        ((1, 9), 3, "blocks of 16 patches do not fit inside 1x9; lower min_block"),
        ((4, 4), 7, "blocks of 16 patches do not fit inside 4x4; lower min_block"),
    ],
)
def test_a_grid_too_small_for_blocks_is_refused(grid: Grid, count: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Block.Config(count=count, exact=True).num_hidden(grid)
