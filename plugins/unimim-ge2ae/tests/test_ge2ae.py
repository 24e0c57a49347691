"""Contracts, and laws of spectra and of the focal frequency loss, against NumPy's transform of whole images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from unimim_ge2ae.spectrum import image_of, spectrum

from unimim import Batch, Geometry, Mask, Objective, Query, TargetSpec, View, load, plugins, testing
from unimim.layers import patchify, unpatchify

DECODER = {"name": "decoder", "dim": 8, "depth": 1, "num_heads": 2}
TOY = {"name": "vit", "image_size": (16, 24), "patch_size": 4, "dim": 16, "depth": 2, "num_heads": 2}
DROP = TOY | {"masking": "drop", "positions": "sincos"}
SMALL = ["student.dim=16", "student.depth=2", "student.num_heads=2", "student.image_size=32"]
SMALL += [f"terms.pixel.head={DECODER}", f"terms.frequency.head.head={DECODER}"]

sizes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 3]), st.sampled_from([(2, 2), (3, 5)]))
"""Rows and columns of patches, channels, and the patch."""


def image(size: tuple[int, int, int, tuple[int, int]], seed: int) -> Tensor:
    rows, columns, channels, patch = size
    shape = (2, channels, rows * patch[0], columns * patch[1])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def focal(channels: int = 3, dim: int = 24) -> Any:
    return plugins()["losses"]["focal_frequency"].Config(channels=channels).build(TargetSpec(dim))


def direct(pred: Tensor, target: Tensor) -> np.ndarray[Any, Any]:
    """The focal frequency loss of each image, (B,), in float64 on whole images (B, C, H, W)."""
    gap = np.fft.fft2(pred.double().numpy() - target.double().numpy(), norm="ortho")
    weight = np.abs(gap) / np.abs(gap).max((2, 3), keepdims=True)
    mean: np.ndarray[Any, Any] = (weight * np.abs(gap) ** 2).mean((1, 2, 3))
    return mean


def test_contracts() -> None:
    testing.check_teacher("frequency")
    testing.check_teacher("frequency", TOY | {"image_size": (12, 18), "patch_size": (4, 6)})
    testing.check_teacher(
        {"name": "frequency", "mean": [0.5], "std": [0.5]}, TOY | {"channels": 1, "mean": [0], "std": [1]}
    )
    testing.check_loss("focal_frequency")
    testing.check_loss({"name": "focal_frequency", "channels": 1}, dim=16)
    for student in (TOY, DROP):
        testing.check_head({"name": "spectrum", "head": DECODER}, student, out_dim=96)
    testing.check_head({"name": "spectrum", "head": "fc"}, out_dim=96)


@pytest.mark.parametrize("more", [[], ["student.patch_size=4"], ["terms.frequency.where=hidden"]])
def test_the_micro_recipe_trains(more: list[str]) -> None:
    testing.check_recipe("ge2ae-micro", SMALL + more)


def test_row_of_the_table() -> None:
    """Table 1 writes Pixel&Frequency and Decoders: terms are joined by " & ", and what is the same is said once."""
    recipe = load("ge2ae")
    assert (recipe.row, recipe.status) == ("Ge2-AE (Liu et al., 2022a)", "unverified")
    assert [*recipe.axes().values()] == ["Pixel & Frequency", "ViT", "Decoder", "/", "l2"]


def test_targets_and_heads_that_are_no_spectrum_are_refused() -> None:
    with pytest.raises(ValueError, match=r"predicts 384 numbers a token, not 192; use teacher frequency"):
        Objective(load("ge2ae-micro", ["terms.frequency.teacher=pixel", "terms.frequency.loss=l2"]))
    with pytest.raises(ValueError, match=r"tokens of 24 numbers are not complex and of 5 channels"):
        focal(channels=5)
    with pytest.raises(ValueError, match=r"reads the student's tokens at hidden positions"):
        load("ge2ae-micro", ["terms.frequency.head.head=fc"])
    with pytest.raises(ValueError, match=r"inside spectrum reads hidden positions"):
        Objective(load("ge2ae-micro", ["terms.frequency.head.head=fc", "terms.frequency.where=visible"]))


@settings(max_examples=40, deadline=None)
@given(size=sizes, seed=st.integers(0, 2**16))
def test_a_spectrum_has_the_energy_of_its_image_and_gives_it_back(size: Any, seed: int) -> None:
    x, grid, patch = image(size, seed), size[:2], size[3]
    tokens = spectrum(x, patch)
    assert tokens.shape == (2, grid[0] * grid[1], 2 * patch[0] * patch[1] * size[2])
    assert torch.allclose(tokens.square().sum(), x.square().sum(), rtol=1e-5)
    assert torch.allclose(image_of(tokens, grid, patch), x, rtol=0, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(size=sizes, seed=st.integers(0, 2**16))
def test_the_layout_is_numpys_spectrum_cut_into_patches(size: Any, seed: int) -> None:
    x, patch = image(size, seed), size[3]
    transformed = np.fft.fft2(x.double().numpy(), norm="ortho")
    planes = unpatchify(spectrum(x, patch), size[:2], patch).double().numpy()
    assert np.allclose(planes[:, : size[2]] + 1j * planes[:, size[2] :], transformed, rtol=0, atol=1e-5)


def test_the_teacher_transforms_the_normalized_image() -> None:
    view = View(torch.rand(2, 3, 16, 24))
    teacher = (
        plugins()["teachers"]["frequency"]
        .Config(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
        .build(Geometry((16, 24), (4, 6), dim=8))
    )
    tokens = teacher(view).tokens
    normalized = (view.image - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(
        3, 1, 1
    )
    assert tokens.equal(spectrum(normalized, (4, 4)))
    assert torch.allclose(teacher.picture(tokens), view.image, rtol=0, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(size=sizes, seed=st.integers(0, 2**16), scale=st.floats(0.125, 8))
def test_the_loss_is_the_focal_frequency_loss_of_images(size: Any, seed: int, scale: float) -> None:
    """Its mean over tokens; zero where and only where all agrees; s^2 times as large for images s times as large."""
    pred, target, patch = image(size, seed), image(size, seed + 1), size[3]
    loss = focal(size[2], 2 * size[2] * patch[0] * patch[1])
    p, t = spectrum(pred, patch), spectrum(target, patch)
    tokens = loss(p, t)
    assert np.allclose(tokens.mean(1).numpy(), direct(pred, target), rtol=1e-4)
    assert np.allclose(loss(scale * p, scale * t), scale**2 * tokens.numpy(), rtol=1e-4)
    assert (loss(t, t) == 0).all()
    assert (tokens.sum(1) > 0).all()
    assert loss(p.flip(0), t.flip(0)).equal(tokens.flip(0))


@settings(max_examples=20, deadline=None)
@given(size=sizes, seed=st.integers(0, 2**16))
def test_no_gradient_flows_through_the_weight(size: Any, seed: int) -> None:
    """The gradient is that of a squared error with constant weights |d| / max |d|: 2 w d over the number of coefficients."""
    patch, channels = size[3], size[2]
    p, t = (spectrum(image(size, seed + k), patch) for k in (0, 1))
    p.requires_grad_()
    focal(channels, p.shape[-1])(p, t).sum().backward()
    gap = (p - t).detach().unflatten(-1, (-1, 2, channels))
    size_of = gap.square().sum(-2).sqrt()
    weight = size_of / size_of.amax((1, 2), keepdim=True)
    expected = 2 * weight.unsqueeze(-2) * gap / (patch[0] * patch[1] * channels)
    assert torch.allclose(p.grad, expected.flatten(2), rtol=1e-4, atol=1e-6)


def objective_and_batch() -> tuple[Any, Batch]:
    torch.manual_seed(0)
    objective = Objective(load("ge2ae-micro", [*SMALL, "student.image_size=[32, 48]"]))
    hidden = torch.rand(3, 24).argsort(1) < 18
    mask = Mask.from_hidden(hidden, 18)
    return objective, Batch({"main": View(torch.rand(3, 3, 32, 48))}, {"main": (mask,)}, torch.arange(3))


def test_the_recipe_from_images_to_both_losses() -> None:
    """The frequency term is the loss of the second decoder's whole picture, computed apart from the tokens."""
    objective, batch = objective_and_batch()
    losses, teacher = objective(batch), objective.terms["frequency"].teacher[0]
    view, (mask,) = batch.views["main"], batch.masks["main"]
    encoded, everywhere = objective.student(view, mask), Query(torch.arange(24).expand(3, -1))
    pixels = objective.terms["frequency"].head.head(encoded, everywhere).detach()
    normalized = (view.image - teacher.mean) / teacher.std
    expected = direct(unpatchify(pixels, (4, 6), (8, 8)), normalized).mean()
    assert losses["frequency"].item() == pytest.approx(expected, rel=1e-4)
    missed = (objective.terms["pixel"].head(encoded, Query(mask.hidden_index)).detach(), patchify(normalized, (8, 8)))
    squared = (missed[0] - missed[1][mask.hidden].view(3, 18, -1)).square().mean()
    assert losses["pixel"].item() == pytest.approx(squared.item(), rel=1e-5)
    assert losses["loss"].item() == pytest.approx(losses["pixel"].item() + losses["frequency"].item(), rel=1e-6)


def test_transforms_are_float32_under_autocast() -> None:
    objective, batch = objective_and_batch()
    with torch.autocast("cpu", torch.bfloat16):
        (step,) = objective.predictions(batch)["frequency"]
        loss = objective(batch)["loss"]
    assert (step.preds[0].dtype, step.target.dtype) == (torch.float32, torch.float32)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.requires_grad)


def test_hidden_pixels_change_no_prediction() -> None:
    objective, batch = objective_and_batch()
    (mask,), shown = batch.masks["main"], batch.views["main"].image
    hidden = mask.hidden.view(3, 1, 4, 6).repeat_interleave(8, 2).repeat_interleave(8, 3)
    other = Batch({"main": View(torch.where(hidden, 1 - shown, shown))}, batch.masks, batch.index)
    for name in ("pixel", "frequency"):
        (seen,), (blind,) = (objective.predictions(given)[name] for given in (batch, other))
        assert (seen.preds[0] - blind.preds[0]).abs().max().item() == 0.0
