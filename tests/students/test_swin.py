"""Swin: shifted windows against a plain formulation, visible units against dense, and sizes that do not divide."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from unimim import Mask, View
from unimim.axes import StudentConfig
from unimim.layers import PatchMerge, WindowAttention, to_units
from unimim.layers.positions import relative_index
from unimim.students.swin import Swin

TOY: dict[str, Any] = {
    "image_size": (32, 64),
    "patch_size": 2,
    "dim": 8,
    "depths": (2, 2, 2),
    "num_heads": (1, 2, 2),
    "window": 4,
}


def stirred(module: Any) -> Any:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(
                0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    return module


def plain(attention: WindowAttention, x: Tensor, shown: Tensor, shift: int) -> Tensor:
    """Token by token over a map x (H, W, D): every token sees the shown ones of its window, windows begin at `shift` and
    do not reach around the border."""
    height, width, dim = x.shape
    side, heads = attention.window[0], attention.num_heads
    q, k, v = attention.qkv(x).view(height, width, 3, heads, -1).unbind(2)
    table = attention.bias.table[relative_index((side, side), 0)]  # (n, n, heads)
    out = torch.zeros(height, width, dim)
    window = [(axis + side - shift) // side for axis in range(max(height, width))]
    inside = [(axis + side - shift) % side for axis in range(max(height, width))]
    for r in range(height):
        for c in range(width):
            seen = [
                (i, j)
                for i in range(height)
                for j in range(width)
                if (window[i], window[j]) == (window[r], window[c]) and shown[i, j]
            ]
            for head in range(heads if seen else 0):
                own = inside[r] * side + inside[c]
                logits = [
                    q[r, c, head] @ k[i, j, head] * q.shape[-1] ** -0.5 + table[own, inside[i] * side + inside[j], head]
                    for i, j in seen
                ]
                mixed = torch.stack(logits).softmax(0) @ torch.stack([v[i, j, head] for i, j in seen])
                out[r, c, head * mixed.numel() : (head + 1) * mixed.numel()] = mixed
    return attention.proj(out)  # type: ignore[no-any-return]


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("grid", [(4, 2), (2, 4)])
def test_windows_are_those_of_a_plain_formulation(shift: bool, grid: tuple[int, int]) -> None:
    size, dim = (8, 8), 8
    attention = stirred(WindowAttention(dim, 2, size, (4, 4), grid, shift))
    x = torch.randn(1, *size, dim)
    units = to_units(x, grid)
    everything = plain(attention, x[0], torch.ones(size, dtype=torch.bool), 2 * shift)
    dense = attention(units.flatten(1, 2)).view_as(units)
    torch.testing.assert_close(dense, to_units(everything[None], grid), rtol=1e-4, atol=1e-5)
    kept = torch.tensor([[1, 4, 6]])
    shown = torch.zeros(1, 8, 8, 1).index_fill_(1, kept[0], 1.0)
    back = torch.zeros(1, *size, 1)
    order = to_units(torch.arange(64).view(1, 8, 8, 1), grid).flatten()
    back.view(-1)[order] = shown.flatten()
    visible = plain(attention, x[0], back[0, :, :, 0] > 0, 2 * shift)
    found = attention(units[:, kept[0]].flatten(1, 2), kept).view(1, 3, 8, dim)
    torch.testing.assert_close(found, to_units(visible[None], grid)[:, kept[0]], rtol=1e-4, atol=1e-5)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_units_hold_what_lies_under_a_token(rows: int, columns: int, side: int) -> None:
    height, width = rows * side, columns * side
    place = torch.arange(height * width).view(1, height, width, 1)
    units = to_units(place, (rows, columns))[0, :, :, 0]
    for number, unit in enumerate(units):
        assert {(int(p) // width // side, int(p) % width // side) for p in unit} == {divmod(number, columns)}
        assert unit.tolist() == sorted(unit.tolist())


def test_merging_puts_rows_before_columns() -> None:
    merge = PatchMerge(1, 2)
    merge.norm, merge.reduction = torch.nn.Identity(), torch.nn.Identity()  # type: ignore[assignment]
    x = torch.tensor([[0.0, 1.0, 10.0, 11.0]]).view(1, 4, 1)  # (0,0), (0,1), (1,0), (1,1) of one unit
    assert merge(x).tolist() == [[[0.0, 10.0, 1.0, 11.0]]]


def test_with_everything_visible_the_two_ways_of_hiding_agree() -> None:
    drop = stirred(Swin.Config(**TOY, masking="drop").build()).eval()
    view = View(torch.rand(2, 3, 32, 64))
    mask = Mask.from_hidden(torch.zeros(2, drop.geometry.num_tokens, dtype=torch.bool), 0)
    torch.testing.assert_close(drop(view, mask).tokens, drop(view).tokens, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 224}, "window 6: stage 0 has 56x56 tokens, which windows of 6x6 do not divide (nearest image_size for "
         "window 6: 96 or 192, window for this image: 7 or 14)"),
        ({"image_size": 200}, "not whole units of 32 pixels, the last stage's stride (nearest image_size for window 6: 96 "),
        ({"image_size": 192, "window": 7}, "(nearest image_size for window 7: 224 or 448, window for this image: 3 or 6)"),
        ({"num_heads": (4, 8, 16)}, "need one number a stage each"),
        ({"num_heads": (3, 8, 16, 32)}, "width 128 of stage 0 does not divide into 3"),
        ({"size": "giant"}, "unknown size 'giant'; choose one of micro, tiny"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_divide_name_those_that_do(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as raised:
        TypeAdapter(StudentConfig).validate_python({"name": "swin", **fields})
    assert message in str(raised.value)


def test_the_sizes_it_names_work() -> None:
    for image, window in [(96, 6), (192, 6), (224, 7), (224, 14), (448, 7), (192, 3)]:
        Swin.Config(image_size=image, window=window)


def test_layers_count_through_all_stages() -> None:
    student = Swin.Config(**TOY).build()
    assert student.config.num_layers == 6
    assert [student.layer_of(name) for name in ("mask_token", "patch_norm.bias", "norm.bias")] == [0, 0, 7]
    names = ["stages.0.0.norm1.bias", "stages.0.1.attn.bias.table", "merges.0.norm.bias", "stages.1.0.mlp.fc1.bias"]
    assert [student.layer_of(name) for name in names] == [1, 2, 2, 3]
