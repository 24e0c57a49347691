"""Contracts of the head and recipes, and laws of attention over visible units."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations, permutations
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from unimim import Encoded, Mask, Query, View, load, plugins, testing
from unimim.layers import WindowAttention, to_units

TOY = {"name": "vit", "image_size": (16, 24), "patch_size": 4, "dim": 16, "depth": 2, "num_heads": 2}
DROP = TOY | {"masking": "drop", "positions": "sincos"}
DECODER = {"name": "decoder", "dim": 8, "depth": 1, "num_heads": 2}
SMALL = ["student.dim=8", "student.depths=[1,2]", "student.num_heads=[1,2]", "student.image_size=32"]
SMALL += ["head.dim=8", "head.depth=1", "head.num_heads=2"]


def student(**fields: Any) -> Any:
    small = {
        "image_size": 64,
        "patch_size": 4,
        "dim": 8,
        "depths": (2, 2),
        "num_heads": (1, 2),
        "window": 4,
        "masking": "drop",
    }
    torch.manual_seed(0)
    built = plugins()["students"]["swin"].Config(**small | fields).build()
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return built


def images(size: tuple[int, int], batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def drawn(num_tokens: int, num_hidden: int, batch: int = 2) -> Mask:
    """A mask of its own for every image."""
    noise = torch.rand(batch, num_tokens, generator=torch.Generator().manual_seed(num_tokens))
    return Mask.from_hidden(noise.argsort(1).argsort(1) < num_hidden, num_hidden)


def legacy(pupil: Any, out_dim: int = 5, **decoder: Any) -> Any:
    config = plugins()["heads"]["greenmim_decoder"].Config(decoder=DECODER | decoder)
    return config.build(pupil, out_dim)


def test_the_head_keeps_its_contract() -> None:
    testing.check_head({"name": "greenmim_decoder", "decoder": DECODER}, DROP)


@pytest.mark.parametrize("more", [[], ["student.patch_size=2"]])
def test_the_micro_recipe_trains(more: list[str]) -> None:
    testing.check_recipe("greenmim-micro", SMALL + more)


def test_the_micro_recipe_trains_in_the_official_order() -> None:
    head = f"head={ {'name': 'greenmim_decoder', 'decoder': DECODER} }"
    testing.check_recipe("greenmim-micro", [*SMALL[:4], head])


def test_row_of_the_table() -> None:
    recipe = load("greenmim")
    assert recipe.row == "GreenMIM (Huang et al., 2022)"
    assert [*recipe.axes().values()] == ["Pixel", "Swin", "Decoder", "LayerNorm", "l2"]
    assert load("greenmim", ["head=greenmim_decoder"]).axes() == recipe.axes()
    assert recipe.student.geometry.grid == load("greenmim-large").student.geometry.grid == (7, 7)
    assert recipe.masks["main"].num_hidden((7, 7)) == 37


def test_the_legacy_head_is_refused_where_there_is_no_order() -> None:
    with pytest.raises(ValueError, match="no mask tokens of its own"):
        load("greenmim", ["head={name: greenmim_decoder, decoder: fc}"])
    with pytest.raises(ValueError, match="masking: drop; use decoder"):
        legacy(student(masking="replace"))


@settings(max_examples=12, deadline=None)
@given(
    units=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    window=st.sampled_from([2, 4]),
    depths=st.sampled_from([(2, 2), (2, 1, 2)]),
)
def test_with_nothing_hidden_visible_units_are_the_dense_swin(
    units: tuple[int, int], window: int, depths: tuple[int, ...]
) -> None:
    """Shifted windows and maps that are not square included."""
    size = units[0] * 4 * 2 ** len(depths), units[1] * 4 * 2 ** len(depths)
    fields = {"image_size": size, "patch_size": 2, "depths": depths, "num_heads": (1,) * len(depths), "window": window}
    sparse, dense = student(**fields), student(**fields, masking="none")
    dense.load_state_dict(sparse.state_dict())
    view = View(images(size))
    tokens = sparse(view, Mask.from_hidden(torch.zeros(2, sparse.geometry.num_tokens, dtype=torch.bool), 0)).tokens
    assert torch.allclose(tokens, dense(view).tokens, rtol=0, atol=2e-5)


@settings(max_examples=25, deadline=None)
@given(
    grid=st.sampled_from([(4, 4), (2, 4), (4, 6)]),
    unit=st.sampled_from([1, 2, 4]),
    window=st.sampled_from([2, 4, 8]),
    shift=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_a_visible_token_sees_those_of_its_window_and_no_others(
    grid: tuple[int, int], unit: int, window: int, shift: bool, seed: int
) -> None:
    """Pair by pair from coordinates: GreenMIM's definition, where windows end at the border instead of wrapping around."""
    size = grid[0] * unit, grid[1] * unit
    assume(not size[0] % window and not size[1] % window and not (shift and min(size) <= window))
    torch.manual_seed(seed)
    num_tokens = grid[0] * grid[1]
    attention = WindowAttention(8, 2, size, (window, window), grid, shift)
    torch.nn.init.normal_(attention.bias.table)
    mask = Mask.from_hidden(torch.rand(2, num_tokens).argsort(1) < num_tokens * 3 // 4, num_tokens * 3 // 4)
    x = torch.randn(2, mask.visible_index.shape[1] * unit**2, 8)
    seen = attention(x, mask.visible_index)
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    place = to_units(torch.stack([rows, columns], -1)[None].float(), grid)[0].long()  # (N, u u, 2)
    for image in range(2):
        at = place[mask.visible_index[image]].flatten(0, 1)
        assert torch.allclose(seen[image], pairwise(attention, x[image], at, window, shift), rtol=0, atol=1e-5)


def pairwise(attention: WindowAttention, x: Tensor, at: Tensor, window: int, shift: bool) -> Tensor:
    """x (T, D) at coordinates (T, 2) -> (T, D)."""
    moved = (at + (window - window // 2 if shift else 0)) // window
    together = (moved[:, None] == moved[None]).all(-1)
    apart = at[:, None] - at[None] + window - 1
    rows = (apart[..., 0] * (2 * window - 1) + apart[..., 1]).clamp(0, len(attention.bias.table) - 1)
    q, k, v = attention.qkv(x).view(len(x), 3, attention.num_heads, -1).permute(1, 2, 0, 3)
    logits = q @ k.mT / math.sqrt(q.shape[-1]) + attention.bias.table[rows].permute(2, 0, 1)
    mixed = logits.masked_fill(~together, -torch.inf).softmax(-1) @ v
    result: Tensor = attention.proj(mixed.transpose(0, 1).flatten(1))
    return result


@pytest.mark.parametrize("legacy_order", [False, True])
def test_hidden_pixels_change_nothing(legacy_order: bool) -> None:
    pupil, mask = student(), drawn(64, 48)
    head = legacy(pupil) if legacy_order else legacy(pupil).decoder
    shown = images((64, 64))
    pixels = mask.hidden.view(2, 1, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    query = Query(torch.arange(64).expand(2, -1))
    seen, blind = (head(pupil(View(image), mask), query) for image in (shown, torch.where(pixels, 1 - shown, shown)))
    assert (seen - blind).abs().max().item() == 0.0


def slots(head: Any, mask: Mask, dim: int) -> Tensor:
    """(B, L): where each visible token ends up, from the prediction it changes. Without blocks a slot speaks for itself."""
    batch, length = mask.visible_index.shape
    tokens = torch.randn(batch, length, dim, generator=torch.Generator().manual_seed(3))
    encoded = Encoded(tokens, tokens[:, :0], (8, 8), mask.visible_index)
    query = Query(torch.arange(64).expand(batch, -1))
    before, found = head(encoded, query), []
    for j in range(length):
        moved = tokens.clone()
        moved[:, j] += 1
        changed = (head(replace(encoded, tokens=moved), query) - before).abs().amax(-1) > 0
        assert (changed.sum(1) == 1).all()
        found.append(changed.long().argmax(1))
    return torch.stack(found, 1)


def test_each_visible_token_lands_on_its_own_slot_but_for_the_legacy_head() -> None:
    pupil, mask = student(), drawn(64, 48)
    head = legacy(pupil, depth=0)
    assert slots(head.decoder, mask, pupil.dim).equal(mask.visible_index)
    permuted = slots(head, mask, pupil.dim)
    assert permuted.equal(mask.visible_index.gather(1, head.order(mask.visible_index)))
    assert not permuted.equal(mask.visible_index)
    assert permuted.sort(1).values.equal(mask.visible_index)


def test_one_in_l_lands_on_its_own_slot_in_the_legacy_order() -> None:
    """GreenMIM's own numbers: 12 of 49. The number of fixed points of a random permutation has mean 1 and variance 1."""
    draws, length = 4000, 12
    index = torch.rand(draws, 49, generator=torch.Generator().manual_seed(0)).argsort(1)[:, :length].sort(1).values
    order = legacy(student()).order(index)
    share = (order == torch.arange(length)).float().mean().item()
    assert abs(share - 1 / length) < 4 / (length * math.sqrt(draws))


def test_every_order_is_as_likely() -> None:
    masks = torch.tensor([*combinations(range(20), 4)])
    order = legacy(student()).order(masks)
    counts = torch.tensor([(order == torch.tensor(wanted)).all(1).sum() for wanted in permutations(range(4))]).float()
    expected = len(masks) / 24
    chi_square = ((counts - expected).square() / expected).sum().item()
    assert chi_square < 23 + 5 * math.sqrt(2 * 23)


@settings(max_examples=30, deadline=None)
@given(positions=st.lists(st.integers(0, 195), min_size=1, max_size=60, unique=True).map(sorted))
def test_the_order_is_a_permutation_and_a_function_of_the_mask_alone(positions: list[int]) -> None:
    index, order = torch.tensor([positions]), legacy(student()).order
    alone = order(index)
    assert alone.sort(1).values.equal(torch.arange(len(positions))[None])
    torch.manual_seed(len(positions))
    assert order(torch.cat([(index + 1), index]))[1:].equal(alone)


def test_windows_without_a_visible_token_and_bfloat16_give_finite_gradients() -> None:
    """One visible unit of 64, so that most windows of the first stage are empty."""
    mask = drawn(64, 63)
    gradients = {}
    for enabled in (False, True):
        pupil = student()
        with torch.autocast("cpu", torch.bfloat16, enabled):
            tokens = pupil(View(images((64, 64))), mask).tokens
        assert tokens.isfinite().all()
        tokens.float().square().mean().backward()
        gradients[enabled] = torch.cat([p.grad.flatten() for p in pupil.parameters()])
        assert gradients[enabled].isfinite().all()
    assert torch.cosine_similarity(gradients[True], gradients[False], 0) > 0.99
