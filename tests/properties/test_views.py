"""Laws of the view policies: one box, many renditions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unimim import Rendition, View
from unimim.address import rng
from unimim.views import Center, ColorDraw, Colors, Crop, MultiCrop, Pair, random_box

sides = st.integers(1, 90)
sizes = st.tuples(st.integers(2, 40), st.integers(2, 40))
seeds = st.integers(0, 2**31)
interpolations = st.sampled_from(["bilinear", "bicubic", "lanczos"])
Size = tuple[int, int]


def build(kind: type[Any], **fields: Any) -> Any:
    return kind.Config(**fields).build()


def gradient(height: int, width: int) -> Tensor:
    """uint8 (3, H, W): the row in the first channel and the column in the second, both from 0 to 255."""
    rows = torch.linspace(0, 255, height).view(-1, 1).expand(height, width)
    columns = torch.linspace(0, 255, width).expand(height, width)
    return torch.stack([rows, columns, 255 - rows]).round().to(torch.uint8)


def draw(policy: Any, image: Tensor, seed: int, size: Size, *renditions: Rendition) -> View:
    views = policy.sample(image, rng(seed), size, renditions)
    assert [*views] == ["main"]
    return views["main"]


POLICIES = [build(Crop), build(Crop, scale=(0.08, 1), jitter=0.4), build(Center), build(Center, share=0.8)]


@given(st.sampled_from(POLICIES), sides, sides, sizes, st.lists(st.tuples(sizes, interpolations), max_size=2), seeds)
def test_a_view_has_every_rendition_and_a_box_inside_the_image(
    policy: Any, height: int, width: int, size: Size, asked: list[tuple[Size, Any]], seed: int
) -> None:
    renditions = [Rendition(*rendition) for rendition in asked]
    view = draw(policy, gradient(height, width), seed, size, *renditions)
    assert view.image.shape == (1, 3, *size)
    assert {*view.renditions} == {*renditions}
    assert all(cut.shape == (1, 3, *rendition.size) for rendition, cut in view.renditions.items())
    assert all(cut.dtype == torch.uint8 for cut in (view.image, *view.renditions.values()))
    assert view.box is not None
    top, left, h, w = view.box[0].tolist()
    assert min(top, left) >= 0
    assert min(h, w) > 0
    assert max(top + h, left + w) <= 1 + 1e-6
    whole = h * height, w * width
    assert whole == pytest.approx([round(side) for side in whole], abs=1e-3), "boxes are whole pixels"


@given(st.sampled_from(POLICIES), st.integers(40, 90), st.integers(40, 90), interpolations, seeds)
def test_renditions_show_the_same_box_mirrored_alike(
    policy: Any, height: int, width: int, interpolation: Any, seed: int
) -> None:
    """A smooth image cut at twice the size and averaged back is the image at the size, up to interpolation."""
    double = Rendition((32, 48), interpolation)
    view = draw(policy, gradient(height, width), seed, (16, 24), double)
    back = torch.nn.functional.avg_pool2d(view.renditions[double].float(), 2)
    assert (back - view.image.float())[..., 1:-1, 1:-1].abs().max() < 6


@given(st.integers(40, 90), st.integers(40, 90), seeds)
def test_the_box_and_the_mirror_are_what_the_view_says(height: int, width: int, seed: int) -> None:
    """On the gradient image, corner values are the box: first channel its rows, second its columns, mirrored if flipped."""
    view = draw(build(Crop, interpolation="bilinear"), gradient(height, width), seed, (64, 64))
    assert view.box is not None
    assert view.flip is not None
    top, left, h, w = view.box[0].tolist()
    rows, columns = view.image[0, 0].float() / 255, view.image[0, 1].float() / 255
    columns = columns.flip(-1) if view.flip.item() else columns
    assert rows[32, 32] == pytest.approx(top + h / 2, abs=0.03)
    assert columns[32, 32] == pytest.approx(left + w / 2, abs=0.03)
    assert float(rows[-1, 0] - rows[0, 0]) == pytest.approx(h, abs=0.05)
    assert float(columns[0, -1] - columns[0, 0]) == pytest.approx(w, abs=0.05)


@given(st.integers(8, 60), st.integers(8, 60), seeds)
def test_a_mirrored_draw_is_the_plain_draw_flipped(height: int, width: int, seed: int) -> None:
    image, size = gradient(height, width), (12, 20)
    plain, mirrored = (draw(build(Crop, flip=flip), image, seed, size, Rendition((8, 8))) for flip in (0.0, 1.0))
    assert plain.box is not None
    assert mirrored.box is not None
    assert torch.equal(plain.box, mirrored.box)
    for a, b in zip(
        (plain.image, *plain.renditions.values()), (mirrored.image, *mirrored.renditions.values()), strict=True
    ):
        assert (a.int() - b.flip(-1).int()).abs().max() <= 1


@given(sides, sides, st.floats(0.01, 1), st.floats(0, 1), seeds)
def test_a_box_has_the_asked_share_and_ratio_or_is_the_largest_legal_one(
    height: int, width: int, low: float, span: float, seed: int
) -> None:
    scale = low, low + (1 - low) * span
    top, left, h, w = random_box(height, width, scale, (3 / 4, 4 / 3), rng(seed))
    assert min(top, left) >= 0
    assert min(h, w) >= 1
    assert top + h <= height
    assert left + w <= width
    if min(h, w) >= 10 and (top, left) != ((height - h) // 2, (width - w) // 2):  # else the fallback, or rounding rules
        assert (3 / 4) * 0.9 < w / h < (4 / 3) * 1.1
        assert scale[0] * 0.85 < h * w / (height * width) < scale[1] * 1.15


def test_the_centre_is_the_central_square() -> None:
    view = draw(build(Center), gradient(40, 60), 0, (40, 40))
    assert view.box is not None
    assert view.box.tolist() == [[0, pytest.approx(10 / 60), 1, pytest.approx(40 / 60)]]
    assert torch.equal(view.image[0], gradient(40, 60)[:, :, 10:50])


def test_area_and_ratio_are_uniform_where_nothing_is_cut_off() -> None:
    boxes = [random_box(1000, 1000, (0.1, 0.4), (3 / 4, 4 / 3), rng(seed)) for seed in range(1000)]
    area = torch.tensor([h * w / 1e6 for _, _, h, w in boxes])
    aspect = torch.tensor([w / h for _, _, h, w in boxes]).log() / torch.tensor(4 / 3).log()
    for x, low, high in ((area, 0.1, 0.4), (aspect, -1, 1)):
        quartiles = torch.quantile(x, torch.tensor([0.25, 0.5, 0.75]))
        assert quartiles.tolist() == pytest.approx(
            [low + (high - low) * q for q in (0.25, 0.5, 0.75)], abs=(high - low) / 15
        )


def test_jitter_changes_colours_of_all_renditions_together() -> None:
    image, rendition = torch.full((3, 30, 30), 100, dtype=torch.uint8), Rendition((8, 8))
    image[0] = 160
    views = [draw(build(Crop, jitter=0.4), image, seed, (16, 16), rendition) for seed in range(20)]
    colours = torch.stack([view.image[0, :, 0, 0] for view in views])
    assert len(colours.unique(dim=0)) > 10
    for view in views:
        assert (view.renditions[rendition].float().mean((2, 3)) - view.image.float().mean((2, 3))).abs().max() <= 1


STRONG = {"jitter": 0.8, "grey": 0.2, "blur": 0.5, "solarize": 0.2}


@given(st.integers(40, 90), st.integers(40, 90), seeds)
def test_a_shared_crop_differs_in_colours_alone(height: int, width: int, seed: int) -> None:
    image, double = gradient(height, width), Rendition((32, 48))
    made = build(Pair, crops="shared", other=STRONG).sample(image, rng(seed), (16, 24), [double])
    main, other = made["main"], made["other"]
    assert main.box is not None
    assert other.box is not None
    assert main.box.equal(other.box)
    assert main.flip is not None
    assert other.flip is not None
    assert main.flip.equal(other.flip)
    plain = build(Pair, crops="shared").sample(image, rng(seed), (16, 24), [double])
    assert main.image.equal(plain["main"].image), "what is drawn for one view does not move the other"
    assert plain["main"].image.equal(plain["other"].image)


def test_independent_crops_differ_and_their_boxes_say_so() -> None:
    image, apart = gradient(80, 70), []
    for seed in range(20):
        made = build(Pair, interpolation="bilinear").sample(image, rng(seed), (64, 64), [])
        for view in made.values():
            assert view.box is not None
            assert view.flip is not None
            top, left, h, w = view.box[0].tolist()
            corner = view.image[0, :2, 2, -3 if view.flip else 2].float() / 255
            assert corner.tolist() == pytest.approx([top + h * 2.5 / 64, left + w * 2.5 / 64], abs=0.03)
        apart.append(not made["main"].box.equal(made["other"].box))  # type: ignore[union-attr, arg-type]
    assert all(apart)


def test_focal_views_are_smaller_in_pixels_and_area() -> None:
    policy = build(MultiCrop, num_focal=3, focal_size=8)
    rendition = Rendition((20, 20))
    for seed in range(10):
        made = policy.sample(gradient(60, 50), rng(seed), (16, 24), [rendition])
        assert [*made] == ["target", "main", "focal0", "focal1", "focal2"]
        for name, view in made.items():
            assert view.image.shape[-2:] == policy.config.size_of(name, (16, 24))
            assert [*view.renditions] == ([] if name.startswith("focal") else [rendition])
            assert view.box is not None
            area = float(view.box[0, 2] * view.box[0, 3])
            assert area < 0.4 if name.startswith("focal") else area > 0.2


def test_focal_views_show_less_however_many_pixels_they_have() -> None:
    policy = build(MultiCrop, num_focal=1, focal_size=16)
    for seed in range(10):
        view = policy.sample(gradient(60, 50), rng(seed), (16, 16), [])["focal0"]
        assert view.box is not None
        assert float(view.box[0, 2] * view.box[0, 3]) < 0.4


def test_colours_leave_the_places_and_the_type_alone() -> None:
    image = gradient(20, 30)
    nothing = ColorDraw((1.0, 1.0, 1.0, 0.0), (), False, 0.0, False)
    assert nothing(image).equal(image)
    grey = nothing._replace(grey=True)(image)
    assert (grey == grey[:1]).all()
    blurred = nothing._replace(sigma=2.0)(image)
    assert (blurred.dtype, blurred.shape) == (image.dtype, image.shape)
    assert (blurred.float().diff(dim=-1).abs().max() <= image.float().diff(dim=-1).abs().max()).all()
    assert nothing._replace(solarize=True)(image).equal(torch.where(image < 128, image, 255 - image))


def test_chances_are_kept_and_a_draw_without_chances_does_nothing() -> None:
    draws = [Colors(**STRONG).draw(rng(seed)) for seed in range(2000)]
    shares = [
        sum(map(bool, found)) / 2000
        for found in zip(*((d.order, d.grey, d.sigma, d.solarize) for d in draws), strict=True)
    ]
    assert shares == pytest.approx([0.8, 0.2, 0.5, 0.2], abs=0.03)
    idle = Colors().draw(rng(0))
    assert (idle.order, idle.grey, idle.sigma, idle.solarize) == ((), False, 0.0, False)
    assert all(0.6 <= factor <= 1.4 for draw in draws for factor in draw.amounts[:3])
    assert all(3 not in draw.order for draw in [Colors(jitter=1, hue=0).draw(rng(seed)) for seed in range(5)])


def test_impossible_colours_and_crops_are_refused() -> None:
    for fields in ({"main": {"sigma": (2, 1)}}, {"scale": (0.5, 0.2)}, {"ratio": (0, 1)}):
        with pytest.raises(ValueError, match="must be"):
            build(Pair, **fields)
    with pytest.raises(ValueError, match="focal_scale must be"):
        build(MultiCrop, focal_scale=(0, 1))
