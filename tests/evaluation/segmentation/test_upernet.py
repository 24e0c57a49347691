"""UperNet: BEiT's taps, strides and shapes; every parameter learns; ignored pixels say nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.engine import toys
from unimim.axes import Student
from unimim.evaluation.segmentation.upernet import UperNet, check_student, cross_entropy, factors, resized, scaled, taps
from unimim.students.swin import Swin
from unimim.types import Batch, View


def student(patch: int = 8, depth: int = 3, **changes: object) -> Student:
    fields = [f"student.{name}={value}" for name, value in {"patch_size": patch, "depth": depth, **changes}.items()]
    torch.manual_seed(0)
    return toys.recipe("mae-micro", "student.image_size=64", *fields).student.build()


def batch(size: int = 64, images: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (images, 3, size, size), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 5, (images, 1, size, size), generator=generator, dtype=torch.uint8)
    return Batch({"main": View(pixels), "labels": View(labels)}, {}, torch.arange(images))


def test_taps_are_beits_and_follow_one_rule() -> None:
    places = {depth: [tap.block for tap in taps(depth)] for depth in (1, 3, 6, 12, 24, 32)}
    assert places[12] == [3, 5, 7, 11]
    assert places[24] == [7, 11, 15, 23]
    assert places[32] == [10, 15, 20, 31]
    assert places[6] == [1, 2, 3, 5]
    assert places[3] == [0, 1, 1, 2]
    assert places[1] == [0, 0, 0, 0]


def test_levels_have_strides_4_8_16_32() -> None:
    assert factors(16) == factors(14) == (4, 2, 1, 0.5)
    assert factors(8) == (2, 1, 0.5, 0.25)
    for patch in (4, 8, 16, 32):
        model = UperNet(student(patch), 5, 12, 6)
        levels = model.levels(batch().views["main"])
        assert [level.shape for level in levels] == [(2, 16, 64 // stride, 64 // stride) for stride in (4, 8, 16, 32)]
    kinds = [[type(layer).__name__ for layer in scaled(4, factor).modules()][1:] for factor in factors(16)]
    assert kinds[0] == ["ConvTranspose2d", "BatchNorm2d", "GELU", "ConvTranspose2d"]
    assert kinds[1:3] == [["ConvTranspose2d"], []]
    assert isinstance(scaled(4, 0.5), nn.MaxPool2d)


def test_shapes_of_all_parameters_are_mmsegs() -> None:
    model = UperNet(student(16), 5, 12, 6)
    shapes = {
        name: tuple(p.shape) for name, p in model.named_parameters() if p.ndim > 1 and not name.startswith("student")
    }
    assert shapes == {
        "pyramid.0.0.weight": (16, 16, 2, 2),
        "pyramid.0.3.weight": (16, 16, 2, 2),
        "pyramid.1.0.weight": (16, 16, 2, 2),
        **{f"head.pooling.stages.{n}.1.weight": (12, 16, 1, 1) for n in range(4)},
        "head.pooling.bottleneck.0.weight": (12, 16 + 4 * 12, 3, 3),
        **{f"head.laterals.{n}.0.weight": (12, 16, 1, 1) for n in range(3)},
        **{f"head.outputs.{n}.0.weight": (12, 12, 3, 3) for n in range(3)},
        "head.fuse.0.weight": (12, 4 * 12, 3, 3),
        "head.classifier.1.weight": (5, 12, 1, 1),
        "auxiliary.0.0.weight": (6, 16, 3, 3),
        "auxiliary.1.1.weight": (5, 6, 1, 1),
    }


def test_the_head_has_beits_number_of_parameters() -> None:
    with torch.device("meta"):
        model = UperNet(student(16, dim=768, num_heads=12), 150)
    own = {part: sum(p.numel() for p in module.parameters()) for part, module in model.named_children()}
    conv = {k: lambda i, o, k=k: i * o * k * k + 2 * o for k in (1, 3)}
    c = 768
    head = (
        4 * conv[1](c, c)
        + conv[3](5 * c, c)
        + 3 * (conv[1](c, c) + conv[3](c, c))
        + conv[3](4 * c, c)
        + 151 * c
        - c
        + 150
    )
    assert own["head"] == head
    assert own["pyramid"] == 3 * (4 * c * c + c) + 2 * c
    assert own["auxiliary"] == conv[3](c, 256) + 256 * 150 + 150


def test_every_parameter_learns_but_those_that_the_taps_pass_by() -> None:
    model = UperNet(student(), 5, 12, 6)
    model.freeze_unused(batch())
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"student.norm.weight", "student.norm.bias"}
    model.image_losses(batch()).sum().backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert p.grad is not None, name
            assert p.grad.abs().sum() > 0, name


def test_ignored_pixels_change_the_loss_by_exactly_nothing() -> None:
    model = UperNet(student(), 5, 12, 6).eval()
    images = batch()
    labels = images.views["labels"].image.clone()
    labels[:, :, :40] = 255
    some = model.image_losses(Batch({**images.views, "labels": View(labels)}, {}, images.index))
    logits = torch.randn(2, 5, 64, 64, requires_grad=True)
    loss = cross_entropy(logits, labels[:, 0].long())
    other = torch.where(labels == 255, 100.0, logits)
    assert torch.equal(cross_entropy(other, labels[:, 0].long()), loss), "whatever is predicted there"
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient[:, :, :40].eq(0).all()
    labels[:] = 255
    none = model.image_losses(Batch({**images.views, "labels": View(labels)}, {}, images.index))
    assert none.tolist() == [0.0, 0.0]
    assert (some > 0).all()


def test_the_loss_is_the_head_and_four_tenths_of_the_auxiliary() -> None:
    model, images = UperNet(student(), 5, 12, 6).eval(), batch()
    labels = images.views["labels"].image[:, 0].long()
    with torch.no_grad():
        main = nn.functional.cross_entropy(model.answers(images.views["main"]), labels)
        levels = model.levels(images.views["main"])
        other = nn.functional.cross_entropy(resized(model.auxiliary(levels[2]), (64, 64)), labels)
        assert model.image_losses(images).mean() == pytest.approx(float(main + 0.4 * other), rel=1e-5)


def test_prefix_tokens_are_no_pixels() -> None:
    """A map whose tokens are their own places comes out in raster order, with and without prefix tokens."""
    seen: list[Tensor] = []
    for registers in (0, 3):
        model = UperNet(student(num_registers=registers), 5, 12, 6)
        model.pyramid[1].register_forward_hook(lambda module, given, made: seen.append(given[0]))
        encoded = model.student(batch().views["main"], None, model.taps)
        model.levels(batch().views["main"])
        tokens = encoded.taps[model.taps[1]][:, 1 + registers :]
        assert torch.equal(seen[-1].flatten(2).transpose(1, 2), tokens)


def test_students_without_one_sequence_of_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="blocks of one grid"):
        check_student(Swin.Config())
    with pytest.raises(ValueError, match="square patches"):
        check_student(student(16, patch_size="[16,8]").config)
    with pytest.raises(ValueError, match="patches of 3 to 45"):
        factors(64)
