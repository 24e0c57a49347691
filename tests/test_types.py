"""Types that cross the seams: index forms, gathering, pixels, moving between devices."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter

from unimim import Batch, Encoded, Geometry, Mask, Progress, Rendition, View
from unimim.axes import StudentConfig
from unimim.types import gather, scatter


def test_exact_mask_has_no_padding_and_ascending_complementary_indices() -> None:
    mask = Mask.from_hidden(torch.tensor([[True, False, True, False], [False, True, True, False]]), 2)
    assert mask.hidden_index.tolist() == [[0, 2], [1, 2]]
    assert mask.visible_index.tolist() == [[1, 3], [0, 3]]
    assert mask.hidden_valid is None
    assert mask.visible_valid is None


def test_varying_mask_is_padded_to_the_batch_maximum_with_validity() -> None:
    mask = Mask.from_hidden(torch.tensor([[True, False, True, True], [False, True, False, False]]))
    assert mask.hidden_index.shape == (2, 3)
    assert mask.visible_index.shape == (2, 3)
    assert mask.hidden_valid is not None
    assert mask.visible_valid is not None
    assert [row[ok].tolist() for row, ok in zip(mask.hidden_index, mask.hidden_valid, strict=True)] == [[0, 2, 3], [1]]
    assert [row[ok].tolist() for row, ok in zip(mask.visible_index, mask.visible_valid, strict=True)] == [
        [1],
        [0, 2, 3],
    ]


def test_equal_counts_need_no_padding_even_if_nobody_promised_them() -> None:
    mask = Mask.from_hidden(torch.tensor([[True, False], [False, True]]))
    assert mask.hidden_valid is None
    assert mask.hidden_index.tolist() == [[0], [1]]


def test_gather_keeps_trailing_dimensions_and_ids() -> None:
    ids, index = torch.arange(8).view(2, 4), torch.tensor([[3, 0], [1, 1]])
    assert gather(ids, index).tolist() == [[3, 0], [5, 5]]
    assert gather(torch.randn(2, 4, 3, 5), index).shape == (2, 2, 3, 5)
    assert gather(ids, index[:, :0]).shape == (2, 0)


def test_scatter_leaves_its_base_alone() -> None:
    base = torch.zeros(1, 3, 2)
    assert scatter(torch.ones(1, 1, 2), torch.tensor([[1]]), base).tolist() == [[[0, 0], [1, 1], [0, 0]]]
    assert not base.any()


def test_a_sparse_student_is_read_at_grid_positions_in_any_order() -> None:
    tokens = torch.tensor([[[10.0], [12.0], [15.0]]])
    encoded = Encoded(tokens, torch.zeros(1, 0, 1), (2, 3), torch.tensor([[0, 2, 5]]))
    assert encoded.at(torch.tensor([[5, 0]])).flatten().tolist() == [15, 10]
    assert encoded.index is not None
    assert encoded.at(encoded.index) is tokens


def test_pixels_are_floats_in_0_1_of_the_asked_rendition() -> None:
    small = Rendition((2, 2), "lanczos")
    view = View(torch.full((1, 3, 4, 4), 255, dtype=torch.uint8), {small: torch.zeros(1, 3, 2, 2, dtype=torch.uint8)})
    assert view.pixels().unique().tolist() == [1.0]
    assert view.pixels(small).shape == (1, 3, 2, 2)
    assert view.pixels(Rendition((4, 4))) is not None
    with pytest.raises(ValueError, match="holds no Rendition"):
        view.pixels(Rendition((4, 4), "lanczos"))
    floats = torch.tensor([-0.2, 1.3]).view(1, 1, 1, 2)
    assert View(floats).pixels() is floats, "float pixels are never clamped"


def test_a_batch_moves_with_everything_inside_it() -> None:
    mask = Mask.from_hidden(torch.eye(4, dtype=torch.bool), 1)
    rendition = Rendition((2, 2))
    view = View(torch.zeros(4, 3, 4, 4), {rendition: torch.zeros(4, 3, 2, 2)}, torch.zeros(4, 4))
    batch = Batch({"main": view}, {"main": (mask,)}, torch.arange(4))
    moved = batch.to("meta")
    assert len(batch) == 4
    assert moved.views["main"].renditions[rendition].is_meta
    assert moved.masks["main"][0].hidden_index.is_meta
    assert moved.views["main"].flip is None
    assert moved.index.is_meta
    assert not batch.index.is_meta


def test_geometry_counts_tokens_and_pixels_by_rows_and_columns() -> None:
    geometry = Geometry((16, 48), (2, 3), 8)
    assert geometry.num_tokens == 6
    assert geometry.patch == (8, 16)
    assert (geometry.masked_dim, replace(geometry, masked=4).masked_dim) == (8, 4)


def test_progress_counts_epochs_of_steps() -> None:
    assert [Progress(step, 10, 4).epoch for step in (0, 3, 4, 9)] == [0, 0, 1, 2]
    assert Progress(5, 10, 4).fraction == 0.5


def test_what_a_mask_with_substitutes_leaves_unseen() -> None:
    """Hidden 0 and 1: 0 shows patch 3, 1 the mask token, 2 shows itself although it is asked about."""
    hidden = torch.tensor([[True, True, True, False]])
    mask = replace(Mask.from_hidden(hidden), source=torch.tensor([[3, -1, 2, 3]]))
    assert mask.unseen.tolist() == [[True, True, False, False]]
    assert Mask.from_hidden(hidden).unseen.equal(hidden)
    assert mask.to("cpu").source.equal(mask.source)  # type: ignore[union-attr, arg-type]


def test_a_vit_shows_the_source_of_every_patch() -> None:
    config = {"image_size": 8, "patch_size": 4, "dim": 8, "depth": 1, "num_heads": 1, "positions": "none"}
    student = TypeAdapter(StudentConfig).validate_python({"name": "vit", **config}).build()
    with torch.no_grad():
        student.mask_token.fill_(7.0)
    view = View(torch.rand(1, 3, 8, 8))
    plain, _ = student.embed(view)
    mask = replace(Mask.from_hidden(torch.tensor([[True, True, True, False]])), source=torch.tensor([[3, -1, 2, 3]]))
    seen, _ = student.embed(view, mask)
    assert seen[0, 1:].equal(torch.stack([plain[0, 4], torch.full((8,), 7.0), plain[0, 3], plain[0, 4]]))
