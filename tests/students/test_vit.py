"""The ViT on images of another size than it was built for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from unimim import View
from unimim.layers import sincos_2d
from unimim.students.vit import ViT


def build(**fields: Any) -> ViT:
    toy = {"image_size": 32, "patch_size": 8, "dim": 16, "depth": 1, "num_heads": 2}
    torch.manual_seed(0)
    return ViT.Config(**(toy | fields)).build()  # type: ignore[return-value]


@pytest.mark.parametrize("positions", ["learned", "sincos", "sincos_row", "none"])
def test_another_size_has_its_own_grid_of_tokens(positions: str) -> None:
    student = build(positions=positions)
    encoded = student(View(torch.rand(2, 3, 16, 40)))
    assert encoded.grid == (2, 5)
    assert encoded.tokens.shape == (2, 10, 16)


def test_learned_positions_are_resampled_bicubic_and_the_class_token_keeps_its_own() -> None:
    student = build()
    same, small = student._positions((4, 4)), student._positions((2, 2))
    assert same is student.pos_embed
    assert small is not None
    assert student.pos_embed is not None
    plane = student.pos_embed[:, 1:].view(1, 4, 4, 16).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(plane, scale_factor=0.5, mode="bicubic")
    assert_close(small[:, 1:], expected.flatten(2).transpose(1, 2))
    assert small[:, :1].equal(student.pos_embed[:, :1])


@pytest.mark.parametrize(("positions", "first"), [("sincos", "column"), ("sincos_row", "row")])
def test_fixed_positions_are_computed_for_the_new_grid(positions: str, first: Any) -> None:
    found = build(positions=positions)._positions((2, 5))
    assert found is not None
    assert found[0, 1:].equal(sincos_2d((2, 5), 16, first))
    assert not found[0, 0].any()


def test_relative_positions_belong_to_one_size() -> None:
    student = build(positions="none", relative_positions="shared")
    assert not student.config.can_resize
    with pytest.raises(ValueError, match="relative positions for images of"):
        student(View(torch.rand(1, 3, 16, 16)))


@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_adapting_to_the_same_config_changes_nothing_and_to_another_size_keeps_what_fits(positions: str) -> None:
    small = {"size": "micro", "image_size": 32, "patch_size": 8, "depth": 2, "positions": positions}
    student = ViT.Config.model_validate(small | {"relative_positions": "shared"}).build().eval()
    torch.nn.init.normal_(student.shared_bias.table)
    image = View(torch.rand(2, 3, 32, 32))
    spread_out = student.adapt(relative_positions="per_block", drop_path=0.1).eval()
    torch.testing.assert_close(spread_out(image).tokens, student(image).tokens)
    larger = spread_out.adapt(image_size=48)
    assert larger.geometry.grid == (6, 6)
    assert larger(View(torch.rand(1, 3, 48, 48))).tokens.shape == (1, 36, 128)
    torch.testing.assert_close(larger.block_bias[0].table[-3:], student.shared_bias.table[-3:])
    with pytest.raises(ValueError, match="its weights cannot follow dim=64: "):
        student.adapt(dim=64)


def test_relative_tables_keep_constants_and_follow_cubics() -> None:
    from unimim.layers.positions import resize_relative, spline_matrix

    table = torch.full((7 * 9 + 3, 2), 0.7)
    torch.testing.assert_close(resize_relative(table, (4, 5), (6, 8)), torch.full((11 * 15 + 3, 2), 0.7))
    assert resize_relative(table, (4, 5), (4, 5)) is table
    x = torch.tensor([-3.0, -2.2, -1, 0, 1.1, 2, 3.5], dtype=torch.float64)
    at = torch.linspace(-3, 3.5, 20, dtype=torch.float64)
    for power in range(4):
        torch.testing.assert_close(spline_matrix(x, at) @ x**power, at**power)
